"""One sweep: the inbox, the failures, the listeners that fell silent.

Two sweepers at once do no harm, and a sweep that fails is begun anew by the next one. Everything here runs in one thread.
Not guaranteed: that nobody has what is sent again. A copy too many is skipped by the claims or the ledger.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from celery import Celery
from pymongo.database import Database

from app.claims.store import ClaimStore
from app.events.policies import Policies
from app.naming import RECOVERY_QUEUE
from app.presence import Presence
from app.redis_client import Client
from app.retiring import retire_silent
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.mongo import Document
from app.stores.pauses import Pauses
from app.stores.progress import Pair
from broadcaster.roster import Roster
from broadcaster.sending import Sender
from broadcaster.sweeper.backlog import Backlog
from broadcaster.sweeper.report import Report
from broadcaster.sweeper.retries import Group, Retries

log = structlog.get_logger()

_REFUTED_EVERY_S = 10.0
_SILENT_EVERY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deployment:
    """What holds for one deployment, and what was seen of it.

    Attributes:
        retried: failures that were sent, by their copies' places in the recovery queue.
    """

    id: str
    presence: Presence
    retries: Retries
    roster: Roster
    backlog: Backlog
    retried: dict[Pair, int] = field(default_factory=dict)


class Sweeper:
    """Sweeps one deployment, and the next one once its database was dropped. For one thread.

    Args:
        settings: of this process.
        db: the deployment's database.
        redis: returns bytes.
        app: the Celery application.
        being_sent: whether the forwarder of this process has a batch in hand.
        clock: seconds of a clock that never runs backwards.

    Raises:
        PolicyError: the policy file is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database[Document],
        redis: Client,
        app: Celery,
        *,
        being_sent: Callable[[str], bool] = lambda _batch: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._db = db
        self._redis = redis
        self._being_sent = being_sent
        self._clock = clock
        self._sender = Sender(app)
        self._pauses = Pauses(db)
        self._policies = Policies.load(settings.policies, settings)
        self._of: _Deployment | None = None
        self._due_at = {"refuted": clock() + _REFUTED_EVERY_S, "silent": clock() + _SILENT_EVERY_S}

    def restart(self) -> None:
        """Forget what was seen, because others may have been sweeping since."""
        self._of = None

    def sweep(self, deployment: str) -> Report:
        """Look through the inbox and the failures once.

        Args:
            deployment: what MongoDB says this is, now.

        Raises:
            TransientError: a server is away. What was sent before is sent; the next sweep begins anew.
        """
        if self._of is None or self._of.id != deployment:
            self._of = self._begin(deployment)
        of, now = self._of, self._clock()
        of.roster.update(of.presence.listeners(within_ms=self._settings.listener_grace_s * 1000), now)
        listeners = of.roster.live(now)
        report = Report(listeners=len(listeners))
        due = self._due(of, report) if listeners else []
        of.backlog.sweep(report, listeners, now, others=len(due))
        self._retry(of, report, due)
        self._refute(of, report, now)
        self._retire(of, report, now)
        of.presence.note_sweep()
        return report

    def close(self) -> None:
        """Close the connection to the broker."""
        self._sender.close()

    def _begin(self, deployment: str) -> _Deployment:
        heartbeat_s = self._settings.heartbeat_ms / 1000
        # Whoever has been silent for a lease holds no claim any more, so there is no use in waiting for it.
        grace_s = min(self._settings.listener_grace_s, max(self._settings.lease_ms / 1000, 2.5 * heartbeat_s))
        claims = ClaimStore.of(self._settings, self._redis, deployment)
        return _Deployment(
            id=deployment,
            presence=Presence(self._redis, deployment),
            retries=Retries(self._settings, Failures(self._db), Ledger(self._db), claims),
            roster=Roster(grace_s=grace_s, missing_s=2 * heartbeat_s),
            backlog=Backlog(self._settings, self._db, claims, self._sender, self._pauses, self._policies, being_sent=self._being_sent),
        )

    # ------------------------------------------------------------------------------------ failures, and silent listeners

    def _due(self, of: _Deployment, report: Report) -> list[Group]:
        if of.retried:
            left = of.backlog.recovery.left(self._sender.depths([RECOVERY_QUEUE])[RECOVERY_QUEUE])
            for pair in [pair for pair, place in of.retried.items() if place <= left]:
                del of.retried[pair]
        due = of.retries.due(self._pauses.paused(), of.retried)
        report.refuted += due.refuted
        report.forgotten += due.forgotten
        return due.groups

    def _retry(self, of: _Deployment, report: Report, due: list[Group]) -> None:
        if due:
            room = self._settings.queue_high_water - self._sender.depths([RECOVERY_QUEUE])[RECOVERY_QUEUE]
            groups = due[: max(room, 0)]
            self._sender.send([group.outgoing for group in groups])
            for group in groups:
                place = of.backlog.recovery.sent()
                of.retried.update(dict.fromkeys(group.pairs, place))
            of.retries.note_sent(groups)
            report.retried += sum(len(group.pairs) for group in groups)
            report.more = report.more or len(groups) < len(due)
            if groups:
                log.info("failures.retried", events=report.retried, deliveries=len(groups))

    def _refute(self, of: _Deployment, report: Report, now: float) -> None:
        if now >= self._due_at["refuted"]:
            self._due_at["refuted"] = now + _REFUTED_EVERY_S
            report.refuted += of.retries.remove_refuted()

    def _retire(self, of: _Deployment, report: Report, now: float) -> None:
        if now >= self._due_at["silent"]:
            self._due_at["silent"] = now + _SILENT_EVERY_S
            report.retired += len(retire_silent(self._db, of.presence, self._sender, self._settings))
