"""The Celery task, and how its outcome shows in Flower.

| what the task did | state | result |
|---|---|---|
| won events, one or all | SUCCESS | ``won 250`` · ``won 3, skipped 246 (busy listener-2), failed 1 (retrying)`` |
| won none, and some are dead, in conflict or stale | FAILURE | ``failed 1 (dead)`` · ``skipped 2 (done listener-1), failed 1 (conflict)`` |
| won none, and those that failed are tried again | RETRY | ``failed 1 (retrying)`` |
| won and failed none, left some unfinished | LEFT | ``left 250``: a server was away, the type is paused, or the listener ended |
| others have all of them | SKIPPED | ``skipped 250 (done listener-1)`` |

A loser acknowledges its copy at once: its events are in the inbox, and the sweeper guarantees them.
"""

from typing import Any

import structlog
from celery import Task
from celery.worker.request import Request

import workers.listener
from app.celery import app
from app.messages import UnreadableMessage, read_delivery
from app.naming import PROCESS_TASK, listener_of
from workers import tally
from workers.pipeline import process
from workers.runtime import current

log = structlog.get_logger()


_EVENT_OF = {
    "won": "task-succeeded",
    "failed": "task-failed",
    "retrying": "task-retried",
    "left": "task-left",
    "skipped": "task-skipped",
}


class OutcomeRequest(Request):
    """A request whose end is sent as what the task did with its events, and counted for the heartbeat."""

    def send_event(self, type: str, **fields: Any) -> None:
        """Send a task event; ``task-succeeded`` says only that the task has run, and becomes what it did."""
        name = type
        if name == "task-succeeded":
            text = str(fields.get("result", "")).strip("'\"")
            workers.listener.count(tally.counts(text))
            name = _EVENT_OF[tally.ending(text)]
            if self._redelivered and name != "task-succeeded":
                text = f"delivered again: {text}"  # the state that Flower shows may be that of the first time
            fields["result"] = text
            if name in ("task-failed", "task-retried"):
                fields["exception"] = text
        super().send_event(name, **fields)

    @property
    def _redelivered(self) -> bool:
        return bool((self.delivery_info or {}).get("redelivered"))


class ProcessTask(Task[Any, Any]):
    """Base of the task, with its own request class."""

    Request = OutcomeRequest  # type: ignore[assignment]  # a class or its name; the stubs know the name only


@app.task(name=PROCESS_TASK, base=ProcessTask, bind=True)
def process_delivery(self: Any, message: dict[str, Any]) -> str:
    """Process one delivery of a batch of events.

    Args:
        self: the task.
        message: see :mod:`app.messages`.

    Returns:
        What was won, skipped, failed and left, as in ``won 3, skipped 247 (busy listener-2)``.

    Raises:
        UnreadableMessage: of another version; the delivery is given up, and its batch stays in the inbox.
    """
    try:
        delivery = read_delivery(message)
    except UnreadableMessage as error:
        log.error("delivery.unreadable", error=str(error))
        raise
    in_pool = self.request.delivery_info is not None and workers.listener.in_pool_child()
    runtime = current(workers.listener.settings(), listener_of(self.request.hostname), in_pool=in_pool)
    return str(process(runtime, delivery))
