"""Keys are injective, typed, bounded and safe to show."""

import re
import string
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.errors import InvalidEvent
from app.events.keys import MAX_KEY_BYTES, hash_key, id_key, rule_key

TRICKY = st.text(alphabet="ab~%=@/?#+:. \u00a0é\x00123truefalsTF7E", min_size=1, max_size=8)
TEXTS = TRICKY | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PARTS = TEXTS | st.integers(-(2**63), 2**63 - 1) | st.booleans()
RULES = st.one_of(
    st.tuples(st.just("id"), TEXTS, TEXTS),
    st.tuples(st.just("type"), TEXTS, st.integers(1, 30), st.lists(PARTS, min_size=1, max_size=4).map(tuple)),
    st.tuples(st.just("hash"), TEXTS, st.integers(1, 30), st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=23)),
)


def key_of(rule: tuple[Any, ...]) -> str:
    match rule:
        case ("id", source, id_):
            return id_key(source, id_)
        case ("type", type_, version, parts):
            return rule_key(type_, version, [("x", part) for part in parts])
        case ("hash", type_, version, digest):
            return hash_key(type_, version, digest)
    raise AssertionError(rule)


def typed(rule: tuple[Any, ...]) -> object:
    """The rule with the types of its values, for to Python 1 equals True."""
    return [[(type(x), x) for x in part] if isinstance(part, tuple) else part for part in rule]


@given(RULES, RULES)
def test_different_rules_and_parts_never_give_one_key(one, other):
    assume(typed(one) != typed(other))
    try:
        keys = key_of(one), key_of(other)
    except InvalidEvent:
        assume(False)
    assert keys[0] != keys[1]


@given(RULES)
def test_a_key_can_be_read_back(rule):
    """Stronger than comparing pairs: a key from which rule and parts can be had again cannot belong to two of them."""
    try:
        kind, *fields = key_of(rule).split("~")
    except InvalidEvent:
        assume(False)
    assert kind == rule[0]
    if kind == "id":
        assert tuple(map(part_of, fields)) == rule[1:]
        return
    type_, _, version = fields[0].partition("@")
    assert (unquote(type_), int(version or 1)) == rule[1:3]
    values = tuple(map(part_of, fields[1:]))
    expected = rule[3] if kind == "type" else (rule[3],)
    assert [(type(value), value) for value in values] == [(type(value), value) for value in expected]


def part_of(text: str) -> Any:
    if not text.startswith("="):
        return unquote(text, errors="strict")
    return {"=true": True, "=false": False}[text] if text[1] in "tf" else int(text[1:])


@given(RULES)
def test_a_key_fits_into_urls_task_ids_and_log_lines(rule):
    try:
        key = key_of(rule)
    except InvalidEvent:
        assume(False)
    assert not re.search(r"[/?#+\s\x00-\x1f\x7f-\x9f]", key)
    assert 0 < len(key.encode()) <= MAX_KEY_BYTES


@pytest.mark.parametrize(
    "key, expected",
    [
        (id_key("nycflights13", "42"), "id~nycflights13~42"),
        (id_key("https://shop.example/orders", "a~b"), "id~https:%2F%2Fshop.example%2Forders~a%7Eb"),
        (id_key("s", "=1"), "id~s~%3D1"),
        (id_key("s", "a=1"), "id~s~a=1"),
        (id_key("s", "à la carte\u00a0"), "id~s~à%20la%20carte%C2%A0"),
        (id_key("s", "%7E"), "id~s~%257E"),
        (
            rule_key("flight.departed", 1, [("c", "UA"), ("f", 1545), ("o", "EWR"), ("t", "2013-01-01T10:00:00Z")]),
            "type~flight.departed~UA~=1545~EWR~2013-01-01T10:00:00Z",
        ),
        (rule_key("a@2", 1, [("x", True)]), "type~a%402~=true"),
        (rule_key("a", 2, [("x", "me@home"), ("y", -1)]), "type~a@2~me@home~=-1"),
        (hash_key("a", 1, "1abc-_"), "hash~a~1abc-_"),
        (hash_key("a", 12, "1abc"), "hash~a@12~1abc"),
    ],
)
def test_keys_keep_their_form(key, expected):
    """Keys are stored for ever: another form would make old events new."""
    assert key == expected


@pytest.mark.parametrize(
    "value, reason", [(None, "missing"), ("", "empty"), (1.0, "fraction"), ({}, "object"), ([1], "array"), (b"x", "binary")]
)
def test_what_cannot_be_a_part_is_refused_by_name(value, reason):
    with pytest.raises(InvalidEvent, match=reason) as caught:
        rule_key("t", 1, [("data.a", "fine"), ("data.b", value)])

    assert (caught.value.status, caught.value.field) == (422, "data.b")


@pytest.mark.parametrize("make", [lambda id_: id_key("s", id_), lambda id_: rule_key("t", 1, [("data.a", id_)])])
@pytest.mark.parametrize("char, size", [("x", 1), ("é", 2), ("/", 3), ("\u2028", 9)])
def test_the_limit_counts_bytes_of_the_finished_key(make: Callable[[str], str], char: str, size: int):
    room = MAX_KEY_BYTES - len(make("y"))
    fitting = make("y" + "y" * (room % size) + char * (room // size))
    assert len(fitting.encode()) == MAX_KEY_BYTES
    with pytest.raises(InvalidEvent, match="512 is the most"):
        make("y" + "y" * (room % size + 1) + char * (room // size))


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidEvent, match="surrogate"):
        id_key("s", "\ud800")
