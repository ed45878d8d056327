"""Handlers that raise, kill or hang: faults 6, 7, 20."""

import pytest

from tests.support.system import System, events
from tests.support.waiting import eventually


def test_raising_once_is_tried_again(system: System) -> None:
    """G5, G2: a handler that raises once is rolled back, after the losers have skipped, and succeeds at its second attempt."""
    system.up(3)
    system.accept(events(5, "fault.mixed", do="raise", times=1))
    system.await_finished(20)
    system.audit()
    assert {d["attempt"] for d in system.db.events.find()} == {2}
    assert {d["result"]["attempt"] for d in system.db.events.find()} == {2}
    assert system.db.failures.count_documents({}) == 0


def test_raising_always_ends_dead_with_body_and_traceback(system: System) -> None:
    """G5: an event whose handler always raises is dead after its attempts, and its 99 neighbours are processed."""
    system.up(2)
    (bad,) = events(1, "fault.mixed", do="raise")
    system.accept([bad, *events(99, "fault.mixed")])
    system.await_finished(30)
    system.audit(failed=1)
    (failure,) = system.db.failures.find()
    assert (failure["state"], failure["attempts"], failure["starts"]) == ("dead", 3, 0)
    assert failure["body"]["data"] == bad["data"]
    assert "as it was told" in failure["error"]["traceback"]


@pytest.mark.parametrize(("do", "says"), [("exit", "SystemExit: -1"), ("unwritable", "ValueError: no such file: \\udcff.csv")])
def test_an_odd_end_is_an_attempt_and_no_end_of_the_process(system: System, do: str, says: str) -> None:
    """G5: an exit of the handler's own, or an error that MongoDB could not hold, is written down and counted; its 49 neighbours are processed."""
    system.up(2)
    (bad,) = events(1, "fault.mixed", do=do)
    system.accept([bad, *events(49, "fault.mixed")])
    system.await_finished(30)
    system.audit(failed=1)
    (failure,) = system.db.failures.find()
    assert (failure["state"], failure["attempts"], failure["starts"]) == ("dead", 3, 0)
    assert failure["reason"] == says


def test_permanent_failure_is_dead_at_once_and_later_is_no_attempt(system: System) -> None:
    """G5: PermanentFailure ends dead at its first attempt; RetryLater counts no attempt, however often it is said."""
    import time

    system.up(2)
    system.accept(events(1, "fault.mixed", do="dead"))
    system.accept(events(1, "fault.mixed", do="later", until=time.time() + 2.5))
    system.await_finished(30)
    system.audit(failed=1)
    assert system.db.failures.find_one()["attempts"] == 1
    assert system.db.events.find_one()["attempt"] == 1


@pytest.mark.parametrize("flush", [False, True], ids=["", "flushall between"])
@pytest.mark.parametrize("do", ["kill", "hang"])
def test_an_event_that_takes_its_process_down(private_system: System, do: str, flush: bool) -> None:
    """G5: first in a batch of 250, an event that kills or hangs its process ends dead; its 249 neighbours are processed."""
    system = private_system.with_settings(max_handler_s=1.0, lease_ms=1_000)
    system.up(2)
    (bad,) = events(1, "fault.mixed", do=do)
    system.accept([bad, *events(249, "fault.mixed")])
    if flush:
        eventually(lambda: system.db.failures.count_documents({"starts": {"$gt": 0}}) > 0, 60, system.state, every_s=0.1)
        system.redis.flushall()
    system.await_finished(90)
    system.audit(failed=1)
    (failure,) = system.db.failures.find()
    assert failure["state"] == "dead"
    assert failure["body"]["data"]["do"] == do
    assert all(d["attempt"] == 1 for d in system.db.events.find()), "G5: neighbours were counted attempts"
