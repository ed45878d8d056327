"""The end of a listener's name: what it leaves in the broker, in Redis and in MongoDB.

Guaranteed: nothing that was accepted is lost with a queue; its deliveries were copies, and their events are in the inbox. A name that is
forgotten while its listener lives comes back with the next heartbeats; so that is refused where it can be seen.
Not covered: the bindings that a killed worker leaves of Celery's remote control; they hold no messages, and a worker of the same
name takes them over.
"""

from collections.abc import Sequence

import structlog
from pymongo.database import Database

from app.broker import Broker
from app.errors import PermanentError
from app.naming import queue_of
from app.presence import Presence, forget_listeners, known_listeners
from app.settings import Settings
from app.stores.mongo import Document
from app.stores.records import utc_now

log = structlog.get_logger()


class UnknownListener(PermanentError):
    """No listener of this name has been heard of."""


class ListenerLives(PermanentError):
    """The listener would come back with its next heartbeat: it is to be stopped first."""


def forget(db: Database[Document], presence: Presence, broker: Broker, settings: Settings, name: str) -> None:
    """Forget a listener that has been stopped. Safe to repeat.

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
    retire(db, presence, broker, [name])


def retire_silent(db: Database[Document], presence: Presence, broker: Broker, settings: Settings) -> list[str]:
    """Retire the listeners that have been silent for ``listener_retire_s``. Returns their names.

    Raises:
        TransientError: a server is away.
    """
    retire_ms = settings.listener_retire_s * 1000
    silent = set(presence.drop_silent(for_ms=retire_ms))
    heard = {listener.name for listener in presence.listeners(within_ms=retire_ms)}
    now = utc_now()
    silent |= {name for name, seen_at in known_listeners(db) if (now - seen_at).total_seconds() * 1000 > retire_ms}
    gone = sorted(silent - heard)
    if gone:
        retire(db, presence, broker, gone)
    for name in gone:
        log.info("listener.retired", listener=name, silent_for_s=settings.listener_retire_s)
    return gone


def retire(db: Database[Document], presence: Presence, broker: Broker, names: Sequence[str]) -> None:
    """Remove what listeners leave: their queues, their heartbeats and counts, their names, in this order. Safe to repeat.

    Raises:
        TransientError: a server is away; what is left goes with the next try.
    """
    for name in names:
        broker.remove_queue(queue_of(name))
    presence.drop(names)
    forget_listeners(db, names)
