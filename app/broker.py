"""The broker, asked and tidied: how much waits in its queues, and how a queue is removed.

Guarantees: no queue, exchange or binding is made by asking; whatever the broker's driver raises is :class:`app.errors.BrokerUnavailable`,
and the next call connects anew. Not guaranteed: that numbers of several queues belong to one instant.

Deliveries are sent by :mod:`broadcaster.sending`, and received by Celery.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from kombu import Connection
from kombu.exceptions import ChannelError, KombuError
from kombu.transport.redis import Channel as RedisChannel

from app.errors import BrokerUnavailable
from app.naming import RECOVERY_QUEUE, queue_of
from app.settings import Settings

_NOT_FOUND = "404"


def is_redis(url: str) -> bool:
    """Whether a broker's URL is that of one Redis or Valkey server, which can also be asked for more than a broker tells.

    For Celery both are ``redis://``, or ``rediss://`` with TLS; it knows no ``valkey://`` and no ``unix://``. Its other ways to a Redis
    (``redis+socket://``, ``sentinel://``) have URLs that Redis' own clients do not read.
    """
    return url.startswith(("redis://", "rediss://"))


class Broker:
    """A connection to the broker. For one thread at a time; connects at the first call, and anew after a failure.

    Args:
        connect: makes a connection of kombu's; takes ``transport_options``.
        timeout_s: how long one answer of the broker may take before it counts as an outage.
    """

    def __init__(self, connect: Callable[..., Any], *, timeout_s: float = 5.0) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._channel: Any = None

    @staticmethod
    def of(settings: Settings, *, timeout_s: float = 5.0) -> "Broker":
        """The broker that the settings name."""
        return Broker(partial(Connection, settings.broker_url), timeout_s=timeout_s)

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """The channel of this connection, kombu's; when what is done with it fails, it is closed.

        Raises:
            BrokerUnavailable: it cannot be had, or what is done with it fails.
        """
        if self._connection is None:
            options = {"socket_timeout": self._timeout_s, "socket_connect_timeout": self._timeout_s}
            self._connection = self._connect(transport_options=options)
        connection = self._connection
        try:
            if self._channel is None:
                connection.ensure_connection(max_retries=0)
                self._channel = connection.default_channel
            yield self._channel
        except (OSError, KombuError, *connection.connection_errors, *connection.channel_errors) as error:
            self.close()
            raise BrokerUnavailable(f"the broker did not serve: {str(error.__cause__ or error)[:200]}") from error

    def depths(self, queues: Iterable[str]) -> dict[str, int]:
        """How many deliveries wait in each queue; 0 for one that is not there.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        with self.channel() as channel:
            if isinstance(channel, RedisChannel):
                return _lengths(channel, list(queues))
        return {queue: self._depth(queue) for queue in queues}

    def waiting(self, listeners: Iterable[str]) -> dict[str, int]:
        """How many deliveries wait, by queue: those of some listeners, and the recovery queue.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        return self.depths([*map(queue_of, listeners), RECOVERY_QUEUE])

    def remove_queue(self, queue: str) -> None:
        """Remove a queue, what waits in it, and what was delivered from it and never acknowledged.

        On Redis with a visibility timeout the last would come back when that is over, into a queue that nobody consumes any more.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        with self.channel() as channel:
            if isinstance(channel, RedisChannel):
                _drop_unacked(channel, queue)
                _unbind(channel, queue)
            channel.queue_purge(queue)
            channel.queue_delete(queue)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may be broken, and nothing is lost with it
                connection.close()

    def _depth(self, queue: str) -> int:
        with self.channel() as channel:
            try:
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
            except ChannelError as error:
                if str(error.reply_code) != _NOT_FOUND:
                    raise
                if not getattr(channel, "is_open", True):  # AMQP closes the channel with such an answer
                    self.close()
                return 0


def _lengths(channel: Any, queues: Sequence[str]) -> dict[str, int]:
    """All in one round trip. kombu has a list for each step of priority; that of the lowest has the queue's name."""
    steps = [f"{channel.sep}{step}" if step else "" for step in channel.priority_steps]
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
        for queue in queues:
            for step in steps:
                pipe.llen(queue + step)
        lengths = pipe.execute()
    return {queue: sum(lengths[place * len(steps) : (place + 1) * len(steps)]) for place, queue in enumerate(queues)}


def _drop_unacked(channel: Any, queue: str) -> None:
    with channel.conn_or_acquire() as client:
        tags = [tag for tag, held in client.hscan_iter(channel.unacked_key) if _routing_key(held) == queue]
        if tags:
            client.zrem(channel.unacked_index_key, *tags)
            client.hdel(channel.unacked_key, *tags)


def _unbind(channel: Any, queue: str) -> None:
    """A worker binds its queues to the exchange of Celery's default queue; nothing is ever published there."""
    with channel.conn_or_acquire() as client:
        client.srem(channel.keyprefix_queue % (RECOVERY_QUEUE,), channel.sep.join([queue, "", queue]))


def _routing_key(held: bytes) -> str | None:
    """Where a delivery was sent: kombu keeps ``[message, exchange, routing key]``."""
    try:
        return str(json.loads(held)[2])
    except (ValueError, LookupError, TypeError):
        return None
