"""Sending Celery tasks to listeners' queues, through the broker's anonymous exchange.

Guarantees: no exchange and no binding is declared or needed (a named one, once the broker has forgotten it, drops what is
published without a word); every task has its own id and its own delivery. Not guaranteed: that anything arrives. When
:class:`BrokerUnavailable` is raised, any part of what was sent may have arrived; it counts as not sent, and the sweeper finds
it in the inbox.

The sender of a task needs no code of the task: it is sent by name. It waits for no result; whether listeners keep the results
for others to ``.get()`` is ``task_ignore_result``.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import ChannelError, KombuError

from app.errors import TransientError
from app.listeners import remove_queue
from app.naming import PROCESS_TASK

_Producer = Any
"""``kombu.Producer``; its type stubs know neither ``batch()`` nor that the connection is there."""

_ANONYMOUS = Exchange("", type="direct")
_NOT_FOUND = "404"
_BATCH_COMMANDS = 200


class BrokerUnavailable(TransientError):
    """The broker did not answer, or refused; what was being sent may or may not have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One delivery: which queue, under which task id, with which message (:func:`app.messages.delivery`)."""

    queue: str
    task_id: str
    message: dict[str, Any]


class Sender:
    """A connection to the broker. For one thread; connects at the first call, and anew after a failure.

    Args:
        app: the Celery application; its settings name the broker.
        timeout_s: how long one answer of the broker may take before it counts as an outage.
    """

    def __init__(self, app: Celery, *, timeout_s: float = 5.0) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._producer: _Producer = None

    def send(self, deliveries: Sequence[Outgoing]) -> None:
        """Send deliveries, in their order, in as few round trips as the broker allows.

        Raises:
            BrokerUnavailable: some or all may not have arrived.
        """
        if not deliveries:
            return
        with self._connected() as producer, producer.batch(_BATCH_COMMANDS):
            for delivery in deliveries:
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

    def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """How many deliveries wait in each queue; 0 for one that is not there.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        found: dict[str, int] = {}
        for queue in queues:
            with self._connected() as producer:
                try:
                    found[queue] = producer.channel.queue_declare(queue=queue, passive=True).message_count
                except ChannelError as error:
                    if str(error.reply_code) != _NOT_FOUND:
                        raise
                    found[queue] = 0
                    if not getattr(producer.channel, "is_open", True):  # AMQP closes the channel with such an answer
                        self.close()
        return found

    def delete_queue(self, queue: str) -> None:
        """Remove a queue and what is left of it; see :func:`app.listeners.remove_queue`.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        with self._connected() as producer:
            remove_queue(producer.channel, queue)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):  # it may be broken, and nothing is lost with it
                producer.connection.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[_Producer]:
        try:
            if self._producer is None:
                self._producer = self._connect()
            connection = self._producer.connection
        except (OSError, KombuError) as error:
            raise BrokerUnavailable(f"the broker cannot be reached: {str(error)[:200]}") from error
        try:
            yield self._producer
        except (*connection.connection_errors, *connection.channel_errors, KombuError) as error:
            self.close()
            cause = error.__cause__ or error
            raise BrokerUnavailable(f"the broker did not serve: {str(cause)[:200]}") from error

    def _connect(self) -> _Producer:
        options = {"socket_timeout": self._timeout_s, "socket_connect_timeout": self._timeout_s}
        connection = self._app.connection_for_write(transport_options=options)
        connection.ensure_connection(max_retries=0)
        return self._app.amqp.Producer(connection, auto_declare=False)


def readable(message: dict[str, Any]) -> str:
    """A message in a few words, for Flower."""
    keys, types = message["keys"], message["types"]
    what = types[0] if len(types) == 1 else f"events of {len(types)} types"
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    others = len(message.get("parts") or ()) - 1
    batch = (f"batch {message['batch']}" + (f" and {others} more" if others > 0 else "")) if message["batch"] else "retry"
    return f"{what} {keys[0]}{more} ({batch})"
