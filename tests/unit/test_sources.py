"""From a foreign payload to an event, and the tables that say how."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidEvent, PolicyError
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.events.policy_file import read_sources
from app.events.source_file import auth_from, name_of, secret, source_from
from app.events.sources import Source, malformed
from app.settings import load_settings
from app.stack import placeholder_urls

SETTINGS = load_settings({}, folder=Path(__file__).parent, **placeholder_urls())


def source(**fields: object) -> Source:
    return source_from("here", "airport", {"url": "https://feed.example", "event": "departure"} | fields)


def event(given_source: Source, payload: object):
    return EventParser(Policies.load(None, SETTINGS), SETTINGS).values([given_source.event_of(payload)])[0]


FLIGHT = {"no": 7, "carrier": "UA", "at": "2013-01-01T10:00:00Z", "kind": "flight.departed", "inner": {"a": 1}}


def test_without_expressions_the_event_s_name_is_the_type_and_the_feed_s_the_source():
    found = event(source(key="no"), FLIGHT)
    assert (found.key, found.type, found.source, found.data) == ("id~airport~7", "departure", "airport", FLIGHT)


def test_expressions_and_quoted_texts_say_what_is_what():
    found = event(source(type="kind", source="'EWR'", key=["carrier", "no"], time="at", data="inner"), FLIGHT)
    assert found.key == 'id~EWR~["UA",7]'
    assert (found.type, found.source, found.time, found.data) == ("flight.departed", "EWR", FLIGHT["at"], {"a": 1})


def test_a_cloudevent_is_read_as_one_and_expressions_win_over_its_attributes():
    cloud = {"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data": {"n": 2}}
    assert event(source(), cloud).key == "id~s~1"
    found = event(source(key="data.n", source="'other'"), cloud)
    assert (found.key, found.type) == ("id~other~2", "t")


@pytest.mark.parametrize(
    "fields, payload, said",
    [
        ({}, FLIGHT, "no id"),
        ({"key": "gone"}, FLIGHT, "gone .*is missing"),
        ({"key": "inner"}, FLIGHT, "is a dict"),
        ({"key": "no", "type": "gone"}, FLIGHT, "no type"),
        ({"key": "no", "type": "no"}, FLIGHT, "type must be a string"),
        ({"key": "no", "time": "carrier"}, FLIGHT, "RFC 3339"),
        ({"key": "no"}, "text", "is missing"),
        ({"key": "no"}, None, "is missing"),
        ({"key": "no"}, [FLIGHT, FLIGHT], "is missing"),
        ({"key": "no"}, FLIGHT | {"x": float("nan")}, "not finite"),
        ({"key": "no"}, FLIGHT | {"x": b"\x00"}, "no JSON value"),
        ({"key": "no"}, FLIGHT | {"x": 2**64}, "64 bits"),
        ({"key": "no"}, FLIGHT | {"x": "y" * 300_000}, "are the most"),
        ({"key": "'same'"}, {"specversion": "0.3"}, "specversion"),
        ({"key": ("carrier", "no")}, FLIGHT | {"carrier": "\ud800"}, "cannot be made of carrier"),
        ({"key": "carrier"}, FLIGHT | {"carrier": "[\ud800"}, "cannot be made of carrier"),
    ],
)
def test_what_is_no_event_is_said_so_and_can_be_kept(fields, payload, said):
    made = source(**fields)
    with pytest.raises(InvalidEvent, match=said):
        event(made, payload)
    kept = malformed(made, payload)
    assert kept.key.startswith("malformed~airport~1")
    assert (kept.key, kept.digest) == (malformed(made, payload).key, malformed(made, payload).digest)


def test_a_payload_that_no_store_holds_is_kept_as_text():
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    for payload in ({"x": float("nan")}, {"x": 2**70}, {"x": b"\xff"}, "\ud800", deep):
        assert isinstance(malformed(source(), payload).data, str)
    assert malformed(source(), {"a": [1]}).data == {"a": [1]}
    assert malformed(source(), b"\xff").data == b"\xff"


_PART = st.one_of(st.text(min_size=1, max_size=4), st.integers(-5, 5), st.booleans())


@given(st.lists(_PART, min_size=2, max_size=2), st.lists(_PART, min_size=2, max_size=2))
def test_different_key_values_give_different_ids(one, other):
    made = source(key=["a", "b"])

    def id_of(parts: list[object]) -> object:
        return made.event_of(dict(zip("ab", parts, strict=True)))["id"]

    same = [(type(v), v) for v in one] == [(type(v), v) for v in other]
    assert (id_of(one) == id_of(other)) == same


@given(st.text(min_size=1, max_size=6), st.lists(_PART, min_size=2, max_size=2))
def test_one_text_alone_is_never_taken_for_several_values(text, parts):
    alone = source(key="a").event_of({"a": text})["id"]
    assert alone != source(key=["a", "b"]).event_of(dict(zip("ab", parts, strict=True)))["id"]


@pytest.mark.parametrize(
    "table, said",
    [
        ("[feeds.x]\nevent='e'", "feeds.x has no url"),
        ("[feeds.x]\nurl='https://h'", "feeds.x has no event"),
        ("[feeds.x]\nurl='h'\nevent='e'", "url must be like"),
        ("[feeds.x]\nurl='https://h:99999'\nevent='e'", "url must be like"),
        ("[feeds.x]\nurl='https://h'\nevent='connect'", "event must be one that the server emits"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\nnamespace='x'", "namespace must begin"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\ntransport='carrier pigeon'", "websocket or polling"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\ntype='a['", "type: 'a\\[' is no JMESPath"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\nkey=[]\nkeys='a'", "keys is no field of a feed"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\nkey=[5]", "key must be"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\nkey='`5`'", "constant"),
        ("[feeds.x]\nurl='https://h'\nevent='e'\nauth=5", "auth must be"),
        ("[feeds.x]\nurl=5\nevent='e'", "url must be text"),
        ("feeds=5", "feeds must be a table"),
        ("[feeds]\nx=5", "must be a table"),
    ],
)
def test_a_table_that_cannot_be_is_refused_by_every_process_that_reads_it(tmp_path, table, said):
    (tmp_path / "policies.toml").write_text(table)
    with pytest.raises(PolicyError, match=said):
        read_sources(tmp_path / "policies.toml")
    with pytest.raises(PolicyError, match=said):
        Policies.load(tmp_path / "policies.toml", SETTINGS)


def test_feeds_of_the_policy_file(tmp_path):
    (tmp_path / "policies.toml").write_text(
        "[feeds.airport]\nurl='wss://feed.example/x'\nevent='d'\nnamespace='/n'\nkey='no'\n[feeds.airport.auth]\ntoken='env:FEED_SECRET'"
    )
    found = read_sources(tmp_path / "policies.toml")["airport"]
    assert (found.name, found.url, found.namespace, found.key) == ("airport", "wss://feed.example/x", "/n", ("no",))
    assert "SECRET" not in repr(found)
    for unset in ({}, {"FEED_SECRET": " "}):
        with pytest.raises(PolicyError, match="the feed airport names the variable FEED_SECRET"):
            secret(found, unset)
    assert secret(found, {"FEED_SECRET": "s\n"}) == {"token": "s"}
    assert read_sources(None) == {}


def test_what_a_command_line_gives():
    assert name_of("https://user:pw@feed.example:8443/x?y") == "feed.example:8443"
    assert name_of("http://feed.example") == "feed.example"
    assert auth_from('{"a": 1}') == {"a": 1}
    assert auth_from("token") == "token"
    assert auth_from(None) is None
    with pytest.raises(PolicyError, match="no JSON object"):
        auth_from("{")
    json.dumps(auth_from('{"a": 1}'))
