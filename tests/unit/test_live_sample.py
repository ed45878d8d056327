"""Which events the live page shows, and what of it is said."""

from collections.abc import Sequence

import pytest

from app.events.event import Event
from app.outcomes import SAMPLE_EVENTS, Told
from app.stores.records import utc_now
from broadcaster.ingress import Stored
from broadcaster.live import sample as module
from broadcaster.live.sample import SHOWN_AT_ONCE, SHOWN_PER_S, Sample
from broadcaster.live.watchers import state_view
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def sample(clock: Clock) -> Sample:
    return Sample(clock)


def stored(*keys: str) -> Stored:
    events = [Event(key=key, digest="1", type="t", source="s", id=None, time=None, data=None, extra={}) for key in keys]
    return Stored(batch="b", door="http", accepted_at=utc_now(), events=events, size=0)


def told(listener: str, events: Sequence[tuple[str, str, str]] = (), **counts: int) -> Told:
    return Told(listener=listener, events=list(events), **counts)


def test_nothing_is_told_when_nothing_happened(sample):
    assert sample.take() is None


def test_at_a_human_pace_every_event_and_outcome_is_shown(sample, clock):
    for number in range(100):
        clock.now += 1 / SHOWN_PER_S
        key = f"k{number}"
        sample.accepted([stored(key)])
        sample.told(told("listener-1", [(key, "won", "")], won=1))
        sample.told(told("listener-2", [(key, "skipped", "done listener-1")], skipped=1))
        frame = sample.take()
        assert frame["accepted"] == 1
        assert frame["events"] == [{"key": key, "type": "t"}]
        assert frame["outcomes"] == [(key, "listener-1", "won", ""), (key, "listener-2", "skipped", "done listener-1")]
        assert frame["counts"]["listener-2"]["skipped"] == 1


def test_beyond_it_some_are_shown_and_all_are_counted(sample, clock):
    # Given ten seconds of 1,000 events a second, which two listeners tell of
    shown = outcomes = accepted = won = 0
    for at in range(40):
        clock.now += 0.25
        keys = [f"{at}-{number}" for number in range(250)]
        sample.accepted([stored(*keys)])
        sample.told(told("listener-1", [(key, "won", "") for key in keys[:SAMPLE_EVENTS]], won=250))
        sample.told(told("listener-2", [(key, "skipped", "done listener-1") for key in keys[:SAMPLE_EVENTS]], skipped=250))

        # When
        frame = sample.take()

        # Then of each event that is shown both are told, and nothing of the others
        assert len(frame["outcomes"]) == 2 * len(frame["events"])
        assert {key for key, *_ in frame["outcomes"]} == {event["key"] for event in frame["events"]}
        shown += len(frame["events"])
        outcomes += len(frame["outcomes"])
        accepted += frame["accepted"]
        won += frame["counts"]["listener-1"]["won"]
    assert accepted == won == 10_000
    assert shown <= SHOWN_AT_ONCE + 10 * SHOWN_PER_S + 1
    assert shown >= 10 * SHOWN_PER_S


def test_outcomes_of_a_shown_event_are_told_in_later_frames_too(sample):
    sample.accepted([stored("k")])
    sample.take()
    sample.told(told("listener-1", [("k", "won", "")], won=1))
    frame = sample.take()
    assert (frame["events"], frame["outcomes"]) == ([], [("k", "listener-1", "won", "")])


def test_an_event_that_was_passed_over_is_not_shown_half_told_later(sample, clock):
    # Given no room for a second event when it is accepted, and when the first listener tells of it
    keys = [f"k{number}" for number in range(SHOWN_AT_ONCE + 1)]
    for key in keys:
        sample.accepted([stored(key)])
    sample.told(told("listener-1", [(keys[-1], "won", "")], won=1))
    sample.told(told("listener-1", [("elsewhere", "won", "")], won=1))
    sample.take()

    # When there is room again, and the second listener tells of it
    clock.now += 10
    sample.told(told("listener-2", [(keys[-1], "skipped", "done listener-1"), ("elsewhere", "skipped", "done listener-1")], skipped=2))

    # Then it stays passed over, until it is accepted again
    frame = sample.take()
    assert (frame["events"], frame["outcomes"]) == ([], [])
    sample.accepted([stored(keys[-1])])
    assert sample.take()["events"] == [{"key": keys[-1], "type": "t"}]


def test_events_that_another_broadcaster_accepted_are_shown_when_they_are_heard_of(sample):
    sample.told(told("listener-1", [("k", "won", "")], won=1))
    sample.told(told("listener-2", [("k", "skipped", "done listener-1")], skipped=1))
    frame = sample.take()
    assert frame["events"] == [{"key": "k", "type": None}]
    assert len(frame["outcomes"]) == 2
    assert frame["accepted"] == 0


def test_what_waits_is_bounded(sample, clock):
    for number in range(30_000):
        clock.now += 1
        sample.accepted([stored(f"k{number}")])
        sample.told(told(f"listener-{number}", [(f"k{number}", "won", "")] * 3, won=1))
    assert len(sample._shown) == module.MAX_REMEMBERED
    frame = sample.take()
    assert len(frame["outcomes"]) <= module.MAX_OUTCOMES
    assert len(frame["counts"]) == module.MAX_LISTENERS
    assert frame["accepted"] == 30_000


def test_a_listener_s_life_changes_with_its_processes():
    def view(pid: int) -> str:
        node = {"node": "listener-1@h", "pid": pid, "started_ms": 1}
        listener = {"name": "listener-1", "silent_ms": 5, "won": 1, "skipped": 2, "failed": 3, "queue": 0, "nodes": [node]}
        stats = {
            "accepted": {"events": 1, "since": "now", "by_type": {f"t{n}": 1 for n in range(1_000)}},
            "inbox": {},
            "ledger": {},
            "failures": {},
            "redis": {"ok": True},
            "listeners": [listener],
        }
        shown = state_view(stats, "")
        assert "by_type" not in shown["accepted"]
        assert "nodes" not in shown["listeners"][0]
        return str(shown["listeners"][0]["life"])

    assert view(1) == view(1) != view(2)
