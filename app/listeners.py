"""The end of a listener's name: what it leaves in the broker, in Redis and in MongoDB.

Guaranteed: nothing that was accepted is lost with a queue; its deliveries were copies, and their events are in the inbox. A name that is
forgotten while its listener lives comes back with the next heartbeats; so that is refused where it can be seen.
Not covered: the bindings that a killed worker leaves of Celery's remote control; they hold no messages, and a worker of the same
name takes them over.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError, KombuError
from kombu.transport.redis import Channel as RedisChannel
from pymongo.database import Database

from app.errors import PermanentError, TransientError
from app.naming import RECOVERY_QUEUE, queue_of
from app.presence import Presence, forget_listeners, known_listeners
from app.settings import Settings
from app.stores.mongo import Document


class UnknownListener(PermanentError):
    """No listener of this name has been heard of."""


class ListenerLives(PermanentError):
    """The listener would come back with its next heartbeat: it is to be stopped first."""


class BrokerAway(TransientError):
    """The broker did not answer, or refused."""


def forget(db: Database[Document], presence: Presence, app: Celery, settings: Settings, name: str) -> None:
    """Forget a listener that has been stopped: its queue, its heartbeats, its name. Safe to repeat.

    Raises:
        ListenerLives: a node of it has been heard of within ``listener_grace_s``.
        UnknownListener: there is no such name.
        TransientError: a server is away; what is left is forgotten by the next try.
    """
    heard = {found.name: found for found in presence.listeners(within_ms=settings.listener_retire_s * 1000)}
    if name not in heard and name not in {known for known, _ in known_listeners(db)}:
        raise UnknownListener(f"no listener is called {name!r}")
    if name in heard and heard[name].silent_ms <= settings.listener_grace_s * 1000:
        seconds = heard[name].silent_ms / 1000
        raise ListenerLives(
            f"{name} was heard of {seconds:.1f} s ago: stop it, and wait for {settings.listener_grace_s} s if it was killed"
        )
    with broker_channel(app) as channel:
        remove_queue(channel, queue_of(name))
    presence.drop(name)
    forget_listeners(db, [name])


@contextmanager
def broker_channel(app: Celery, *, timeout_s: float = 5.0) -> Iterator[Any]:
    """A channel of its own to the broker.

    Raises:
        BrokerAway: it cannot be had, or what is done with it fails.
    """
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    connection: Any = app.connection_for_write(transport_options=options)
    try:
        connection.ensure_connection(max_retries=0)
        yield connection.default_channel
    except (OSError, KombuError, *connection.connection_errors, *connection.channel_errors) as error:
        raise BrokerAway(f"the broker did not serve: {str(error)[:200]}") from error
    finally:
        connection.release()


def depth(channel: Any, queue: str) -> int:
    """How many deliveries wait in a queue; 0 for one that is not there."""
    try:
        return int(channel.queue_declare(queue=queue, passive=True).message_count)
    except ChannelError as error:
        if str(error.reply_code) != "404":
            raise
        return 0


def remove_queue(channel: Any, queue: str) -> None:
    """Remove a queue, what waits in it, and what was delivered from it and never acknowledged.

    On Redis with a visibility timeout the last would come back when that is over, into a queue that nobody consumes any more.

    Args:
        channel: of kombu, open.
        queue: its name.
    """
    if isinstance(channel, RedisChannel):
        _drop_unacked(channel, queue)
        _unbind(channel, queue)
    channel.queue_purge(queue)
    channel.queue_delete(queue)


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
