"""The bridge's pure parts: who lives, order, gates, intake."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from app.presence import Beat, Listener
from broadcaster.bridge.flow import Gates, Order
from broadcaster.bridge.intake import Intake
from broadcaster.roster import Roster
from broadcaster.sending import readable


def listener(name: str, *, silent_ms: int = 0, seq: int = 0) -> Listener:
    return Listener(name, [Beat(node=f"{name}@h", listener=name, pid=1, received_seq=seq)], silent_ms)


# --------------------------------------------------------------------------------------------------------------- roster


def names(roster: Roster, now: float) -> list[str]:
    return [heard.name for heard in roster.live(now)]


def test_a_listener_lives_for_the_grace_after_its_last_heartbeat():
    roster = Roster(grace_s=10, missing_s=4)
    roster.update([listener("a", silent_ms=3_000), listener("b", silent_ms=9_000)], 100.0)

    assert names(roster, 100.0) == ["a", "b"]
    assert names(roster, 101.5) == ["a"]
    assert names(roster, 107.5) == []


def test_a_redis_that_forgot_everything_is_not_believed_at_once():
    roster = Roster(grace_s=10, missing_s=4)
    roster.update([listener("a"), listener("b", silent_ms=2_000)], 100.0)
    roster.update([], 101.0)

    assert names(roster, 101.0) == ["a", "b"]
    assert names(roster, 102.5) == ["a"]
    roster.update([listener("b")], 103.0)
    assert names(roster, 103.0) == ["a", "b"]
    assert names(roster, 104.5) == ["b"]


def test_a_listener_that_started_anew_keeps_what_it_had_received():
    roster = Roster(grace_s=10, missing_s=4)
    roster.update([listener("a", seq=9)], 100.0)
    roster.update([listener("a", seq=0)], 101.0)

    assert [heard.received_seq for heard in roster.live(101.0)] == [9]


def test_a_listener_of_another_version_counts_for_nothing_until_all_its_nodes_read_ours():
    roster = Roster(grace_s=10, missing_s=4)
    nodes = [Beat(node=f"b@h{n}", listener="b", pid=n, reads=n) for n in (1, 2)]
    roster.update([listener("a"), listener("b")], 100.0)
    roster.update([listener("a"), Listener("b", nodes, 0)], 101.0)

    assert names(roster, 101.0) == ["a"]
    assert roster.refused == {"b"}
    roster.update([listener("a"), listener("b")], 102.0)
    assert names(roster, 102.0) == ["a", "b"]
    assert not roster.refused


# ---------------------------------------------------------------------------------------------------------------- order


@given(st.lists(st.one_of(st.integers(0, 1_000), st.none()), min_size=1))
def test_numbers_grow_whatever_the_clock_does(steps):
    """``None`` takes a number, an integer sets the clock or tells of another bridge's number."""
    clock = [500]
    order = Order(lambda: clock[0])
    last = 0
    for at, step in enumerate(steps):
        if step is None:
            number = order.next()
            assert number > last
            last = number
        elif at % 2:
            clock[0] = step
        else:
            order.beyond(step)
            last = max(last, step)


# ---------------------------------------------------------------------------------------------------------------- gates


def test_a_full_queue_takes_no_more_until_half_of_it_is_gone():
    gates = Gates(10)
    gates.measured({"a": 10, "b": 9})
    assert (gates.open("a"), gates.open("b"), gates.open("new")) == (False, True, True)

    gates.measured({"a": 6, "b": 9})
    assert not gates.open("a")
    gates.measured({"a": 5, "b": 9})
    assert gates.open("a")
    assert not gates.any_closed


def test_what_was_sent_since_counts():
    gates = Gates(10)
    gates.measured({"a": 4})
    assert not gates.stale
    gates.sent(["a", "b"], 5)
    assert (gates.open("a"), gates.open("b"), gates.stale) == (True, True, True)
    gates.sent(["a", "b"], 1)
    assert (gates.open("a"), gates.open("b")) == (False, True)


def test_a_queue_of_a_listener_that_went_away_opens():
    gates = Gates(2)
    gates.measured({"a": 2})
    gates.measured({})
    assert gates.open("a")


# --------------------------------------------------------------------------------------------------------------- intake


def announced(batch: str, events: int = 1) -> dict[str, object]:
    return {"batch": batch, "keys": ["k"] * events}


def test_what_does_not_fit_is_dropped_and_the_oldest_is_kept():
    intake = Intake(max_events=5)

    assert intake.offer([announced("a", 3), announced("b", 3), announced("c", 2)]) == 1
    assert [a["batch"] for a in intake.take(100, 0)] == ["a", "c"]
    assert intake.offer([announced("d", 5)]) == 0


def test_one_that_is_larger_than_the_bound_passes_alone():
    intake = Intake(max_events=5)

    assert intake.offer([announced("huge", 9), announced("b")]) == 1
    assert [a["batch"] for a in intake.take(2, 0)] == ["huge"]


def test_taking_is_bounded_and_in_order():
    intake = Intake(max_events=100)
    intake.offer([announced(name, 2) for name in "abcd"])

    assert [[a["batch"] for a in intake.take(5, 0)] for _ in range(3)] == [["a", "b"], ["c", "d"], []]


def test_a_batch_is_held_until_it_is_released():
    intake = Intake(max_events=100)
    intake.offer([announced("a"), announced("b")])
    intake.take(1, 0)
    assert intake.holds("a")
    assert intake.holds("b")

    intake.release(["a"])
    intake.clear()
    assert not intake.holds("a")
    assert not intake.holds("b")
    assert intake.take(1, 0) == []


def test_a_waiting_taker_is_woken():
    intake = Intake(max_events=100)
    taken: list[object] = []
    taker = threading.Thread(target=lambda: taken.extend(intake.take(10, 20)))
    taker.start()
    intake.offer([announced("a")])
    taker.join(10)

    assert taken == [announced("a")]


# ------------------------------------------------------------------------------------------------------- what Flower shows


def test_a_message_reads_well():
    message = {"keys": ["k1", "k2", "k3"], "types": ["t"], "batch": "01kd"}

    assert readable(message) == "t k1 and 2 more (batch 01kd)"
    assert readable(message | {"keys": ["k1"], "batch": None, "types": ["t", "u"]}) == "events of 2 types k1 (retry)"
