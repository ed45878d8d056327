"""The Celery task, and how its outcome shows in Flower: a win is SUCCESS, a task that won nothing is SKIPPED.

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


class SkippingRequest(Request):
    """A request whose end is sent as ``task-skipped`` when the task won nothing, and counted for the heartbeat."""

    def send_event(self, type: str, **fields: Any) -> None:
        """Send a task event; ``task-succeeded`` becomes ``task-skipped`` when others have all events."""
        name = type
        if name == "task-succeeded":
            text = str(fields.get("result", "")).strip("'\"")
            fields["result"] = text
            workers.listener.count(tally.counts(text))
            if tally.is_skip(text):
                name = "task-skipped"
        super().send_event(name, **fields)


class ProcessTask(Task[Any, Any]):
    """Base of the task, with its own request class."""

    Request = SkippingRequest  # type: ignore[assignment]  # a class or its name; the stubs know the name only


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
