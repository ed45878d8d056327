"""The door's reading: what passes is whole and can be stored, what does not is refused with status, index and field."""

import json
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import bson
import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event, to_binary_event, to_structured_event
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidEvent
from app.events import parsing
from app.events.attributes import DEFAULT_SOURCE, MAX_ATTRIBUTE_BYTES
from app.events.event import Event
from app.events.keys import MAX_KEY_BYTES
from app.events.parsing import BATCH, PLAIN, STRUCTURED, EventParser
from app.events.policies import Policies
from app.events.values import MAX_LEVELS
from app.settings import Settings

SETTINGS = Settings(
    redis_url="redis://x", broker_url="redis://x", mongo_url="mongodb://x/d", max_request_bytes=100_000, max_event_bytes=2_001
)
POLICIES = Policies.load(Path(__file__).parents[2] / "policies.toml", SETTINGS)
PARSER = EventParser(POLICIES, SETTINGS)
FLIGHT = {"carrier": "UA", "flight": 1545, "origin": "EWR", "time_hour": "2013-01-01T10:00:00Z", "dep_delay": 2}
CLOUDEVENT = {"specversion": "1.0", "type": "order.paid", "source": "/shop", "id": "42", "data": {"total": 7}}


def post(value: Any, content_type: str | None = PLAIN, **more: Any) -> list[Event]:
    body = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return PARSER.request(body, content_type, **more)


def refusal(value: Any, content_type: str | None = PLAIN, **more: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        post(value, content_type, **more)
    assert "\n" not in str(caught.value)
    json.dumps([str(caught.value), caught.value.field], ensure_ascii=False).encode()  # can be told to the producer
    return caught.value


def said(error: InvalidEvent) -> tuple[int, int | None, str | None]:
    return error.status, error.index, error.field


# ---------------------------------------------------------------------------------------------------------- plain JSON


def test_a_plain_event():
    (event,) = post({"type": "order.paid", "source": "shop", "id": "42", "time": "2024-02-29T23:59:60.5+01:30", "data": {"total": 7}})

    assert event == Event(
        key="id~shop~42",
        digest=event.digest,
        type="order.paid",
        source="shop",
        id="42",
        time="2024-02-29T23:59:60.5+01:30",
        data={"total": 7},
    )


def test_a_plain_event_needs_little():
    (event,) = post({"type": "ping", "id": "1", "source": None, "time": None, "data": None}, None)

    assert (event.source, event.time, event.data, event.extra) == (DEFAULT_SOURCE, None, None, {})
    assert event == post({"type": "ping", "id": "1"}, "Application/JSON; charset=UTF-8")[0]


def test_a_list_of_flights_keeps_its_order():
    flights = [{"type": "flight.departed", "source": "nycflights13", "data": FLIGHT | {"flight": number}} for number in range(250)]

    events = post(flights)

    assert [event.key for event in events] == [f"type~flight.departed~UA~={number}~EWR~2013-01-01T10:00:00Z" for number in range(250)]
    assert [event.data for event in events] == [flight["data"] for flight in flights]


def test_equal_events_of_a_request_are_one():
    first, *others = post(
        [
            {"type": "a", "id": "1", "data": {"x": 1, "y": 2}},
            {"type": "a", "id": "1", "time": "2013-01-01T10:00:00Z", "data": {"y": 2, "x": 1}},
        ]
    )

    assert (others, first.time) == ([], None)


def test_one_key_with_different_content_refuses_the_request():
    error = refusal([{"type": "a", "id": "1", "data": 1}, {"type": "a", "id": "2"}, {"type": "a", "id": "1", "data": 1.0}])

    assert said(error) == (409, 2, None)
    assert "id~default~1" in str(error)


@pytest.mark.parametrize(
    "value, field",
    [
        ({}, "type"),
        ({"type": None, "id": "1"}, "type"),
        ({"type": "", "id": "1"}, "type"),
        ({"type": 5, "id": "1"}, "type"),
        ({"type": ["a"], "id": "1"}, "type"),
        ({"type": "a\nb", "id": "1"}, "type"),
        ({"type": "a\u0085b", "id": "1"}, "type"),
        ({"type": "a", "id": ""}, "id"),
        ({"type": "a", "id": 1}, "id"),
        ({"type": "a", "id": True}, "id"),
        ({"type": "a", "id": "\0"}, "id"),
        ({"type": "a", "id": "1", "source": ""}, "source"),
        ({"type": "a", "id": "1", "source": {}}, "source"),
        ({"type": "a"}, "id"),
        ({"type": "a", "id": None}, "id"),
        ({"type": "a", "id": "1", "daat": 1}, "daat"),
        ({"type": "a", "id": "1", "subject": "s"}, "subject"),
        ({"type": "flight.departed", "data": {k: v for k, v in FLIGHT.items() if k != "origin"}}, "data.origin"),
        ({"type": "flight.departed", "data": FLIGHT | {"origin": None}}, "data.origin"),
        ({"type": "flight.departed", "data": FLIGHT | {"flight": 15.45}}, "data.flight"),
        ({"type": "flight.departed", "id": "1", "data": "text"}, "data.carrier"),
        ({"type": "flight.departed", "id": "1"}, "data.carrier"),
    ],
)
def test_events_that_miss_something_or_have_it_wrong(value, field):
    assert said(refusal(value)) == (422, 0, field)
    assert said(refusal([{"type": "a", "id": "fine"}, value])) == (422, 1, field)


@pytest.mark.parametrize(
    "time",
    [
        *("", "yesterday", "2013-01-01", "2013-01-01T10:00:00", "2013-01-01 10:00:00Z", "2013-02-29T10:00:00Z", "2013-01-01T24:00:00Z"),
        *("2013-01-01T10:60:00Z", "2013-01-01T10:00:61Z", "2013-01-01T10:00:00+24:00", "2013-01-01T10:00:00+01:60"),
        *("2013-01-01T10:00:00.Z", "2013-01-01T10:00:00Z\n", "٢٠١٣-01-01T10:00:00Z", "0000-01-01T10:00:00Z"),
        *(1357034400, 1.5, {}),
    ],
)
def test_time_must_be_rfc_3339(time):
    assert said(refusal({"type": "a", "id": "1", "time": time})) == (422, 0, "time")


@pytest.mark.parametrize(
    "time", ["2013-01-01T10:00:00Z", "2013-01-01t10:00:00.123456789z", "2016-12-31T23:59:60Z", "0001-01-01T00:00:00-23:59"]
)
def test_time_is_kept_as_given(time):
    assert post({"type": "a", "id": "1", "time": time})[0].time == time


def test_a_cloudevent_sent_as_plain_json_is_told_so():
    assert "application/cloudevents+json" in str(refusal(CLOUDEVENT))


# --------------------------------------------------------------------------------------------------- JSON and its limits


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b'{"type": "a",}', b"{'type': 'a'}", b"nul", b'{"type": "a"} x', b'{"a": "\x01"}', b"01", b"[1,]", b"\0"),
        *(b"--boundary", b'{"a":1, "b":1e}', b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", "{}".encode("utf-16")),
        *(b'{"type": "caf\xe9"}', b'{"type": "\xed\xa0\x80"}'),
    ],
)
def test_what_is_not_json_in_utf8_is_400(body):
    assert said(refusal(body)) == (400, None, None)


def with_data(data: str) -> bytes:
    return f'[{{"type": "a", "id": "0"}}, {{"type": "a", "id": "1", "data": {{"x": [0, {data}]}}}}]'.encode()


@pytest.mark.parametrize(
    "data, field, reason",
    [
        ("9223372036854775808", "data.x[1]", "64 bits"),
        ("-9223372036854775809", "data.x[1]", "64 bits"),
        ("18446744073709551616", "data.x[1]", "64 bits"),
        ("9" * 400, "data.x[1]", "64 bits"),
        ("NaN", "data.x[1]", "not finite"),
        ("Infinity", "data.x[1]", "not finite"),
        ("-Infinity", "data.x[1]", "not finite"),
        ("1e400", "data.x[1]", "not finite"),
        ("-1e400", "data.x[1]", "not finite"),
        ("9" * 400 + ".0", "data.x[1]", "not finite"),
        (r'"\ud800"', "data.x[1]", "surrogate"),
        (r'"\ud800A"', "data.x[1]", "surrogate"),
        (r'"\udc00"', "data.x[1]", "surrogate"),
        (r'"\ud800\ud800"', "data.x[1]", "surrogate"),
        (r'{"\ud800": 1}', "data.x[1]", "surrogate"),
        (r'{"a\u0000b": 1}', "data.x[1]", "NUL"),
        (r'{"a": 1, "b": 2, "a": 1}', "data.x[1].a", "twice"),
        (r'{"a": 1, "\u0061": 2}', "data.x[1].a", "twice"),
        (r'{"a": {"b": [{"c": 1, "c": {}}]}}', "data.x[1].a.b[0].c", "twice"),
        (r'{"a\u003a": 1, "b": 1, "b": ""}', "data.x[1].b", "twice"),
    ],
)
def test_values_that_the_stores_could_not_hold(data, field, reason):
    error = refusal(with_data(data))

    assert said(error) == (422, 1, field)
    assert reason in str(error)


def test_an_integer_of_very_many_digits():
    assert refusal(with_data("9" * 5000)).status == 422


@pytest.mark.parametrize("data", ["9223372036854775807", "-9223372036854775808", "1e308", "5e-324", "-0", r'"\ud83d\ude00"', r'"\u0000"'])
@pytest.mark.parametrize("also", ["1", r'"\u003a:"', r'{":": "::", "\u003a\u003a": 1}', r'"\\u0000"'])
def test_values_at_the_limits(data, also):
    events = post(with_data(f"{data}, {also}"))

    assert events[1].data == {"x": [0, json.loads(data), json.loads(also)]}


def test_a_double_name_at_the_top():
    assert said(refusal(b'{"type": "a", "id": "1", "id": "2"}')) == (422, 0, "id")


MANY = ",".join(f'{{"type":"a","id":"{number}","data":"{"x" * 1_000}"}}' for number in range(2, 90))
"""So long that it is read event by event."""


@pytest.mark.parametrize("twice", ['{"a":1,"a":1}', '{"a":1e0,"a":1}', '[{"b":{"a":1,"a":"::"}}]', r'{"a":1,"\u0061":1}'])
@pytest.mark.parametrize("around", ["%s", "[%s]", f"[{MANY},%s]"], ids=["one", "array", "long"])
def test_a_double_name_in_a_text_without_spaces(twice, around):
    """Such a text is mostly its value written anew, and then nobody counts."""
    error = refusal((around % f'{{"type":"a","id":"1","data":{twice}}}').encode())

    assert error.status == 422
    assert "twice" in str(error)


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.text(':\\"\0a', max_size=3),
        lambda v: st.dictionaries(st.text(":a\\", max_size=2), v),
        max_leaves=6,
    )
)
def test_what_is_written_without_spaces_is_taken_as_it_is(data):
    [event] = post(msgspec.json.encode({"type": "a", "id": "1", "data": data}))

    assert event.data == data


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_nesting(opening, closing):
    def nested(levels: int) -> bytes:
        return f'{{"type": "a", "id": "1", "data": {opening * levels}1{closing * levels}}}'.encode()

    assert post(nested(MAX_LEVELS))
    error = refusal(nested(MAX_LEVELS + 1))
    assert (error.status, error.index) == (422, 0)
    assert "nested" in str(error)
    assert refusal(nested(5_000)).status == 422
    assert refusal((opening * 20_000).encode()).status in (400, 413, 422)


@pytest.mark.parametrize("media", [PLAIN, BATCH])
@given(
    items=st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["a", "b"]), "source": st.just("s"), "id": st.sampled_from("123")},
            optional={
                "data": st.recursive(
                    st.none() | st.integers(-(2**64), 2**64) | st.text(max_size=5) | st.floats(), lambda inner: st.lists(inner, max_size=3)
                ),
                "time": st.sampled_from(["2020-01-01T00:00:00Z", "no time"]),
                "specversion": st.just("1.0"),
            },
        )
        | st.integers()
        | st.just({}),
        max_size=4,
    ),
    noise=st.sampled_from(["", " ", ",", "]", '"']),
)
def test_a_long_request_is_read_as_a_short_one(media, items, noise):
    """Long ones are read event by event; which of several errors is told first may differ."""

    def read(limit: int) -> list[Event] | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parsing, "LONG_BYTES", limit)
            try:
                return PARSER.request((json.dumps(items) + noise).encode(), media)
            except InvalidEvent:
                return None

    assert read(0) == read(10**9)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "data", "specversion"]), inner, max_size=4),
    max_leaves=8,
)


@given(arguments=st.lists(ANY_JSON | st.just({"type": "a", "id": "1"}), max_size=2), noise=st.sampled_from(["", "", "", ",", "]"]))
def test_the_text_of_a_message_is_read_as_its_value(arguments, noise):
    def read(parse, given) -> list[Event] | None:
        try:
            return parse(given)
        except InvalidEvent:
            return None

    text = json.dumps(arguments)[:-1] + noise + "]"
    (only, *more) = arguments or [None]
    expected = (
        None if more or noise or not isinstance(only, dict | list) else read(PARSER.values, only if isinstance(only, list) else [only])
    )
    assert read(PARSER.argument, text.encode()) == expected


def test_where_a_long_request_is_wrong():
    good = [{"type": "a", "source": "s", "id": str(n), "data": "x" * 1_000} for n in range(80)]
    assert len(post(good)) == 80
    for wrong, status, field in (
        ({"type": "a", "id": "1", "data": 2**63}, 422, "data"),
        ({"type": "a", "id": "1", "data": "x" * 2_000}, 413, None),
        ({"type": "a", "id": "1", "data": [[]] * 2_000}, 413, None),
        ({"type": "a"}, 422, "id"),
        (5, 422, None),
    ):
        assert said(refusal(json.dumps([*good, wrong]).encode())) == (status, 80, field)
    twice = json.dumps(good).encode()[:-1] + b', {"type": "a", "id": "1", "id": "2"}]'
    assert said(refusal(twice)) == (422, 80, "id")
    assert refusal(json.dumps(good).encode()[:-1]).status == 400
    assert refusal(b'{"type": "a", "data": [' + b"[]," * 25_000 + b"1]}").status == 413


def test_sizes():
    fitting = {"type": "a", "id": "1", "data": "é" * 985}
    assert len(json.dumps(fitting, ensure_ascii=False, separators=(",", ":")).encode()) == SETTINGS.max_event_bytes
    assert post(fitting)
    assert said(refusal(fitting | {"id": "12"})) == (413, 0, None)
    assert said(refusal([{"type": "a", "id": "2"}, fitting | {"id": "12"}])) == (413, 1, None)
    assert post([fitting | {"id": str(number)} for number in range(9)])
    spaces = json.dumps({"type": "a", "id": "1"}).encode()
    assert post(spaces + b" " * (100_000 - len(spaces)))
    assert said(refusal(spaces + b" " * (100_001 - len(spaces)))) == (413, None, None)


def test_how_many_events():
    events = [{"type": "a", "id": str(number)} for number in range(501)]

    assert len(post(events[:500])) == 500
    assert said(refusal(events)) == (413, None, None)
    assert said(refusal([])) == (422, None, None)


def test_long_attributes():
    for name, limit in (
        ("type", MAX_ATTRIBUTE_BYTES),
        ("source", MAX_KEY_BYTES - len("id~~1")),
        ("id", MAX_KEY_BYTES - len("id~default~")),
    ):
        event = {"type": "a", "id": "1", name: "x" * limit}
        assert post(event)
        assert refusal(event | {name: "x" * (limit + 1)}).status == 422
        assert said(refusal(event | {name: "é" * (MAX_ATTRIBUTE_BYTES // 2) + "x"})) == (422, 0, name)


@pytest.mark.parametrize("value", [1, "a", None, True, [[]], [1], ["a"], [None], [{"type": "a", "id": "1"}, 5]])
def test_what_is_no_event(value):
    error = refusal(value)
    assert (error.status, error.index) == (
        422,
        1 if isinstance(value, list) and len(value) == 2 else 0 if isinstance(value, list) else None,
    )


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/cloudevents", "json", ";", "\ud800"]
)
def test_other_content_types(content_type):
    assert said(refusal({"type": "a", "id": "1"}, content_type)) == (422, None, "Content-Type")


def test_another_charset_is_400():
    assert said(refusal({"type": "a", "id": "1"}, 'application/json; charset="latin-1"')) == (400, None, "Content-Type")


# ------------------------------------------------------------------------------------------------------ Idempotency-Key


def test_the_idempotency_key_becomes_the_id():
    for value in ({"type": "a", "data": 1}, [{"type": "a", "data": 1}]):
        (event,) = post(value, idempotency_key="k/1")
        assert (event.id, event.key) == ("k/1", "id~default~k%2F1")


def test_an_id_of_its_own_wins_over_the_idempotency_key():
    assert post({"type": "a", "id": "own"}, idempotency_key="k")[0].id == "own"


def test_a_type_s_rule_makes_the_key_all_the_same():
    (event,) = post({"type": "flight.departed", "data": FLIGHT}, idempotency_key="k")

    assert (event.id, event.key) == ("k", "type~flight.departed~UA~=1545~EWR~2013-01-01T10:00:00Z")


@pytest.mark.parametrize("key", ["", "a\nb", "x" * (MAX_ATTRIBUTE_BYTES + 1), "\ud800"])
def test_a_malformed_idempotency_key(key):
    assert said(refusal({"type": "flight.departed", "data": FLIGHT}, idempotency_key=key)) == (422, None, "Idempotency-Key")


def test_one_idempotency_key_for_two_events():
    assert said(refusal([{"type": "a"}, {"type": "a"}], idempotency_key="k")) == (422, None, "Idempotency-Key")


# ---------------------------------------------------------------------------------------------------------- CloudEvents


def test_a_structured_cloudevent():
    extra = {
        "subject": "s",
        "datacontenttype": "application/json",
        "dataschema": "http://x/y",
        "traceparent": "00-ab",
        "shard": 3,
        "test": True,
    }

    (event,) = post(CLOUDEVENT | extra | {"time": "2013-01-01T10:00:00Z", "nothing": None}, STRUCTURED)

    assert event == Event(
        key="id~%2Fshop~42",
        digest=event.digest,
        type="order.paid",
        source="/shop",
        id="42",
        time="2013-01-01T10:00:00Z",
        data={"total": 7},
        extra=extra,
    )


def test_a_batch_of_cloudevents():
    assert [event.id for event in post([CLOUDEVENT, CLOUDEVENT | {"id": "43"}], BATCH + "; charset=utf-8")] == ["42", "43"]


def test_one_shape_per_media_type():
    assert said(refusal([CLOUDEVENT], STRUCTURED)) == (422, None, None)
    assert said(refusal(CLOUDEVENT, BATCH)) == (422, None, None)


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"text"])
def test_binary_data(data):
    (event,) = post(
        {name: CLOUDEVENT[name] for name in CLOUDEVENT if name != "data"} | {"data_base64": b64encode(data).decode()}, STRUCTURED
    )

    assert event.data == data
    assert type(event.data) is bytes


@pytest.mark.parametrize(
    "change, field",
    [
        ({"specversion": None}, "specversion"),
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": 1.0}, "specversion"),
        ({"source": None}, "source"),
        ({"type": None}, "type"),
        ({"id": None}, "id"),
        ({"subject": ""}, "subject"),
        ({"subject": 5}, "subject"),
        ({"dataschema": {}}, "dataschema"),
        ({"datacontenttype": True}, "datacontenttype"),
        ({"TraceParent": "x"}, "TraceParent"),
        ({"trace-parent": "x"}, "trace-parent"),
        ({"": "x"}, ""),
        ({"ext": 1.5}, "ext"),
        ({"ext": []}, "ext"),
        ({"ext": ""}, "ext"),
        ({"ext": "a\0"}, "ext"),
        ({"ext": 2**63}, "ext"),
        ({"data_base64": "eA=="}, "data_base64"),
        ({"data": None, "data_base64": "!"}, "data_base64"),
        ({"data": None, "data_base64": "é"}, "data_base64"),
        ({"data": None, "data_base64": 5}, "data_base64"),
    ],
)
def test_cloudevents_that_break_the_specification(change, field):
    assert said(refusal([CLOUDEVENT, CLOUDEVENT | change], BATCH)) == (422, 1, field)


def test_a_cloudevent_without_id_where_something_else_says_the_key():
    without = {name: CLOUDEVENT[name] for name in CLOUDEVENT if name != "id"}

    assert post(without, STRUCTURED, idempotency_key="k")[0].key == "id~%2Fshop~k"
    assert post(without | {"type": "flight.departed", "data": FLIGHT}, STRUCTURED)[0].id is None


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


ATTRIBUTES = TEXTS.filter(bool) | TEXTS | st.none() | st.integers(0, 9)


@given(
    st.fixed_dictionaries(
        dict.fromkeys(["type", "source", "id"], ATTRIBUTES), optional=dict.fromkeys(["subject", "dataschema", "ext"], ATTRIBUTES)
    ),
    st.sampled_from(["1.0", "1.0", "0.3", 1]),
)
def test_what_we_accept_the_cloudevents_library_accepts_too(attributes, version):
    """Ours refuses more (control characters), and takes null as absent; the library never refuses what ours accepts."""
    item = {"specversion": version, "data": {"a": 1}} | attributes
    try:
        (event,) = post(item, STRUCTURED)
    except InvalidEvent:
        return
    given = {name: value for name, value in item.items() if value is not None}
    theirs = from_structured_event(HTTPMessage(headers={"content-type": STRUCTURED}, body=json.dumps(given).encode()))
    assert (theirs.get_type(), theirs.get_source(), theirs.get_id(), theirs.get_data()) == (event.type, event.source, event.id, event.data)
    assert theirs.get_subject() == event.extra.get("subject")


@pytest.mark.parametrize(
    "type_, data",
    [
        (None, None),
        (None, {"total": 7, "é": [1.5, {"a": None}]}),
        ("application/json", {"total": 7}),
        ("application/vnd.x+json; charset=utf-8", {"total": 7}),
        ("application/json", None),
        ("text/plain", "plain text: é"),
        ("application/octet-stream", b"\x00\xff"),
    ],
)
def test_both_modes_of_the_cloudevents_library_give_the_same_event(type_, data):
    attributes = {"type": "order.paid", "source": "/shop?x=1 2", "id": "a b/ü%", "subject": 'q"uoted"', "traceparent": "00-ab"}
    attributes |= {"datacontenttype": type_} if type_ else {}
    theirs = CloudEvent(dict(attributes), data)

    structured = to_structured_event(theirs)
    binary = to_binary_event(theirs)

    (event,) = PARSER.binary(binary.headers, binary.body)
    assert [event] == post(structured.body, structured.headers["content-type"])
    assert {"type": event.type, "source": event.source, "id": event.id, **event.extra} == attributes
    assert event.data == data


def test_the_library_refuses_what_we_refuse():
    for change in ({"subject": ""}, {"type": ""}, {"Ext": "x"}, {"ext-x": "y"}):
        attributes = {name: value for name, value in (CLOUDEVENT | change).items() if name != "data"}
        with pytest.raises(CloudEventValidationError):
            CloudEvent(attributes, None)
        assert refusal(CLOUDEVENT | change, STRUCTURED).status == 422


# ---------------------------------------------------------------------------------------------------------- binary mode

HEADERS = {"Ce-Specversion": "1.0", "ce-type": "order.paid", "CE-Source": "/shop", "ce-id": "42"}


def refused_binary(headers: dict[str, str], body: bytes = b"") -> tuple[int, int | None, str | None]:
    with pytest.raises(InvalidEvent) as caught:
        PARSER.binary(headers, body)
    return said(caught.value)


@pytest.mark.parametrize(
    "content_type, body, data",
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/vnd.github+json;charset=utf-8", b"[1]", [1]),
        ("text/plain", "é".encode(), "é"),
        ("text/plain; charset=latin-1", b"\xe9", b"\xe9"),
        ("image/svg+xml", b"<svg/>", b"<svg/>"),
        ("application/xml", b"<a/>", "<a/>"),
        ("application/octet-stream", b"{}", b"{}"),
        ("application/json", b"", None),
        ("", b'{"a": 1}', {"a": 1}),
    ],
)
def test_binary_mode(content_type, body, data):
    headers = HEADERS | ({"Content-Type": content_type} if content_type else {})

    (event,) = PARSER.binary(headers, body)

    assert (event.data, type(event.data)) == (data, type(data))
    assert event.key == "id~%2Fshop~42"
    assert event.extra == ({"datacontenttype": content_type} if content_type else {})


def test_headers_are_percent_decoded():
    (event,) = PARSER.binary(HEADERS | {"ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80", "ce-ext": '"a \\"b\\""'}, b"")

    assert event.extra == {"subject": "Euro € 😀", "ext": 'a "b"'}


@pytest.mark.parametrize(
    "change, field",
    [
        ({"ce-specversion": "2.0"}, "specversion"),
        ({"ce-subject": "%ff"}, "ce-subject"),
        ({"ce-subject": "\ud800"}, "ce-subject"),
        ({"ce-subject": "%00"}, "subject"),
        ({"ce-id": ""}, "id"),
        ({"ce-data": "x"}, "ce-data"),
        ({"ce-data_base64": "eA=="}, "ce-data_base64"),
        ({"ce-datacontenttype": "x"}, "ce-datacontenttype"),
        ({"ce-": "x"}, ""),
        ({"ce-x-y": "x"}, "x-y"),
        ({"ce-time": "now"}, "time"),
    ],
)
def test_malformed_headers(change, field):
    lower = {name.lower(): value for name, value in HEADERS.items()}
    assert refused_binary(lower | change) == (422, 0, field)


def test_malformed_bodies():
    json_headers = HEADERS | {"content-type": "application/json"}
    assert refused_binary(json_headers, b"{")[0] == 400
    assert refused_binary(json_headers, b'{"a": 1e400}') == (422, 0, "data.a")
    assert refused_binary(json_headers, b'[0, {"a": 1, "a": 2}]') == (422, 0, "data[1].a")
    assert refused_binary(HEADERS, b"x" * 100_001)[0] == 413
    assert refused_binary(HEADERS | {"content-type": "image/png"}, b"x" * 2_000) == (413, 0, None)


# --------------------------------------------------------------------------------------------------------- Python dicts


def test_dicts_of_both_shapes():
    plain, cloudevent = PARSER.values([{"type": "flight.departed", "data": FLIGHT}, CLOUDEVENT])

    assert [plain] == post({"type": "flight.departed", "data": FLIGHT})
    assert [cloudevent] == post(CLOUDEVENT, STRUCTURED)


@pytest.mark.parametrize(
    "item, field",
    [
        ("text", None),
        (None, None),
        ([("type", "a")], None),
        ({"type": "a", "id": "1", "data": {1: 2}}, "data"),
        ({"type": "a", "id": "1", 5: 2}, None),
        ({"type": "a", "id": "1", "data": (1, 2)}, "data"),
        ({"type": "a", "id": "1", "data": b"x"}, "data"),
        ({"type": "a", "id": "1", "data": [{1, 2}]}, "data[0]"),
        ({"type": "a", "id": "1", "data": "\ud800"}, "data"),
        ({"type": "\ud800", "id": "1"}, "type"),
        ({"type": "a", "id": "1", "data": float("nan")}, "data"),
        ({"type": "a", "id": "1", "data": 2**63}, "data"),
        ({"type": "a", "id": "1", "data": bson.Int64(5)}, "data"),
        ({"type": bytearray(b"a"), "id": "1"}, "type"),
        ({"type": "a", "id": "1", "data": {"\0": 1}}, "data"),
    ],
)
def test_dicts_that_are_no_json(item, field):
    with pytest.raises(InvalidEvent) as caught:
        PARSER.values([CLOUDEVENT, item])
    assert said(caught.value) == (422, 1, field)


def test_dicts_are_not_changed():
    item = {"type": "flight.departed", "data": dict(FLIGHT)}
    PARSER.values([item], "k")
    assert item == {"type": "flight.departed", "data": FLIGHT}


# ------------------------------------------------------------------------------------------------------ arbitrary input

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.text(st.characters(codec=None), max_size=3)
JSONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None), max_size=4), inner, max_size=3),
    max_leaves=8,
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["a", "flight.departed", ""]) | JSONS,
        "id": TEXTS | JSONS,
        "source": TEXTS | JSONS,
        "time": st.just("2013-01-01T10:00:00Z") | JSONS,
        "data": JSONS | st.fixed_dictionaries(dict.fromkeys(("carrier", "flight", "origin", "time_hour"), JSONS)),
        "specversion": st.just("1.0") | JSONS,
        "data_base64": st.just("AA==") | JSONS,
        "subject": TEXTS | JSONS,
    },
)
WHATEVER = EVENTS | st.lists(EVENTS, max_size=4) | JSONS
GOOD = st.fixed_dictionaries({"type": st.sampled_from("ab"), "id": st.sampled_from("123"), "data": JSONS})
TYPES = st.sampled_from([PLAIN, STRUCTURED, BATCH, None])


def outcome(read: Any) -> list[Event]:
    """What passes can be stored; what does not was refused with a status, in text that can be sent."""
    try:
        events: list[Event] = read()
    except InvalidEvent as error:
        assert error.status in (400, 409, 413, 422)  # noqa: PT017 - only one of two good outcomes
        json.dumps([str(error), error.field], ensure_ascii=False).encode()
        return []
    assert 1 <= len(events) <= SETTINGS.max_batch_events
    assert len({event.key for event in events}) == len(events)
    for event in events:
        assert len(event.key.encode()) <= MAX_KEY_BYTES
        body = {"source": event.source, "id": event.id, "time": event.time, "data": event.data, "extra": event.extra}
        bson.encode({"_id": event.key, "digest": event.digest, "type": event.type, "body": body})
    return events


@given(st.binary(max_size=60), TYPES)
def test_arbitrary_bytes(body, content_type):
    outcome(lambda: PARSER.request(body, content_type))


@given(WHATEVER, TYPES, st.none() | st.text(max_size=3), st.booleans())
def test_arbitrary_json(value, content_type, idempotency_key, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    outcome(lambda: PARSER.request(body, content_type, idempotency_key))


@given(st.lists(EVENTS | GOOD | SCALARS, max_size=4))
def test_arbitrary_dicts(items):
    outcome(lambda: PARSER.values(items))


@given(st.lists(GOOD, min_size=1, max_size=4))
def test_both_ways_in_agree(items):
    """The same events as JSON text and as dicts: the same events come out, or the same refusal."""
    body = json.dumps(items).encode()
    answers = []
    for read in (lambda: PARSER.request(body), lambda: PARSER.values(items)):
        try:
            answers.append(read())
        except InvalidEvent as error:
            answers.append([said(error), str(error)])
    assert answers[0] == answers[1]


@given(
    st.dictionaries(
        st.sampled_from(["ce-type", "ce-id", "ce-source", "ce-x", "content-type"]), st.text(st.characters(codec=None), max_size=8)
    ),
    st.binary(),
)
def test_arbitrary_binary_mode(headers, body):
    outcome(lambda: PARSER.binary({"ce-specversion": "1.0"} | headers, body))


MUTATED = json.dumps([CLOUDEVENT, {"type": "flight.departed", "data": FLIGHT}]).encode()


@given(
    st.integers(0, len(MUTATED)),
    st.integers(0, 6),
    st.binary(max_size=6) | st.sampled_from([b'"', b"\\ud800", b"\\u0000", b"1e999", b"NaN", b":", b"[[", b"}"]),
)
def test_a_request_damaged_at_any_place(position, cut, put):
    body = MUTATED[:position] + put + MUTATED[position + cut :]
    outcome(lambda: PARSER.request(body))
    outcome(lambda: PARSER.request(body, BATCH))


def test_limits_follow_the_settings():
    small = EventParser(POLICIES, replace(SETTINGS, max_batch_events=1))
    with pytest.raises(InvalidEvent, match="2 events, and 1 are the most"):
        small.values([CLOUDEVENT, CLOUDEVENT])
