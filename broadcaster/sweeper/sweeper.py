"""One sweep: the outbox is looked through, and what nobody works on is sent again.

Guarantees:
* Only batches all of whose events a majority of MongoDB shows to be finished are removed. Redis never justifies a removal.
* What is sent again goes as *one* copy to the recovery queue, with the unfinished events only, and only while a listener lives.
* The recovery queue is never filled beyond its high-water mark.
* A batch that is plainly in hands, or parked because its types are paused, costs a look at its head, not at its events.

Not guaranteed: that nobody has what is sent again. A copy too many is skipped by the claims or the ledger.

Two sweepers at once do no harm. Everything here runs in one thread.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from celery import Celery
from pymongo.database import Database

from app.claims.store import ClaimStore, Client
from app.messages import announcement, delivery
from app.naming import MESSAGE_VERSION, RECOVERY_QUEUE, queue_of, task_id
from app.presence import Presence, forget_listeners, known_listeners
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document
from app.stores.pauses import Pauses
from app.stores.progress import Pair, finished
from app.stores.records import utc_now
from broadcaster.roster import Heard, Roster
from broadcaster.sending import Outgoing, Sender
from broadcaster.sweeper.hands import Head, Settled, Verdict, judge
from broadcaster.sweeper.history import BatchHistory, ListenerHistory, RecoveryHistory
from broadcaster.sweeper.lookup import forget_refuted, in_no_hands, look
from broadcaster.sweeper.retries import Retries

log = structlog.get_logger()

_HEADS = 2_000
"""At least so many batches are looked at in one sweep: more than the queues hold."""
_NOTHING = frozenset({""})
"""Types of a batch that is not parked: no type is empty, so this is no part of the paused ones."""
_CHUNK_BATCHES = 20
_DOUBTFUL_PER_SWEEP = 20
_REFUTED_EVERY_S = 10.0
_SILENT_EVERY_S = 30.0


@dataclass(slots=True, kw_only=True)
class Report:
    """What one sweep did.

    Attributes:
        listeners: how many live.
        waiting: batches in the inbox, as far as it was looked through.
        parked: those of them whose unfinished events are all of paused types.
        removed: finished batches removed.
        recovered: batches sent again (or for the first time, where fan-out did not).
        recovered_events: their unfinished events.
        forgotten: marks of done deleted because MongoDB refutes them.
        retried: failed events sent for another try.
        refuted: failures removed because the ledger has their (key, digest).
        retired: listeners whose queues were removed.
        more: the sweep ended at a limit, and the next one may come sooner.
    """

    listeners: int = 0
    waiting: int = 0
    parked: int = 0
    removed: int = 0
    recovered: int = 0
    recovered_events: int = 0
    forgotten: int = 0
    retried: int = 0
    refuted: int = 0
    retired: int = 0
    more: bool = False


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
        self._inbox, self._ledger, self._failures = Inbox(db), Ledger(db), Failures(db)
        self._pauses = Pauses(db)
        self._grace_s = settings.grace_ms / 1000
        self._deployment = ""
        self._refused: set[str] = set()
        self._due_at = {"refuted": clock() + _REFUTED_EVERY_S, "silent": clock() + _SILENT_EVERY_S}
        self.restart()

    def restart(self) -> None:
        """Forget what was seen, because others may have been sweeping since."""
        heartbeat_s = self._settings.heartbeat_ms / 1000
        # Whoever has been silent for a lease holds no claim any more, so there is no use in waiting for it.
        grace_s = min(self._settings.listener_grace_s, max(self._settings.lease_ms / 1000, 2.5 * heartbeat_s))
        self._roster = Roster(grace_s=grace_s, missing_s=2 * heartbeat_s)
        self._listeners = ListenerHistory(grace_s=self._grace_s)
        self._recovery = RecoveryHistory()
        self._batches = BatchHistory()
        self._parked: dict[str, frozenset[str]] = {}

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
            self._retries = Retries(self._settings, self._failures, self._ledger, self._claims, found)
            self.restart()
        return found

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
        self._sweep_inbox(report, listeners, now)
        if listeners:
            self._retry(report)
        self._refute(report, now)
        self._retire(report, now)
        self._presence.note_sweep()
        return report

    def close(self) -> None:
        """Close the connection to the broker."""
        self._sender.close()

    # ------------------------------------------------------------------------------------------------------- the inbox

    def _sweep_inbox(self, report: Report, listeners: list[Heard], now: float) -> None:
        found = self._heads()
        heads = [head for head in found if head["_id"] not in self._parked]
        report.waiting, report.parked = len(found), len(self._parked)
        self._batches.observe(((head["_id"], head["forwards"]) for head in heads), now)
        if not heads or not listeners:
            return
        depths = self._sender.depths([RECOVERY_QUEUE, *(queue_of(heard.name) for heard in listeners)])
        self._recovery.observe((h["_id"] for h in heads if h["forwards"] and not h["seq"]), depths[RECOVERY_QUEUE], now)
        settled = self._listeners.observe(
            {heard.name: heard.received_seq for heard in listeners},
            {heard.name: depths[queue_of(heard.name)] for heard in listeners},
            now,
        )
        room = self._settings.queue_high_water - depths[RECOVERY_QUEUE]
        for number, chunk in enumerate(self._candidates(heads, settled, now)):
            if room <= 0 and number:
                report.more = True
                return
            room -= self._settle(report, chunk, room)

    def _heads(self) -> list[Document]:
        """The oldest batches; parked ones, and those of other versions, do not take the place of others."""
        found: list[Document] = []
        paused = self._pauses.paused()
        limit = max(_HEADS, 3 * self._settings.queue_high_water)
        while True:
            page = self._inbox.heads(limit, after=found[-1]["_id"] if found else "")
            found += page
            parked = {h["_id"]: self._parked[h["_id"]] for h in found if self._parked.get(h["_id"], _NOTHING) <= paused}
            unknown = [head for head in found if head.get("v") != MESSAGE_VERSION]
            if len(page) < limit or len(found) - len(parked) - len(unknown) >= limit:
                self._parked = parked
                self._refuse(unknown)
                return [head for head in found if head.get("v") == MESSAGE_VERSION]

    def _refuse(self, unknown: list[Document]) -> None:
        """Say once of each version that its batches are left to a sweeper that knows it."""
        for version in {repr(head.get("v")) for head in unknown} - self._refused:
            log.error("batch.refused", version=version, batches=len(unknown), first=unknown[0]["_id"], known=MESSAGE_VERSION)
            self._refused.add(version)

    def _candidates(self, heads: list[Document], settled: dict[str, Settled], now: float) -> Iterator[list[Document]]:
        free: list[Document] = []
        doubtful: list[Document] = []
        wall = utc_now()
        for head in heads:
            batch = head["_id"]
            standing = Head(
                seq=head["seq"],
                forwards=head["forwards"],
                seen_at=self._batches.seen_at(batch),
                age_s=max(now - self._batches.first_at(batch), (wall - head["accepted_at"]).total_seconds()),
                being_sent=self._being_sent(batch),
            )
            verdict = judge(
                standing,
                settled,
                now=now,
                taken_at=self._recovery.taken_at(batch),
                grace_s=self._grace_s,
                patience_s=self._settings.lease_ms / 1000,
            )
            if verdict is Verdict.FREE:
                free.append(head)
            elif verdict is Verdict.DOUBTFUL:
                doubtful.append(head)
        yield from _chunks(free, _CHUNK_BATCHES)
        yield from _chunks(doubtful[:_DOUBTFUL_PER_SWEEP], _CHUNK_BATCHES)

    def _settle(self, report: Report, heads: list[Document], room: int) -> int:
        """Remove those batches that are finished, send those again that nobody has. Returns how many were sent."""
        entries = self._inbox.entries_of([head["_id"] for head in heads])
        pairs = list({(key, digest) for events in entries.values() for key, digest, _ in events})
        done = self._finished(pairs)
        rest = [pair for pair in pairs if pair not in done]
        claimed = look(self._claims, rest)
        late, forgotten = forget_refuted(self._claims, [p for p in rest if p in claimed.done], self._finished)
        done |= late
        report.forgotten += forgotten
        paused = self._pauses.paused()
        over: list[str] = []
        again: list[tuple[Document, list[tuple[str, str, str]]]] = []
        for head in heads:
            events = entries.get(head["_id"])
            if events is None:
                continue  # somebody has removed it since
            unfinished = [event for event in events if (event[0], event[1]) not in done]
            if not unfinished:
                over.append(head["_id"])
                continue
            going = [event for event in unfinished if event[2] not in paused]
            if not going:
                self._parked[head["_id"]] = frozenset(kind for _, _, kind in unfinished)
                continue
            free = set(in_no_hands([(key, digest) for key, digest, _ in going], claimed))
            if free:
                again.append((head, [event for event in going if (event[0], event[1]) in free]))
        if over:
            self._inbox.remove(over)
            report.removed += len(over)
        report.more = report.more or len(again) > max(room, 0)
        return self._recover(report, again[: max(room, 0)])

    def _finished(self, pairs: Sequence[Pair]) -> set[Pair]:
        return finished(pairs, ledger=self._ledger, failures=self._failures) if pairs else set()

    def _recover(self, report: Report, again: list[tuple[Document, list[tuple[str, str, str]]]]) -> int:
        if not again:
            return 0
        self._sender.send([self._recovery_copy(head, events) for head, events in again])
        for head, _ in again:
            self._recovery.sent(head["_id"])
        self._inbox.mark_forwarded([(head["_id"], 0) for head, _ in again])
        events = sum(len(events) for _, events in again)
        log.info("batch.recovered", batches=len(again), events=events, first=again[0][0]["_id"], forwards=again[0][0]["forwards"] + 1)
        report.recovered += len(again)
        report.recovered_events += events
        return len(again)

    def _recovery_copy(self, head: Document, events: list[tuple[str, str, str]]) -> Outgoing:
        forwards = head["forwards"] + 1
        message = delivery(announcement(head["_id"], events, head["accepted_at"]), deployment=self._deployment, seq=0, forwards=forwards)
        return Outgoing(queue=RECOVERY_QUEUE, task_id=task_id(events[0][0], len(events) - 1, "recovery", attempt=forwards), message=message)

    # ------------------------------------------------------------------------------------ failures, and silent listeners

    def _retry(self, report: Report) -> None:
        due = self._retries.due(self._pauses.paused())
        report.refuted += due.refuted
        report.forgotten += due.forgotten
        if due.groups:
            room = self._settings.queue_high_water - self._sender.depths([RECOVERY_QUEUE])[RECOVERY_QUEUE]
            groups = due.groups[: max(room, 0)]
            self._sender.send([group.outgoing for group in groups])
            for _ in groups:
                self._recovery.sent(None)
            self._retries.note_sent(groups)
            report.retried += sum(len(group.pairs) for group in groups)
            report.more = report.more or len(groups) < len(due.groups)
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
        for name in gone:
            self._sender.delete_queue(queue_of(name))
            log.info("listener.retired", listener=name, silent_for_s=self._settings.listener_retire_s)
        if gone:
            forget_listeners(self._db, gone)
        return gone


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
