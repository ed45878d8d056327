"""When a worker's task events leave, on a loop that the test turns."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from workers.flushing import DELAY_S, TaskEventsTogether


class Worker:
    """What the step sees of a consumer: a loop with timers, a dispatcher, which errors a connection may end with."""

    connection_errors = (OSError,)
    channel_errors = ()

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.flushed: list[str] = []
        self.hub: Any = SimpleNamespace(call_later=self._call_later)
        self.event_dispatcher: Any = SimpleNamespace(on_send_buffered=self.on_send_event_buffered, flush=lambda: self.flushed.append("now"))

    def on_send_event_buffered(self) -> None:
        self.flushed.append("at the next turn")

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        assert delay_s == DELAY_S
        self.timers.append(call)

    def turn(self) -> None:
        due, self.timers = self.timers, []
        for call in due:
            call()


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def step(worker: Worker) -> TaskEventsTogether:
    made = TaskEventsTogether(worker)
    made.start(worker)
    return made


@pytest.mark.usefixtures("step")
def test_events_wait_for_each_other_and_later_ones_for_the_next_time(worker):
    for times in (1, 2):
        for _ in range(5):
            worker.event_dispatcher.on_send_buffered()
        assert len(worker.timers) == 1
        worker.turn()
        assert worker.flushed == ["at the next turn"] * times


def test_at_the_end_what_waits_leaves_and_nothing_waits_any_more(worker, step):
    worker.event_dispatcher.on_send_buffered()
    step.stop(worker)
    assert worker.flushed == ["now"]
    worker.event_dispatcher.on_send_buffered()
    assert worker.flushed == ["now", "at the next turn"]


def test_a_broken_connection_does_not_hinder_the_end(worker, step):
    def broken() -> None:
        raise OSError("gone")

    worker.event_dispatcher.flush = broken
    step.stop(worker)


def test_pools_without_a_loop_send_as_celery_does(worker):
    worker.hub = None
    TaskEventsTogether(worker).start(worker)
    assert worker.event_dispatcher.on_send_buffered == worker.on_send_event_buffered
