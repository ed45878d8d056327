"""What one process of a listener works with: clients, stores, policies, handlers. Made after the fork, once.

Nothing here is shared between processes. Clients connect lazily, so that an absent server shows at the first call.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database

from app import redis_client
from app.claims.store import ClaimStore
from app.events.policies import Policies
from app.redis_client import Client
from app.settings import Settings
from app.stores import mongo
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.mongo import Document
from app.stores.pauses import Pauses
from workers.ending import ending
from workers.handlers import Registry, registry
from workers.loop import LoopThread
from workers.measures import Measures
from workers.outcomes import Outcomes
from workers.pace import Pace
from workers.renewal import Renewal, kill_this_process


@dataclass(slots=True, kw_only=True)
class Runtime:
    """Everything that the steps of a task need.

    Attributes:
        unended: (key, digest, token) of solo runs that an outage ended, and whose start may still be counted in ``failures``.
        ending: whether this listener ends, and slices that have not begun are to be left.
        outcomes: tells whoever has a live page open.
        measures: counts for the metrics.
        alone: held while a suspect runs, so that only one at a time can take the process down.
    """

    settings: Settings
    listener: str
    db: Database[Document]
    redis: Client
    inbox: Inbox
    ledger: Ledger
    failures: Failures
    pauses: Pauses
    policies: Policies
    handlers: Registry
    renewal: Renewal
    pace: Pace
    outcomes: Outcomes
    measures: Measures
    ending: Callable[[], bool] = lambda: False
    unended: list[tuple[str, str, int]] = field(default_factory=list)
    loop: LoopThread = field(default_factory=LoopThread)
    _async_db: AsyncDatabase[Document] | None = None
    _async_db_inside: AsyncDatabase[Document] | None = None
    alone: threading.Lock = field(default_factory=threading.Lock)
    _claims: dict[str, ClaimStore] = field(default_factory=dict)

    @classmethod
    def build(cls, settings: Settings, listener: str, *, handlers: Registry = registry, in_pool: bool = False) -> "Runtime":
        """Make the clients and stores.

        Args:
            settings: of this process.
            listener: name of this listener.
            handlers: the declared handlers.
            in_pool: whether this is a child process that a pool replaces when it dies.

        Raises:
            PolicyError: the policy file is wrong.
        """
        db = mongo.connect(settings, role=listener)
        redis = redis_client.connect(settings)
        measures = Measures(redis, listener, every_s=settings.heartbeat_ms / 1000)
        return cls(
            settings=settings,
            listener=listener,
            db=db,
            redis=redis,
            inbox=Inbox(db),
            ledger=Ledger(db),
            failures=Failures(db),
            pauses=Pauses(db),
            policies=Policies.load(settings.policies, settings),
            handlers=handlers,
            renewal=Renewal(
                settings.renew_ms,
                hang_grace_s=settings.lease_ms / 1000,
                on_hang=kill_this_process if in_pool else None,
                on_lost=measures.lost,
            ),
            pace=Pace(settings.slice_target_ms),
            outcomes=Outcomes(redis, listener),
            measures=measures,
        )

    def claims_of(self, deployment: str) -> ClaimStore:
        """The claim store of a deployment: the one that the delivery names."""
        found = self._claims.get(deployment)
        if found is None:
            found = self._claims[deployment] = ClaimStore.of(self.settings, self.redis, deployment)
        return found

    def async_db(self) -> AsyncDatabase[Document]:
        """The database for ``async def`` handlers; its client lives on :attr:`loop`."""
        if self._async_db is None:
            self._async_db = mongo.connect_async(self.settings, role=self.listener)
        return self._async_db

    def async_db_in_transaction(self) -> AsyncDatabase[Document]:
        """The same for handlers inside a transaction; made once, for it is handed out for every event."""
        if self._async_db_inside is None:
            self._async_db_inside = mongo.in_transaction(self.async_db())
        return self._async_db_inside

    def close(self) -> None:
        """Close the clients."""
        self.renewal.close()
        self.outcomes.close()
        self.measures.close()
        if self._async_db is not None:
            self.loop.run(self._async_db.client.close())
        self.loop.close()
        self.db.client.close()
        self.redis.close()


_current: Runtime | None = None
_lock = threading.Lock()


def current(settings: Settings, listener: str, *, in_pool: bool) -> Runtime:
    """The runtime of this process, made at the first call."""
    global _current  # noqa: PLW0603 - one per process, made after the fork
    if _current is None or _current.listener != listener:
        with _lock:
            if _current is None or _current.listener != listener:
                _current = Runtime.build(settings, listener, in_pool=in_pool)
                _current.ending = ending.begun
    return _current


def end_current() -> None:
    """At the end of this process: add the last of what it counted."""
    if _current is not None:
        _current.measures.close()
