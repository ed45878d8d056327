"""What is true of the whole deployment, asked of the stores themselves: so every broadcaster tells the same.

Guarantees: no store is asked more than once in ``FRESH_S``, however many scrape; a store that is away costs its own part, after at most
``WAIT_S``; what Redis holds is found while MongoDB is away, once MongoDB has named the deployment. Not guaranteed: that the parts belong
to one instant.
"""

import asyncio
from dataclasses import dataclass

from pymongo.database import Database

from app import redis_client
from app.broker import Broker, is_redis
from app.feeding import FeedState, FeedStates
from app.presence import Listener, Presence, known_listeners
from app.settings import Settings
from app.stores.capacity import Held, measure
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document
from app.stores.pauses import Pauses
from app.totals import Counted, Totals
from broadcaster.watch import Look, Seen

FRESH_S = 1.0
WAIT_S = 2.5
"""Prometheus waits for 10 s by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InMongo:
    """What MongoDB holds.

    Attributes:
        held: what the limits of the doors are about.
        failures: numbers by state.
        listeners: all names that are not forgotten.
    """

    held: Held
    failures: dict[str, int]
    ledger_events: int
    listeners: list[str]
    paused_types: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InRedis:
    """What Redis holds.

    Attributes:
        listeners: those heard of within their grace.
        swept_at_ms: when a sweep last succeeded, by Redis' clock.
    """

    listeners: list[Listener]
    swept_at_ms: int | None
    counted: Counted
    feeds: list[FeedState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """All of it. A store that is away has no value; ``in_redis.value`` is also missing while the deployment's name is unknown.

    Attributes:
        queues: messages by queue; None for a broker that is not asked, since it is no Redis.
    """

    in_mongo: Seen[InMongo]
    redis: Seen[bool]
    in_redis: Seen[InRedis]
    queues: Seen[dict[str, int]] | None


class DeploymentLook:
    """Asks. Belongs to one event loop.

    Args:
        db, settings: of the deployment.
    """

    def __init__(self, db: Database[Document], settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._pauses = Pauses(db)
        self._client = redis_client.connect(settings)
        self._broker = Broker.of(settings, timeout_s=1.0)
        self._deployment = ""
        self._names: list[str] = []
        self._in_mongo: Look[InMongo] = Look(self._ask_mongo, fresh_s=FRESH_S)
        self._redis: Look[bool] = Look(lambda: redis_client.ping(self._client), fresh_s=FRESH_S)
        self._in_redis: Look[InRedis] = Look(self._ask_redis, fresh_s=FRESH_S)
        self._queues: Look[dict[str, int]] = Look(self._ask_broker, fresh_s=FRESH_S)

    async def take(self) -> Deployment:
        """The deployment as it is now."""
        if not self._deployment:
            await self._in_mongo.get(wait_s=WAIT_S)
        in_mongo, redis_seen = await asyncio.gather(self._in_mongo.get(wait_s=WAIT_S), self._redis.get(wait_s=WAIT_S))
        in_redis: Seen[InRedis] = Seen(error="MongoDB has not yet named the deployment")
        if self._deployment and redis_seen.value:
            in_redis = await self._in_redis.get(wait_s=WAIT_S)
        queues = await self._queues.get(wait_s=WAIT_S) if is_redis(self._settings.broker_url) else None
        return Deployment(in_mongo=in_mongo, redis=redis_seen, in_redis=in_redis, queues=queues)

    def close(self) -> None:
        """Close the clients."""
        self._client.close()
        self._broker.close()

    def _ask_mongo(self) -> InMongo:
        self._deployment = deployment_id(self._db)
        self._names = [name for name, _ in known_listeners(self._db)]
        return InMongo(
            held=measure(self._db),
            failures=Failures(self._db).counts(),
            ledger_events=Ledger(self._db).size(),
            listeners=self._names,
            paused_types=len(self._pauses.paused()),
        )

    def _ask_redis(self) -> InRedis:
        presence = Presence(self._client, self._deployment)
        return InRedis(
            listeners=presence.listeners(within_ms=self._settings.listener_grace_s * 1000),
            swept_at_ms=presence.swept_at_ms(),
            counted=Totals(self._client, self._deployment).read(),
            feeds=FeedStates(self._client, self._deployment).all(),
        )

    def _ask_broker(self) -> dict[str, int]:
        return self._broker.waiting(self._names)
