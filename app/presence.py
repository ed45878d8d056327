"""Which listeners live, and what they have received: heartbeats in Redis, names in MongoDB.

Keyspace in Redis:

| key | type | lifetime | meaning |
|---|---|---|---|
| ``dedup:{deployment}:=nodes`` | hash: ``<node>#<pid>`` -> JSON of :class:`Beat` | a field: the listener's retirement | last heartbeat of each worker |
| ``dedup:{deployment}:=sweeper`` | string | for ever | when a sweep last succeeded, in ms of Redis' clock |

(No event key begins with ``=``.) MongoDB ``listeners``: ``{_id: name, v, first_seen_at, last_seen_at}``: the names must
survive Redis. Instants are Redis' clock, so that hosts need not agree on theirs. Losing the hash is healed by the next
heartbeats.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import cast

import msgspec
import structlog
from pymongo.database import Database

from app.naming import MESSAGE_VERSION
from app.redis_client import Client, translated
from app.stores.mongo import Document
from app.stores.mongo import translated as mongo_translated
from app.stores.records import utc_now
from app.totals import Totals


class Beat(msgspec.Struct, frozen=True):
    """One heartbeat of one worker node.

    Attributes:
        node: Celery node name, ``listener-1@host``; another process of the same name has another ``pid``.
        listener: the name before ``@``.
        received_seq: highest forwarding sequence this node has received (0: none since it started).
        at_ms: when, by Redis' clock; set by :meth:`Presence.beat`.
        won, skipped, failed: events since the node started.
        reads: the message version it understands.
        clock_ms: the same moment as ``at_ms``, by its host's clock; 0 where it did not say.
        handlers: what its handlers take, and their names, as ``order.paid shop.handlers.mark_paid``; None where it did not say.
    """

    node: str
    listener: str
    pid: int
    received_seq: int = 0
    at_ms: int = 0
    won: int = 0
    skipped: int = 0
    failed: int = 0
    started_ms: int = 0
    reads: int = MESSAGE_VERSION
    clock_ms: int = 0
    handlers: tuple[str, ...] | None = None


class Listener(msgspec.Struct, frozen=True):
    """A listener name with its live nodes; ``silent_ms`` since the last heartbeat of any of them."""

    name: str
    nodes: list[Beat]
    silent_ms: int

    @property
    def received_seq(self) -> int:
        """Highest sequence that any of its nodes has received: they share one queue, first in first out."""
        return max((n.received_seq for n in self.nodes), default=0)

    @property
    def reads_ours(self) -> bool:
        """Whether all of its nodes, which share its queue, understand the messages that this process writes."""
        return all(node.reads == MESSAGE_VERSION for node in self.nodes)


log = structlog.get_logger(__name__)

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Beat)


class Presence:
    """Heartbeats of one deployment. Thread-safe."""

    def __init__(self, client: Client, deployment: str) -> None:
        self._client = client
        self._deployment = deployment
        self._key = f"dedup:{{{deployment}}}:=nodes"
        self._sweeper_key = f"dedup:{{{deployment}}}:=sweeper"
        self._unreadable: set[bytes] = set()

    def beat(self, beat: Beat) -> None:
        """Say that a node lives.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            at_ms = self.now_ms()
            field = f"{beat.node}#{beat.pid}"
            told = msgspec.structs.replace(beat, at_ms=at_ms, clock_ms=time.time_ns() // 1_000_000)
            self._client.hset(self._key, field, _ENCODER.encode(told))

    def leave(self, node: str, pid: int) -> None:
        """Say that a node has stopped."""
        with translated():
            self._client.hdel(self._key, f"{node}#{pid}")

    def now_ms(self) -> int:
        """Redis' clock in milliseconds."""
        seconds, micros = self._client.time()
        return seconds * 1000 + micros // 1000

    def listeners(self, *, within_ms: int) -> list[Listener]:
        """Listeners heard of within ``within_ms``, by name.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            now_ms = self.now_ms()
            found = cast(dict[bytes, bytes], self._client.hgetall(self._key))
        by_name: dict[str, list[Beat]] = {}
        for beat in self._beats(found).values():
            if now_ms - beat.at_ms <= within_ms:
                by_name.setdefault(beat.listener, []).append(beat)
        return [Listener(name, nodes, max(0, now_ms - max(n.at_ms for n in nodes))) for name, nodes in sorted(by_name.items())]

    def drop_silent(self, *, for_ms: int) -> list[str]:
        """Remove nodes silent for longer than ``for_ms``; returns the listener names that have no node left."""
        with translated():
            now_ms = self.now_ms()
            found = cast(dict[bytes, bytes], self._client.hgetall(self._key))
            beats = self._beats(found)
            gone = [field for field, beat in beats.items() if now_ms - beat.at_ms > for_ms]
            if gone:
                self._client.hdel(self._key, *gone)
        left = {beat.listener for field, beat in beats.items() if field not in gone}
        return sorted({beats[field].listener for field in gone} - left)

    def drop(self, names: Sequence[str]) -> None:
        """Remove the nodes of listeners, and what they counted.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            beats = self._beats(cast(dict[bytes, bytes], self._client.hgetall(self._key)))
            if gone := [field for field, beat in beats.items() if beat.listener in names]:
                self._client.hdel(self._key, *gone)
        Totals(self._client, self._deployment).forget(names)

    def _beats(self, found: dict[bytes, bytes]) -> dict[bytes, Beat]:
        """The heartbeats that can be read, by field. One that cannot is another version's: said once, and left alone."""
        beats: dict[bytes, Beat] = {}
        for field, raw in found.items():
            try:
                beats[field] = _DECODER.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if field not in self._unreadable:
                    self._unreadable.add(field)
                    log.error("heartbeat.unreadable", node=field.decode(errors="replace"), error=str(error))
        return beats

    def note_sweep(self) -> None:
        """Say that a sweep has succeeded.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            self._client.set(self._sweeper_key, self.now_ms())

    def swept_at_ms(self) -> int | None:
        """When a sweep last succeeded, in ms of Redis' clock, or None when Redis knows of none.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            found = cast(bytes | None, self._client.get(self._sweeper_key))
        return None if found is None else int(found)

    def swept_before_ms(self) -> int | None:
        """How long ago a sweep last succeeded, or None when Redis knows of none.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            swept_at_ms = self.swept_at_ms()
            return None if swept_at_ms is None else max(0, self.now_ms() - swept_at_ms)


def remember_listener(db: Database[Document], name: str) -> None:
    """Keep a listener's name in MongoDB, with the time it was last seen."""
    now = utc_now()
    with mongo_translated("noting a listener"):
        db["listeners"].update_one(
            {"_id": name}, {"$set": {"last_seen_at": now, "v": MESSAGE_VERSION}, "$setOnInsert": {"first_seen_at": now}}, upsert=True
        )


def known_listeners(db: Database[Document]) -> list[tuple[str, datetime]]:
    """Every listener name ever seen and not forgotten, with the time it was last seen."""
    with mongo_translated("reading listeners"):
        return [(str(d["_id"]), d["last_seen_at"]) for d in db["listeners"].find().sort("_id")]


def forget_listeners(db: Database[Document], names: Sequence[str]) -> None:
    """Take names out of MongoDB's list."""
    with mongo_translated("forgetting listeners"):
        db["listeners"].delete_many({"_id": {"$in": list(names)}})
