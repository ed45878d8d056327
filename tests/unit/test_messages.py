"""The task message: what one process writes, another one reads; what it does not know, it refuses."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messages import UnreadableMessage, announcement, delivery, read_announcements, read_delivery

AT = datetime(2026, 5, 4, 3, 2, 1, 987_000, tzinfo=UTC)
EVENTS = st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=20)


def message(events=(("k1", "d1", "a"), ("k2", "d2", "b"), ("k3", "d3", "a")), batch="b" * 26, **changes):
    return delivery([announcement(batch, list(events), AT)], deployment="dep", seq=7, forwards=2) | changes


@given(EVENTS)
def test_events_come_out_as_they_went_in(events):
    sent = json.loads(json.dumps(message(events)))
    assert read_delivery(sent).events == events


def test_the_rest_comes_out_too():
    read = read_delivery(message())
    assert (read.batch, read.deployment, read.seq, read.forwards) == ("b" * 26, "dep", 7, 2)
    assert [(part.batch, part.events, part.accepted_at) for part in read.batches] == [("b" * 26, 3, AT)]


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


# ------------------------------------------------------------------------------------------------------- several batches


@given(st.lists(EVENTS, min_size=2, max_size=5))
def test_several_batches_come_out_in_order_each_with_its_own(batches):
    numbered = [
        [(f"{number}-{at}-{key}", digest, kind) for at, (key, digest, kind) in enumerate(events)] for number, events in enumerate(batches)
    ]
    announced = [announcement(f"b{number}", events, AT + timedelta(seconds=number), size=9) for number, events in enumerate(numbered)]

    read = read_delivery(json.loads(json.dumps(delivery(announced, deployment="dep", seq=7, forwards=2))))

    assert read.events == [event for events in numbered for event in events]
    assert read.batch == "b0"
    for number, events in enumerate(numbered):
        for key, _, _ in events:
            part = read.part_of(key)
            assert (part.batch, part.events, part.accepted_at) == (f"b{number}", len(events), AT + timedelta(seconds=number))


def several(**changes):
    announced = [announcement(name, [(key, "d", "t")], AT) for name, key in (("b1", "k1"), ("b2", "k2"))]
    return delivery(announced, deployment="dep", seq=7, forwards=1) | changes


def test_what_was_accepted_together_is_one_part():
    announced = [announcement(None, [(key, "d", "t")], AT) for key in ("k1", "k2")]
    [part] = read_delivery(delivery(announced, deployment="dep", seq=0, forwards=1)).batches
    assert (part.batch, part.events) == (None, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": []},
        {"parts": [["b1", 1, 0]]},
        {"parts": [["b1", 1, 0], ["b2", 2, 0]]},
        {"parts": [["b1", 3, 0], ["b2", -1, 0]]},
        {"parts": [["b1", 1], ["b2", 1]]},
        {"parts": "text"},
        {"keys": ["k1", "k1"]},
    ],
    ids=str,
)
def test_batches_that_do_not_fit_the_keys_are_refused(changes):
    with pytest.raises(UnreadableMessage, match="malformed"):
        read_delivery(several(**changes))


# --------------------------------------------------------------------------------------------------------- announcements


def announced(**changes):
    return announcement("b", [("k1", "d1", "a"), ("k2", "d2", "b")], AT, size=10) | changes


@pytest.mark.parametrize(
    "odd",
    [
        "text",
        None,
        {},
        announced(v=2),
        announced(batch=None),
        announced(keys="ab"),
        announced(keys=[["k"], "k2"]),
        announced(keys=[], digests=[], type_of=[]),
        announced(digests=["d1"]),
        announced(type_of=[0, 7]),
        announced(type_of=None, types=[]),
        announced(bytes="many"),
        announced(bytes=-1),
        announced(keys=["k", "k"]),
        announced(accepted_ms=2**63),
        announced(keys=["k1", "\ud800"]),
        announced(batch="\ud800"),
        announced(v="x" * 1_000_000),
    ],
    ids=lambda odd: str(odd)[:60],
)
def test_an_announcement_that_cannot_be_read_is_refused_and_the_others_are_not(odd):
    read, refused = read_announcements([announced(), odd, announced(batch="c")])
    assert [one["batch"] for one in read] == ["b", "c"]
    [fault] = refused
    assert fault.startswith("an announcement")
    assert len(fault) <= 200


def test_an_announcement_alone_is_as_good_as_a_list_of_one():
    assert read_announcements(announced()) == ([announced()], [])


def test_an_announcement_that_says_no_size_is_read():
    known = announced()
    del known["bytes"]
    assert read_announcements([known])[0] == [known]


def test_what_is_not_known_of_an_announcement_goes_no_further():
    odd = announced(parts=None, deployment="other", hint="new")
    read, _ = read_announcements([odd, odd | {"keys": ["k3", "k4"], "batch": "c"}])
    assert read[0] == announced()
    sent = read_delivery(delivery(read, deployment="dep", seq=1, forwards=1))
    assert [(part.batch, part.events) for part in sent.batches] == [("b", 2), ("c", 2)]


@pytest.mark.parametrize("others", [1, 2])
def test_type_lists_that_say_more_than_needed_are_read(others):
    odd = announcement("b", [("k", "d", "t")], AT) | {"types": ["t", "unused"], "type_of": [0]}
    more = [announcement(f"c{number}", [(f"k{number}", "d", "t")], AT) for number in range(others)]
    [known] = read_announcements(odd)[0]
    assert len(read_delivery(delivery([known, *more], deployment="dep", seq=1, forwards=1)).events) == 1 + others


def test_a_message_of_very_many_unreadable_announcements_costs_little():
    read, faults = read_announcements([None] * 1_000_000 + [{"v": number} for number in range(5)])
    assert read == []
    assert len(faults) <= 11
    assert max(map(len, faults)) <= 200
