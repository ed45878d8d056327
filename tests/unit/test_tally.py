"""What a task did, as Flower and the heartbeat read it."""

import pytest

from workers import tally
from workers.tally import Tally


def tally_of(*, won: int = 0, skipped: int = 0, failed: tuple[str, ...] = (), left: int = 0, sample: frozenset[str] = frozenset()) -> Tally:
    made = Tally(sample=sample)
    made.win([f"w{n}" for n in range(won)])
    for number in range(skipped):
        made.skip("busy", "listener-2", f"s{number}")
    for number, reason in enumerate(failed):
        made.fail(reason, f"f{number}")
    made.left = left
    return made


@pytest.mark.parametrize(
    "made, text, ending",
    [
        (tally_of(won=1), "won 1", "won"),
        (tally_of(won=500), "won 500", "won"),
        (tally_of(won=1, skipped=249), "won 1, skipped 249 (busy listener-2)", "won"),
        (tally_of(won=2, failed=("dead",)), "won 2, failed 1 (dead)", "won"),
        (tally_of(skipped=1), "skipped 1 (busy listener-2)", "skipped"),
        (tally_of(skipped=500), "skipped 500 (busy listener-2)", "skipped"),
        (tally_of(failed=("dead",)), "failed 1 (dead)", "failed"),
        (tally_of(failed=("retrying",) * 3), "failed 3 (retrying)", "retrying"),
        (tally_of(failed=("retrying", "dead", "dead")), "failed 3 (dead, retrying)", "failed"),
        (tally_of(failed=("retrying", "retrying", "dead")), "failed 3 (retrying, dead)", "failed"),
        (tally_of(skipped=2, failed=("conflict",)), "skipped 2 (busy listener-2), failed 1 (conflict)", "failed"),
        (tally_of(left=250), "left 250", "left"),
        (tally_of(skipped=1, left=249), "skipped 1 (busy listener-2), left 249", "left"),
    ],
)
def test_the_best_that_a_task_did_is_how_it_ended(made, text, ending):
    assert str(made) == text
    assert tally.ending(text) == ending
    assert tally.counts(text) == {"won": made.won, "skipped": made.skipped, "failed": made.failed, "left": made.left}


@pytest.mark.parametrize("name", ["won", "left", "failed", "5", "won.1"])
def test_a_listener_with_a_strange_name_is_not_taken_for_a_count(name):
    made = Tally()
    made.skip("busy", name, "k")
    made.skip("done", name, "l")
    assert tally.counts(str(made)) == {"won": 0, "skipped": 2, "failed": 0, "left": 0}
    assert tally.ending(str(made)) == "skipped"


def test_what_a_handler_returned_is_no_count():
    made = tally_of(skipped=1)
    made.result = "won 7, failed 3 (retrying)"
    assert tally.counts(str(made))["won"] == 0
    assert tally.ending(str(made)) == "skipped"


def test_only_what_is_watched_is_noted_by_key():
    assert tally_of(won=3, skipped=3, failed=("dead",)).seen == []
    noted = tally_of(won=2, skipped=2, failed=("dead",), sample=frozenset({"w1", "s0", "f0"}))
    assert noted.seen == [("w1", "won", ""), ("s0", "skipped", "busy listener-2"), ("f0", "failed", "dead")]
