"""One sweep: the inbox, the failures, the listeners that fell silent.

Two sweepers at once do no harm, and a sweep that fails is begun anew by the next one. Everything here runs in one thread.
Not guaranteed: that nobody has what is sent again. A copy too many is skipped by the claims or the ledger.
"""

import time
from collections.abc import Callable

import structlog
from celery import Celery
from pymongo.database import Database

from app.claims.store import ClaimStore
from app.naming import RECOVERY_QUEUE
from app.presence import Presence, known_listeners
from app.redis_client import Client
from app.retiring import retire
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document
from app.stores.pauses import Pauses
from app.stores.progress import Pair
from app.stores.records import utc_now
from broadcaster.roster import Roster
from broadcaster.sending import Sender
from broadcaster.sweeper.backlog import Backlog
from broadcaster.sweeper.report import Report
from broadcaster.sweeper.retries import Group, Retries

log = structlog.get_logger()

_REFUTED_EVERY_S = 10.0
_SILENT_EVERY_S = 30.0


class Sweeper:
    """Sweeps one deployment. For one thread.

    Args:
        settings: of this process.
        db: the deployment's database.
        redis: returns bytes.
        app: the Celery application.
        being_sent: whether the forwarder of this process has a batch in hand.
        clock: seconds of a clock that never runs backwards.
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
        self._deployment = ""
        self._due_at = {"refuted": clock() + _REFUTED_EVERY_S, "silent": clock() + _SILENT_EVERY_S}

    def read_deployment(self) -> str:
        """Ask MongoDB which deployment this is: another one once the database was dropped.

        Raises:
            StoreUnavailable: MongoDB is away.
        """
        found = deployment_id(self._db)
        if found != self._deployment:
            if self._deployment:
                log.warning("bridge.deployment_changed", before=self._deployment, now=found)
            self._deployment = found
            self._presence = Presence(self._redis, found)
            self._claims = ClaimStore.of(self._settings, self._redis, found)
            self._retries = Retries(self._settings, Failures(self._db), Ledger(self._db), self._claims, found)
            self.restart()
        return found

    def restart(self) -> None:
        """Forget what was seen, because others may have been sweeping since."""
        heartbeat_s = self._settings.heartbeat_ms / 1000
        # Whoever has been silent for a lease holds no claim any more, so there is no use in waiting for it.
        grace_s = min(self._settings.listener_grace_s, max(self._settings.lease_ms / 1000, 2.5 * heartbeat_s))
        self._roster = Roster(grace_s=grace_s, missing_s=2 * heartbeat_s)
        self._retried: dict[Pair, int] = {}  # failures that were sent, by their copies' places in the recovery queue
        self._backlog = Backlog(self._settings, self._db, self._claims, self._sender, self._pauses, being_sent=self._being_sent)

    def sweep(self) -> Report:
        """Look through the inbox and the failures once.

        Raises:
            TransientError: a server is away. What was sent before is sent; the next sweep begins anew.
        """
        self.read_deployment()
        now = self._clock()
        self._roster.update(self._presence.listeners(within_ms=self._settings.listener_grace_s * 1000), now)
        listeners = self._roster.live(now)
        report = Report(listeners=len(listeners))
        due = self._due(report) if listeners else []
        self._backlog.sweep(report, listeners, now, others=len(due))
        self._retry(report, due)
        self._refute(report, now)
        self._retire(report, now)
        self._presence.note_sweep()
        return report

    def close(self) -> None:
        """Close the connection to the broker."""
        self._sender.close()

    # ------------------------------------------------------------------------------------ failures, and silent listeners

    def _due(self, report: Report) -> list[Group]:
        if self._retried:
            left = self._backlog.recovery.left(self._sender.depths([RECOVERY_QUEUE])[RECOVERY_QUEUE])
            self._retried = {pair: place for pair, place in self._retried.items() if place > left}
        due = self._retries.due(self._pauses.paused(), self._retried)
        report.refuted += due.refuted
        report.forgotten += due.forgotten
        return due.groups

    def _retry(self, report: Report, due: list[Group]) -> None:
        if due:
            room = self._settings.queue_high_water - self._sender.depths([RECOVERY_QUEUE])[RECOVERY_QUEUE]
            groups = due[: max(room, 0)]
            self._sender.send([group.outgoing for group in groups])
            for group in groups:
                place = self._backlog.recovery.sent()
                self._retried.update(dict.fromkeys(group.pairs, place))
            self._retries.note_sent(groups)
            report.retried += sum(len(group.pairs) for group in groups)
            report.more = report.more or len(groups) < len(due)
            if groups:
                log.info("failures.retried", events=report.retried, deliveries=len(groups))

    def _refute(self, report: Report, now: float) -> None:
        if now >= self._due_at["refuted"]:
            self._due_at["refuted"] = now + _REFUTED_EVERY_S
            report.refuted += self._retries.remove_refuted()

    def _retire(self, report: Report, now: float) -> None:
        if now >= self._due_at["silent"]:
            self._due_at["silent"] = now + _SILENT_EVERY_S
            report.retired += len(self.retire_silent())

    def retire_silent(self) -> list[str]:
        """Forget listeners that have been silent for long, and remove their queues. Returns their names.

        Raises:
            TransientError: a server is away.
        """
        retire_ms = self._settings.listener_retire_s * 1000
        silent = set(self._presence.drop_silent(for_ms=retire_ms))
        heard = {listener.name for listener in self._presence.listeners(within_ms=retire_ms)}
        now = utc_now()
        silent |= {name for name, seen_at in known_listeners(self._db) if (now - seen_at).total_seconds() * 1000 > retire_ms}
        gone = sorted(silent - heard)
        if gone:
            retire(self._db, self._presence, self._sender, gone)
        for name in gone:
            log.info("listener.retired", listener=name, silent_for_s=self._settings.listener_retire_s)
        return gone
