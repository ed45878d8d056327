"""Sending Celery tasks to listeners' queues, through the broker's anonymous exchange.

Guarantees: no exchange and no binding is declared or needed (a named one, once the broker has forgotten it, drops what is
published without a word); every task has its own id and its own delivery. Not guaranteed: that anything arrives. When
:class:`app.errors.BrokerUnavailable` is raised, any part of what was sent may have arrived; it counts as not sent, and the sweeper finds
it in the inbox.

The sender of a task needs no code of the task: it is sent by name. It waits for no result; whether listeners keep the results
for others to ``.get()`` is ``task_ignore_result``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from app.broker import Broker
from app.naming import PROCESS_TASK

_ANONYMOUS = Exchange("", type="direct")
_BATCH_COMMANDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One delivery: which queue, under which task id, with which message (:func:`app.messages.delivery`)."""

    queue: str
    task_id: str
    message: dict[str, Any]


class Sender(Broker):
    """A connection to the broker that tasks are sent over. For one thread.

    Args:
        app: the Celery application; its settings name the broker.
        timeout_s: how long one answer of the broker may take before it counts as an outage.
    """

    def __init__(self, app: Celery, *, timeout_s: float = 5.0) -> None:
        super().__init__(app.connection_for_write, timeout_s=timeout_s)
        self._app = app

    def send(self, deliveries: Sequence[Outgoing]) -> None:
        """Send deliveries, in their order, in as few round trips as the broker allows.

        Raises:
            BrokerUnavailable: some or all may not have arrived.
        """
        if not deliveries:
            return
        with self.channel() as channel:
            producer: Any = self._app.amqp.Producer(channel, auto_declare=False)  # its type stubs do not know batch()
            with producer.batch(_BATCH_COMMANDS):
                for delivery in deliveries:
                    self._send(delivery, producer)

    def _send(self, delivery: Outgoing, producer: Any) -> None:
        queue: Any = Queue(delivery.queue, _ANONYMOUS, routing_key=delivery.queue)
        self._app.send_task(
            PROCESS_TASK,
            args=[delivery.message],
            queue=queue,
            declare=[],  # of the queue's own, which would declare an exchange
            task_id=delivery.task_id,
            argsrepr=readable(delivery.message),
            ignore_result=self._app.conf.task_ignore_result,
            retry=False,
            producer=producer,
        )


def readable(message: dict[str, Any]) -> str:
    """A message in a few words, for Flower."""
    keys, types = message["keys"], message["types"]
    what = types[0] if len(types) == 1 else f"events of {len(types)} types"
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    others = len(message.get("parts") or ()) - 1
    batch = (f"batch {message['batch']}" + (f" and {others} more" if others > 0 else "")) if message["batch"] else "retry"
    return f"{what} {keys[0]}{more} ({batch})"
