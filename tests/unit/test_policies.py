"""Policies: which one holds, what it makes of an event, and what a file may not say."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidEvent, PolicyError
from app.events.expressions import compile_expression
from app.events.policies import Policies
from app.events.policy import Policy
from app.settings import Settings

SETTINGS = Settings(redis_url="redis://x", broker_url="redis://x", mongo_url="mongodb://x/d")
SHIPPED = Path(__file__).parents[2] / "policies.toml"


@pytest.fixture
def load(tmp_path):
    def load(text: str, settings: Settings = SETTINGS) -> Policies:
        path = tmp_path / "policies.toml"
        path.write_text(text, encoding="utf-8")
        return Policies.load(path, settings)

    return load


def event(data: Any = None, **attributes: Any) -> dict[str, Any]:
    return {"type": "t", "source": "s", "data": data} | attributes


# ------------------------------------------------------------------------------------------------- which policy holds


def test_without_a_file_the_settings_hold_for_every_type():
    policies = Policies.load(None, SETTINGS)

    policy = policies.of("anything")
    assert policy is policies.default
    assert list(policies) == [policy]
    assert (policy.key, policy.digest, policy.on_conflict) == (None, None, "quarantine")
    for name in ("lease_ms", "max_handler_s", "max_attempts", "backoff_ms", "backoff_max_ms", "retention_s"):
        assert getattr(policy, name) == getattr(SETTINGS, name)


def test_the_shipped_file_gives_flights_their_key():
    policy = Policies.load(SHIPPED, SETTINGS).of("flight.departed")

    assert policy.key == ("data.carrier", "data.flight", "data.origin", "data.time_hour")


@pytest.mark.parametrize(
    "type_, pattern",
    [
        ("flight.departed", "flight.departed"),
        ("flight.departed.late", "flight.departed*"),
        ("flight.landed", "flight.*"),
        ("flight.", "flight.*"),
        ("train.departed", "*.departed"),
        ("train.re.departed", "*.departed"),
        ("a-b-c", "a*b*c"),
        ("abc", "a*b*c"),
        ("abcb", ""),
        ("flight", ""),
        ("Flight.landed", ""),
        ("flightXlanded", ""),
        ("flight.one\ntwo", "flight.*"),
    ],
)
def test_the_most_specific_entry_wins(load, type_, pattern):
    names = ["flight.*", "*.departed", "flight.departed*", "flight.departed", "a*b*c"]
    policies = load("".join(f'[types."{name}"]\n' for name in names))

    assert policies.of(type_).pattern == pattern
    assert policies.of(type_) is policies.of(type_)
    assert {policy.pattern for policy in policies} == {*names, ""}


def test_matching_is_quick_for_hostile_types(load):
    policies = load(f'[types."{"a*" * 30}b"]\n')

    assert policies.of("a" * 512).pattern == ""


def test_the_memory_of_types_is_bounded(load):
    policies = load('[types."t*"]\n')
    for number in range(10_000):
        policies.of(f"t{number}")

    assert len(policies._cache) <= 4096
    assert policies.of("t1").pattern == "t*"


def test_fields_left_out_come_from_the_defaults_then_from_the_settings(load):
    policies = load("[defaults]\nmax_attempts = 2\nbackoff_ms = 7\n[types.a]\nmax_attempts = 9\n")

    assert (policies.of("a").max_attempts, policies.of("a").backoff_ms, policies.of("a").lease_ms) == (9, 7, SETTINGS.lease_ms)
    assert (policies.of("b").max_attempts, policies.of("b").backoff_ms) == (2, 7)


# --------------------------------------------------------------------------------------------------- key and digest


def test_the_default_key_is_source_and_id(load):
    assert load("").of("t").identify(event(id="42"))[0] == "id~s~42"


def test_an_event_without_id_and_rule_is_refused(load):
    with pytest.raises(InvalidEvent, match="no id") as caught:
        load("").of("t").identify(event())
    assert caught.value.field == "id"


def test_a_key_rule_takes_strings_integers_and_booleans_from_anywhere(load):
    policy = load('[types.t]\nkey = ["subject", "data.n", "data.legs[0].final", "type", "partition"]\nkey_version = 3\n').of("t")

    key, _ = policy.identify(event({"n": 7, "legs": [{"final": False}]}, subject="a/b", partition="p"))

    assert key == "type~t@3~a%2Fb~=7~=false~t~p"


@pytest.mark.parametrize("data", [None, {}, {"n": None}, {"n": 1.0}, {"n": [1]}, {"n": ""}, [1], "n", b"n"])
def test_a_key_needs_all_its_parts(load, data):
    with pytest.raises(InvalidEvent) as caught:
        load('[types.t]\nkey = ["source", "data.n"]\n').of("t").identify(event(data, id="1"))
    assert (caught.value.status, caught.value.field) == (422, "data.n")


def test_a_pattern_s_rule_still_tells_types_apart(load):
    policies = load("[types.'f.*']\nkey = ['data.n']\n")

    keys = {policies.of(type_).identify(event({"n": 1}, type=type_))[0] for type_ in ("f.a", "f.b")}

    assert keys == {"type~f.a~=1", "type~f.b~=1"}


def test_content_hash(load):
    policy = load('[types.t]\nkey = "content-hash"\n').of("t")

    key, digest = policy.identify(event({"a": 1, "b": 2}))

    assert key == f"hash~t~{digest}"
    assert policy.identify(event({"b": 2, "a": 1}, id="9", time="2013-01-01T10:00:00Z")) == (key, digest)
    assert policy.identify(event({"a": 1, "b": 3}))[0] != key
    assert policy.identify(event(b"\x00"))[0] != policy.identify(event("\x00"))[0]


def test_a_digest_expression_says_what_counts(load):
    policy = load('[types.t]\ndigest = "[data.a, subject]"\n').of("t")

    def digest(data, subject="x"):
        return policy.identify(event(data, id="1", subject=subject))[1]

    assert digest({"a": 1, "b": 1}) == digest({"a": 1, "b": 2})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) != digest({"a": 1}, subject="y")


def test_digest_of_data_is_the_default(load):
    policies = load('[types.t]\ndigest = "data"\n')

    for data in ({"a": [1]}, "text", b"bytes"):
        assert policies.of("t").identify(event(data, id="1"))[1] == policies.default.identify(event(data, id="1"))[1]


@pytest.mark.parametrize(
    "expression, data, reason",
    [
        ("data.missing", {"a": 1}, "missing"),
        ("to_number(data)", "NaN", "not finite"),
        ("to_number(data)", "9" * 30, "64 bits"),
        ("[data]", b"x", "bytes"),
        ("length(data)", 5, "does not fit"),
        ("sum(data)", ["a"], "does not fit"),
        ("sort_by(data, &@)", [1, "a"], "does not fit"),
        ("join('-', data)", [1], "does not fit"),
        ("[?a > `1`] | [0]", 5, "missing"),
    ],
)
def test_a_digest_that_cannot_be_made_is_refused(load, expression, data, reason):
    policies = load(f"[types.t]\ndigest = '''{expression}'''\n")
    with pytest.raises(InvalidEvent, match=reason) as caught:
        policies.of("t").identify(event(data, id="1"))
    assert (caught.value.status, caught.value.field) == (422, expression)


@pytest.mark.parametrize("expression", ["to_string(data)", "join(',', keys(data))", "values(data)[0]", "data.* | [0]"])
def test_the_order_of_fields_never_changes_a_key(load, expression):
    policy = load(f'[types.t]\nkey = ["{expression}"]\n').of("t")

    assert policy.identify(event({"a": "1", "b": "2"}))[0] == policy.identify(event({"b": "2", "a": "1"}))[0]


FIELDS = st.sampled_from(["data", "a", "b", "type", '"a-b"'])
JSONS = st.recursive(
    st.none() | st.integers() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
)


@given(st.lists(FIELDS, min_size=1, max_size=4), JSONS)
def test_plain_paths_are_walked_as_the_library_does(names, data):
    text = ".".join(names)
    whole = event(data)

    assert compile_expression(text)(whole) == jmespath.search(text, whole)


@given(st.text(max_size=12) | st.text(alphabet="abd.[]*&@|!`'\"()0-:,{} \\", max_size=14))
def test_any_text_compiles_or_is_refused(text):
    try:
        expression = compile_expression(text)
    except ValueError:
        return
    with suppress(InvalidEvent):
        expression(event({"a": [1, {"b": "x"}], "b": None}))


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "text, says",
    [
        ("[types", "not valid TOML"),
        ("[type.a]", "'type' is no table of a policy file"),
        ("types = 3", "types must be a table"),
        ("[types]\na = 3", 'types."a" must be a table'),
        ("defaults = 3", "defaults must be a table"),
        ('[types.""]', "printable text"),
        ('[types." a"]', "printable text"),
        ("[types.a]\nleese_ms = 1", 'types."a": leese_ms is no field'),
        ("[types.flight.departed]\nkey = ['data.a']", "needs quotes"),
        ("[types.a]\nkey = []", "key must be a list"),
        ("[types.a]\nkey = 'data.a'", "key must be a list"),
        ("[types.a]\nkey = [1]", "key must be a JMESPath expression, not 1"),
        ("[types.a]\nkey = ['data.']", "key 'data.' is no JMESPath"),
        ("[types.a]\nkey = ['']", "key '' is no JMESPath"),
        ("[types.a]\nkey = ['''`\"carrier\"`''']", "is a constant"),
        ("[types.a]\nkey = ['''length('x')''']", "is a constant"),
        ('[types.a]\nkey = ["not_null(data, `unknown`)"]', "has a literal that is not JSON"),
        ("[types.a]\nkey = ['lenght(data)']", "calls lenght(), which JMESPath does not have"),
        ("[types.a]\nkey = ['length(data, data)']", "calls length() with 2 arguments, and it takes 1"),
        ("[types.a]\nkey = ['data[*].map(@)']", "calls map() with 1 arguments, and it takes 2"),
        ("[types.a]\nkey = ['merge()||data']", "takes 1 or more"),
        ("[types.a]\ndigest = ['data.a']", "digest must be a JMESPath expression"),
        ("[types.a]\ndigest = 'a b'", "digest 'a b' is no JMESPath"),
        ("[types.a]\nkey_version = 2", "key_version has no meaning without key"),
        ("[types.a]\nkey = ['data.a']\nkey_version = 0", "key_version must be a whole number from 1"),
        ("[types.a]\nkey = ['data.a']\nkey_version = true", "key_version must be a whole number"),
        ("[types.a]\nlease_ms = '10'", "lease_ms must be a whole number"),
        ("[types.a]\nlease_ms = 10000.0", "lease_ms must be a whole number"),
        ("[types.a]\nlease_ms = 9998", "lease_ms must be at least 9999: a listener renews every 3333 ms"),
        ("[types.a]\nmax_handler_s = 0", "max_handler_s must be a number of seconds greater than 0"),
        ("[types.a]\nmax_handler_s = nan", "max_handler_s must be a number"),
        ("[types.a]\nmax_handler_s = inf", "max_handler_s must be a number"),
        ("[types.a]\nmax_handler_s = true", "max_handler_s must be a number"),
        ("[types.a]\nmax_attempts = 0", "max_attempts must be a whole number from 1 to 1000"),
        ("[types.a]\nbackoff_ms = -1", "backoff_ms must be a whole number from 0"),
        ("[types.a]\nbackoff_ms = 300001", "backoff_ms must be at most backoff_max_ms, which is 300000"),
        ("[types.a]\nretention_s = 86407", "retention_s must be 0 (for ever) or at least 86408"),
        ("[types.a]\nretention_s = 99999999999999", "retention_s must be a whole number"),
        ("[types.a]\non_conflict = 'drop'", 'on_conflict must be "quarantine" or "ignore"'),
        ("[types.a]\nkey = 'content-hash'\non_conflict = 'ignore'", "on_conflict has no meaning"),
        ("[defaults]\nretention_s = 1", "defaults: retention_s must be 0"),
        ("[defaults]\nlease_ms = 20000\n[types.a]\nlease_ms = 100\n", 'types."a": lease_ms must be at least'),
    ],
)
def test_a_file_that_cannot_hold_is_refused_in_one_sentence(load, tmp_path, text, says):
    with pytest.raises(PolicyError) as caught:
        load(text)
    message = str(caught.value)
    assert says in message
    assert str(tmp_path / "policies.toml") in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "[types.a]\nlease_ms = 9999",
        "[types.a]\nmax_handler_s = 3600",
        "[types.a]\nbackoff_ms = 300000",
        "[types.a]\nretention_s = 86408",
        "[types.a]\nretention_s = 86415\nbackoff_ms = 1000",
        "[types.a]\nkey = ['''not_null(data.a, data.b, `1`)''']",
    ],
)
def test_each_limit_itself_is_allowed(load, text):
    assert load(text).of("a").pattern == "a"


@pytest.mark.parametrize(("timeout_s", "lease_ms", "allowed"), [(300, 299_999, True), (300, 300_000, False), (0, 300_000, True)])
def test_a_lease_ends_before_the_broker_delivers_again_if_it_does(tmp_path, timeout_s, lease_ms, allowed):
    path = tmp_path / "policies.toml"
    path.write_text(f"[types.a]\nlease_ms = {lease_ms}")
    refused = pytest.raises(PolicyError, match="lease_ms must be less than 300000, the visibility timeout")
    with nullcontext() if allowed else refused:
        Policies.load(path, replace(SETTINGS, visibility_timeout_s=timeout_s))


def test_files_that_cannot_be_read(tmp_path):
    not_utf8 = tmp_path / "latin.toml"
    not_utf8.write_bytes(b"# caf\xe9")
    for path, says in ((tmp_path / "none.toml", "cannot be read: No such file"), (tmp_path, "cannot be read"), (not_utf8, "not UTF-8")):
        with pytest.raises(PolicyError, match=says) as caught:
            Policies.load(path, SETTINGS)
        assert str(path) in str(caught.value)


def test_settings_that_cannot_hold_are_named_too():
    with pytest.raises(PolicyError, match="DEDUP_RETENTION_S: retention_s must be 0"):
        Policies.load(None, replace(SETTINGS, retention_s=60))


# ------------------------------------------------------------------------------------------------------------- retries


def policy_with(**fields: Any) -> Policy:
    return replace(Policies.load(None, SETTINGS).default, **fields)


def test_pauses_double_up_to_their_limit():
    policy = policy_with(backoff_ms=500, backoff_max_ms=3000, max_attempts=6)

    assert [policy.longest_pause_ms(attempt) for attempt in range(1, 6)] == [500, 1000, 2000, 3000, 3000]
    assert policy.retry_horizon_s == 9.5


@pytest.mark.parametrize("attempts", [1, 2, 63, 64, 65, 1000])
def test_the_retry_horizon_is_the_sum_of_all_pauses(attempts):
    policy = policy_with(backoff_ms=1, backoff_max_ms=10**9, max_attempts=attempts)

    assert policy.retry_horizon_s == sum(policy.longest_pause_ms(attempt) for attempt in range(1, attempts)) / 1000
