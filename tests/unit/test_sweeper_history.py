"""What the sweeper remembers, against a model of a real queue."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from broadcaster.sweeper.hands import Settled
from broadcaster.sweeper.history import BatchHistory, ListenerHistory, RecoveryHistory

# ---------------------------------------------------------------------------------------------------------- listeners


def test_a_sample_counts_once_it_is_a_grace_old():
    history = ListenerHistory(grace_s=2)

    assert history.observe({"a": 7}, {"a": 0}, 10.0) == {"a": Settled()}
    assert history.observe({"a": 9}, {"a": 3}, 11.9) == {"a": Settled()}
    assert history.observe({"a": 9}, {"a": 3}, 12.0) == {"a": Settled(seq=7, empty_at=10.0)}
    assert history.observe({"a": 9}, {"a": 3}, 14.0) == {"a": Settled(seq=9, empty_at=10.0)}


def test_a_listener_that_started_anew_has_still_received_what_it_received():
    history = ListenerHistory(grace_s=1)
    history.observe({"a": 7}, {"a": 1}, 10.0)

    assert history.observe({"a": 0}, {"a": 1}, 20.0)["a"].seq == 7


def test_a_listener_that_went_away_is_forgotten():
    history = ListenerHistory(grace_s=1)
    history.observe({"a": 7, "b": 8}, {"a": 0, "b": 0}, 10.0)
    history.observe({"b": 8}, {"b": 0}, 11.0)

    assert history.observe({"a": 0, "b": 8}, {"a": 1, "b": 1}, 20.0) == {"a": Settled(), "b": Settled(seq=8, empty_at=11.0)}


def test_a_queue_whose_depth_is_unknown_is_not_empty():
    history = ListenerHistory(grace_s=0)

    assert history.observe({"a": 1}, {}, 10.0)["a"].empty_at == float("-inf")


# ----------------------------------------------------------------------------------------------------- recovery queue


def test_a_copy_is_taken_when_the_queue_is_shorter_than_what_came_after_it():
    history = RecoveryHistory()
    history.observe([], 0, 1.0)
    for batch in "abc":
        history.sent(batch)

    history.observe("abc", 3, 2.0)
    assert [history.taken_at(b) for b in "abc"] == [None, None, None]
    history.observe("abc", 1, 3.0)
    assert [history.taken_at(b) for b in "abc"] == [3.0, 3.0, None]
    history.observe("abc", 0, 4.0)
    assert [history.taken_at(b) for b in "abc"] == [3.0, 3.0, 4.0]


def test_what_was_sent_before_this_process_began_waits_for_all_that_it_found():
    history = RecoveryHistory()
    history.observe(["old"], 2, 1.0)
    history.sent("new")

    history.observe(["old", "new"], 2, 2.0)
    assert history.taken_at("old") is None
    history.observe(["old", "new"], 1, 3.0)
    assert (history.taken_at("old"), history.taken_at("new")) == (3.0, None)


def test_a_broker_that_lost_everything_has_no_copy_left():
    history = RecoveryHistory()
    history.observe([], 0, 1.0)
    history.sent("a")
    history.observe(["a"], 0, 2.0)

    assert history.taken_at("a") == 2.0


def test_a_new_copy_begins_anew():
    history = RecoveryHistory()
    history.observe([], 0, 1.0)
    history.sent("a")
    history.observe(["a"], 0, 2.0)
    history.sent("a")
    history.observe(["a"], 1, 3.0)

    assert history.taken_at("a") is None


@given(st.integers(0, 3), st.lists(st.sampled_from(["send", "other", "take", "look", "lose"]), max_size=60))
def test_a_copy_in_the_queue_is_never_said_to_be_taken(found, steps):
    """Whatever others send and take in between."""
    queue: deque[str] = deque(["found"] * found)
    history = RecoveryHistory()
    history.observe([], len(queue), 0.0)
    sent: list[str] = []
    for at, step in enumerate(steps, 1):
        if step == "send":
            sent.append(f"batch-{at}")
            queue.append(sent[-1])
            history.sent(sent[-1])
        elif step == "other":
            queue.append("other")
        elif step == "take" and queue:
            queue.popleft()
        elif step == "lose":
            queue.clear()
        elif step == "look":
            history.observe(sent, len(queue), float(at))
            assert not [batch for batch in queue if history.taken_at(batch) is not None]
            if not queue:
                assert all(history.taken_at(batch) is not None for batch in sent)


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_seen_anew_when_it_was_sent_again_and_forgotten_when_it_is_gone():
    history = BatchHistory()
    history.observe([("a", 0), ("b", 1)], 1.0)
    history.observe([("a", 1), ("b", 1)], 2.0)
    assert (history.first_at("a"), history.seen_at("a")) == (1.0, 2.0)
    assert (history.first_at("b"), history.seen_at("b")) == (1.0, 1.0)

    history.observe([("b", 1)], 3.0)
    history.observe([("a", 1), ("b", 1)], 4.0)
    assert (history.first_at("a"), history.seen_at("a")) == (4.0, 4.0)
