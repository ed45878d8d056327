"""Numbers for ``GET /stats`` and ``/health/ready``.

Guarantees: a store that is away leaves its part out and says why; no request hangs for it. Not guaranteed: that the parts
belong to one instant. ``ledger.events`` comes from the collection's metadata and may be off after a crash of MongoDB; ``dedup audit`` counts.
"""

from collections import Counter
from typing import Any

import msgspec
from pymongo.database import Database

from app import redis_client
from app.broker import Broker, is_redis
from app.naming import queue_of
from app.overview import feeds_of, sweeper_of
from app.presence import Listener, Presence
from app.settings import Settings
from app.stores.capacity import Held
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document, answers
from app.stores.records import utc_now
from broadcaster.answers import age_s
from broadcaster.emitter import Emitter
from broadcaster.ingress import Stored
from broadcaster.refusals import Refusals
from broadcaster.watch import InboxWatch, Look, Seen

MAX_TYPES = 1_000
"""So many types are counted by name; producers choose types, so the memory must be bounded."""
OTHER_TYPES = "*"
WAIT_S = 3.0


class Accepted:
    """What this process accepted since it started."""

    def __init__(self) -> None:
        self.since = utc_now()
        self.events = 0
        self.batches = 0
        self.by_type: Counter[str] = Counter()

    def count(self, stored: list[Stored]) -> None:
        """Count batches."""
        for batch in stored:
            self.batches += 1
            self.events += len(batch.events)
            for event in batch.events:
                name = event.type if event.type in self.by_type or len(self.by_type) < MAX_TYPES else OTHER_TYPES
                self.by_type[name] += 1


class Report:
    """Puts the numbers together."""

    def __init__(
        self, db: Database[Document], settings: Settings, accepted: Accepted, emitter: Emitter, watch: InboxWatch, refusals: Refusals
    ) -> None:
        self._db = db
        self._settings = settings
        self._accepted = accepted
        self._emitter = emitter
        self._watch = watch
        self._refusals = refusals
        self._presence: Presence | None = None
        self._client = redis_client.connect(settings)
        self._broker = Broker.of(settings, timeout_s=1.0)
        self._names: list[str] = []
        self.mongo: Look[bool] = Look(lambda: answers(db), fresh_s=0.5)
        self.redis: Look[bool] = Look(lambda: redis_client.ping(self._client), fresh_s=0.5)
        self.sweeper: Look[dict[str, Any]] = Look(lambda: sweeper_of(self._heard()), fresh_s=0.5)
        self._feeds: Look[list[dict[str, Any]]] = Look(self._foreign, fresh_s=0.5)
        self._alive: Look[list[Listener]] = Look(self._listeners, fresh_s=0.5)
        self._stored: Look[dict[str, Any]] = Look(self._counts, fresh_s=0.5)
        self._queues: Look[dict[str, int]] = Look(self._depths, fresh_s=0.5)

    async def stats(self) -> dict[str, Any]:
        """Everything, as ``GET /stats`` answers."""
        stored = await self._stored.get(wait_s=WAIT_S)
        redis_seen = await self.redis.get(wait_s=WAIT_S)
        listeners = await self._alive.get(wait_s=WAIT_S)
        self._names = [listener.name for listener in listeners.value or ()]
        queues = (
            await self._queues.get(wait_s=WAIT_S) if is_redis(self._settings.broker_url) else Seen(error="only Redis brokers are asked")
        )
        accepted = self._accepted
        return {
            "accepted": {
                "since": accepted.since,
                "events": accepted.events,
                "batches": accepted.batches,
                "by_type": dict(accepted.by_type),
            },
            "refused": self._refusals.view(),
            "inbox": _inbox(await self._watch.look.get(wait_s=WAIT_S)),
            **(stored.value or {"ledger": {"error": stored.error}, "failures": {"error": stored.error}}),
            "listeners": [_listener(listener, queues.value or {}) for listener in listeners.value or ()],
            "feeds": await self._foreign_feeds(),
            "redis": state_of(redis_seen),
            "queues": queues.value if queues.value is not None else {"error": queues.error},
            "socketio": {"clients": self._emitter.clients(), "sent": self._emitter.sent, "dropped": self._emitter.dropped},
        }

    async def _foreign_feeds(self) -> Any:
        seen = await self._feeds.get(wait_s=WAIT_S)
        return {"error": seen.error} if seen.value is None else seen.value

    def _foreign(self) -> list[dict[str, Any]]:
        return feeds_of(self._client, deployment_id(self._db))

    def _counts(self) -> dict[str, Any]:
        return {"ledger": {"events": Ledger(self._db).size()}, "failures": Failures(self._db).counts()}

    def _listeners(self) -> list[Listener]:
        return self._heard().listeners(within_ms=self._settings.listener_grace_s * 1000)

    def _heard(self) -> Presence:
        if self._presence is None:
            self._presence = Presence(self._client, deployment_id(self._db))
        return self._presence

    def _depths(self) -> dict[str, int]:
        return self._broker.waiting(self._names)


def _inbox(seen: Seen[Held]) -> dict[str, Any]:
    if seen.value is None:
        return {"error": seen.error}
    oldest_at = seen.value.oldest_at
    oldest_age_s = None if oldest_at is None else age_s(oldest_at, utc_now())
    return {"batches": seen.value.batches, "bytes": seen.value.bytes, "oldest_age_s": oldest_age_s}


def state_of(seen: Seen[bool]) -> dict[str, Any]:
    """``{"ok": true}``, or why not."""
    return {"ok": True} if seen.value else {"ok": False, "error": seen.error or "no answer"}


def _listener(listener: Listener, depths: dict[str, int]) -> dict[str, Any]:
    nodes = [msgspec.structs.asdict(node) for node in listener.nodes]
    return {
        "name": listener.name,
        "silent_ms": listener.silent_ms,
        "received_seq": listener.received_seq,
        "won": sum(node.won for node in listener.nodes),
        "skipped": sum(node.skipped for node in listener.nodes),
        "failed": sum(node.failed for node in listener.nodes),
        "queue": depths.get(queue_of(listener.name)),
        "nodes": nodes,
    }
