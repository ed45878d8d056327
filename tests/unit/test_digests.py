"""Digests: equal for equal content, different for different content, and the same for ever."""

import json
import random
from typing import Any

import bson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.events.digests import digest_of
from app.events.values import INT_MAX, INT_MIN, MAX_LEVELS, canonical, find_fault, shown

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(INT_MIN, INT_MAX) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5)
    | st.binary(max_size=3)
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def shuffled(value: Any, luck: random.Random) -> Any:
    if isinstance(value, dict):
        names = list(value)
        luck.shuffle(names)
        return {name: shuffled(value[name], luck) for name in names}
    return [shuffled(item, luck) for item in value] if isinstance(value, list) else value


def exact(value: Any) -> object:
    """A value that is equal only to itself: to Python 1 == 1.0 == True and 0.0 == -0.0."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    return [exact(item) for item in value] if isinstance(value, list) else (type(value), repr(value))


@given(VALUES, st.randoms(use_true_random=False))
def test_the_order_of_fields_does_not_matter(value, luck):
    assert digest_of("t", shuffled(value, luck)) == digest_of("t", value)


@given(VALUES, VALUES)
def test_different_content_gives_different_digests(one, other):
    assume(exact(one) != exact(other))
    assert digest_of("t", one) != digest_of("t", other)


@given(VALUES)
def test_canonical_text_reads_back_exactly(value):
    """Canonical text is injective, because the value can be had again from it."""
    assert exact(json.loads(canonical(value))) == exact(value)


@given(VALUES)
def test_a_value_without_a_fault_goes_through_bson_unchanged(value):
    assert find_fault(value) is None
    back = bson.decode(bson.encode({"body": {"data": value}}))["body"]["data"]
    assume(not has_reference(value))  # the driver turns {"$ref", "$id"} into a DBRef; its stores undo that
    assert back == value
    assert digest_of("t", json.loads(json.dumps(back))) == digest_of("t", value)


def has_reference(value: Any) -> bool:
    if isinstance(value, dict):
        return "$ref" in value or any(map(has_reference, value.values()))
    return isinstance(value, list) and any(map(has_reference, value))


@given(ANYTHING)
def test_what_has_no_fault_can_be_encoded(value):
    if find_fault(value) is None:
        bson.encode({"data": value})
        digest_of("t", value)


@pytest.mark.parametrize(
    "one, other",
    [
        (1, 1.0),
        (1, "1"),
        (1, True),
        (0, False),
        (0.0, -0.0),
        (None, "null"),
        (None, {}),
        ([], {}),
        ([1, 2], [2, 1]),
        ({"a": None}, {}),
        (b"x", "x"),
        (b"x", "eA=="),
        (b"x", ["eA==", "base64"]),
        (b"", ""),
        (2**53, 2**53 + 1),
        (0.1, 0.1 + 2**-55),
        ("é", "e\u0301"),
    ],
)
def test_look_alikes_differ(one, other):
    assert digest_of("t", one) != digest_of("t", other)


def test_the_type_counts():
    assert digest_of("order.paid", 1) != digest_of("order.sent", 1)


@pytest.mark.parametrize(
    "content, text, digest",
    [
        (None, '["t",null]', "1n6DpamO0_xSk74yXyFUrdg"),
        (
            {"b": 1, "a": [1.5, True, "é\n\u2028/\x7f"], "": {}},
            '["t",{"":{},"a":[1.5,true,"é\\n\u2028/\x7f"],"b":1}]',
            "1vv1NlB45kAyA4gXZzGaPjA",
        ),
        ([1e15, 1e16, 1e22, 1.0, -0.0, 5e-324, 1e-7, 123456789.125], None, "1AZZ1R3W3UYVhH2k7dKjPbw"),
        ({"\U0001f600": 1, "\uffff": 2, "z": 3}, '["t",{"z":3,"\uffff":2,"\U0001f600":1}]', "1q9EgskBLr2tZ17bZmG4zjQ"),
        (b"\x00\xff", '["t","AP8=","base64"]', "1TljioNKqiHjUe-7IEuvdlA"),
    ],
)
def test_digests_keep_their_form(content, text, digest):
    """Digests are stored for ever. If this fails, the canonical text changed: give the new method another version."""
    if text is not None and not isinstance(content, bytes):
        assert canonical(["t", content]).decode() == text
    assert digest_of("t", content) == digest
    assert len(digest) == 23


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def depth_of(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def test_the_deepest_event_is_within_mongodbs_hundred_levels_wherever_it_is_stored():
    body = {"data": nested(MAX_LEVELS)}
    assert depth_of({"_id": "batch", "events": [{"body": body}]}) == 100
    assert find_fault(nested(MAX_LEVELS)) is None
    assert "nested" in find_fault(nested(MAX_LEVELS + 1)).reason


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize(
    "value, path, reason",
    [
        ({"a": [{"b": 2**63}]}, ".a[0].b", "64 bits"),
        ({"a": -(2**63) - 1}, ".a", "64 bits"),
        ([1.5, float("nan")], "[1]", "not finite"),
        ({"a": float("-inf")}, ".a", "not finite"),
        ({1: 2}, "", "field name that is a int"),
        ({"a": (1,)}, ".a", "is a tuple"),
        ({"a": b"x"}, ".a", "is a bytes"),
    ],
)
def test_a_fault_names_its_place(value, path, reason, strings):
    fault = find_fault(value, strings=strings)
    assert fault is not None
    assert fault.path == path
    assert reason in fault.reason


@pytest.mark.parametrize(
    "value, path, reason",
    [
        ({"a": {"b\0": 1}}, ".a", r"NUL: b\x00"),
        ({"a": ["fine", "\ud800"]}, ".a[1]", "surrogate"),
        ({"\udfff": 1}, "", r"surrogate: \udfff"),
    ],
)
def test_faults_within_strings(value, path, reason):
    fault = find_fault(value)
    assert fault is not None
    assert fault.path == path
    assert reason in fault.reason


def test_legal_but_unusual_values():
    assert find_fault({"": 1, "$set": {"a.b": "\0"}, "int": [INT_MIN, INT_MAX], "é": "\uffff"}) is None


def test_a_value_that_contains_itself_is_nested_too_deeply():
    value: dict[str, Any] = {}
    value["self"] = value
    assert "nested" in find_fault(value).reason


@given(st.text(st.characters(codec=None)))
def test_shown_text_is_one_short_line_of_valid_unicode(text):
    assert shown(text).encode().decode().isprintable()
    assert len(shown(text, 20)) <= 20 * 10
