"""The task message: what one process writes, another one reads; what it does not know, it refuses."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messages import UnreadableMessage, announcement, delivery, read_delivery

AT = datetime(2026, 5, 4, 3, 2, 1, 987_000, tzinfo=UTC)
EVENTS = st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=20)


def message(events=(("k1", "d1", "a"), ("k2", "d2", "b"), ("k3", "d3", "a")), batch="b" * 26, **changes):
    return delivery(announcement(batch, list(events), AT), deployment="dep", seq=7, forwards=2) | changes


@given(EVENTS)
def test_events_come_out_as_they_went_in(events):
    sent = json.loads(json.dumps(message(events)))
    assert read_delivery(sent).events == events


def test_the_rest_comes_out_too():
    read = read_delivery(message())
    assert (read.batch, read.deployment, read.seq, read.forwards, read.accepted_at) == ("b" * 26, "dep", 7, 2, AT)


def test_one_type_is_written_once():
    sent = message([("k1", "d1", "a"), ("k2", "d2", "a")])
    assert sent["types"] == ["a"]
    assert "type_of" not in sent


def test_bodies_are_never_in_it():
    assert set(message()) == {"v", "batch", "keys", "digests", "types", "type_of", "accepted_ms", "deployment", "seq", "forwards"}


def test_a_delivery_of_failures_has_no_batch():
    assert read_delivery(message(batch=None)).batch is None


@pytest.mark.parametrize("odd", [None, [], "text", {}, {"v": 2}, {"v": "1"}, message(v=99)])
def test_another_version_is_refused_and_named(odd):
    with pytest.raises(UnreadableMessage, match="version"):
        read_delivery(odd)


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": ["k1"]},
        {"digests": []},
        {"keys": [], "digests": [], "type_of": []},
        {"types": []},
        {"type_of": [0, 1]},
        {"type_of": [0, 1, 2]},
        {"type_of": [0, -1, 0]},
        {"seq": "7"},
        {"batch": 5},
        {"keys": "abc"},
    ],
    ids=str,
)
def test_lists_that_do_not_fit_and_wrong_types_are_refused(changes):
    with pytest.raises(UnreadableMessage, match="malformed"):
        read_delivery(message(**changes))


def test_a_field_that_is_missing_is_refused():
    for name in ("keys", "digests", "types", "accepted_ms", "deployment", "seq", "forwards"):
        cut = message()
        del cut[name]
        with pytest.raises(UnreadableMessage):
            read_delivery(cut)


def test_a_field_of_a_later_version_is_passed_over():
    assert read_delivery(message(hint="new")).seq == 7
