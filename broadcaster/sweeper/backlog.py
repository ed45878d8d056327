"""The inbox, as the sweeper goes through it: finished batches are removed, those in no hands are sent again.

Guarantees:
* Only batches all of whose events a majority of MongoDB shows to be finished are removed. Redis never justifies a removal.
* What is sent again goes as *one* copy to the recovery queue, with the unfinished events only, and only while a listener lives. Small batches
  share a delivery, spread over the listeners; one that was sent twice before travels alone, since it may hold an event that kills its listeners.
* Batches that share a delivery are in the same hands: whoever works on one of them may come to the others by itself.
* The recovery queue is never filled beyond its high-water mark, and never with what is in the inbox alone while failures are due.
* A batch that is plainly in hands, or parked because its types are paused, costs a look at its head, not at its events.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from pymongo.database import Database

from app.claims.store import ClaimStore
from app.events.policies import Policies
from app.messages import Announcement, EventRef, announcement, delivery
from app.naming import MESSAGE_VERSION, RECOVERY_QUEUE, queue_of, task_id
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.mongo import Document
from app.stores.pauses import Pauses
from app.stores.progress import Pair, Progress, progress
from app.stores.records import utc_now
from broadcaster.roster import Heard
from broadcaster.sending import Outgoing, Sender
from broadcaster.sweeper.hands import Head, Settled, Verdict, judge
from broadcaster.sweeper.history import BatchHistory, ListenerHistory, RecoveryHistory
from broadcaster.sweeper.lookup import forget_refuted, in_no_hands, look
from broadcaster.sweeper.report import Report
from broadcaster.together import together

log: Any = structlog.get_logger()

_HEADS = 10_000
"""At least so many batches are looked at in one sweep, the oldest; those behind them wait until some of these are finished."""
_APART_S = 60.0
"""So long a batch is passed over whose events only another version can read: by a sweeper of this one, nothing can be done for it."""
_CHUNK_EVENTS = 10_000
"""Looked up at a time."""
_MOST_EVENTS = 500
"""Of a batch that does not say how many it has."""
_ALONE_FROM = 2
"""Forwards from which on a batch travels alone."""
_COPY_EVENTS = 50
"""Most events of several batches: one listener has the copy, and the others are to have some, too."""
_COPIES_PER_LISTENER = 4
"""So many at least, where there are so many batches."""
_DOUBTFUL_PER_SWEEP = 20


class Backlog:
    """The inbox of one deployment, with what was seen of it so far. For one thread.

    Args:
        settings: of this process.
        db: the deployment's database.
        claims: the deployment's claims.
        sender: to the broker.
        pauses: which types are paused.
        policies: which types ignore other content of a committed key.
        being_sent: whether the forwarder of this process has a batch in hand.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database[Document],
        claims: ClaimStore,
        sender: Sender,
        pauses: Pauses,
        policies: Policies,
        *,
        being_sent: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._claims = claims
        self._sender = sender
        self._pauses = pauses
        self._policies = policies
        self._being_sent = being_sent
        self._inbox, self._ledger, self._failures = Inbox(db), Ledger(db), Failures(db)
        self._grace_s = settings.grace_ms / 1000
        self._listeners = ListenerHistory(grace_s=self._grace_s)
        self._batches = BatchHistory()
        self._parked: dict[str, frozenset[str]] = {}
        self._refused: set[str] = set()
        self._events_refused = False
        self._apart: dict[str, float] = {}
        self._odd_is_ours = False
        self._looks = 0
        self._looked_at: dict[Any, int] = {}
        self.recovery = RecoveryHistory()
        """What was sent to the recovery queue; others who send there say so."""

    def sweep(self, report: Report, listeners: list[Heard], now: float, *, others: int = 0) -> None:
        """Look through the inbox once.

        Args:
            report: what was done is added to it.
            listeners: those that live.
            now: this instant, in seconds of the clock of ``listeners``.
            others: deliveries that the caller would like to send to the recovery queue; half of its room is left to them.

        Raises:
            TransientError: a server is away.
        """
        found = self._heads(now)
        heads = [head for head in found if head["_id"] not in self._parked]
        report.waiting, report.parked = len(found), len(self._parked)
        self._batches.observe(((head["_id"], head["forwards"]) for head in heads), now)
        if not heads or not listeners:
            return
        depths = self._sender.depths([RECOVERY_QUEUE, *(queue_of(heard.name) for heard in listeners)])
        self.recovery.observe((h["_id"] for h in heads if h["forwards"] and not h["seq"]), depths[RECOVERY_QUEUE], now)
        settled = self._listeners.observe(
            {heard.name: heard.received_seq for heard in listeners},
            {heard.name: depths[queue_of(heard.name)] for heard in listeners},
            now,
        )
        room = self._share(self._settings.queue_high_water - depths[RECOVERY_QUEUE], others)
        for number, chunk in enumerate(self._candidates(heads, settled, now)):
            if room <= 0 and number:
                report.more = True
                return
            room -= self._settle(report, chunk, room, now, spread=_COPIES_PER_LISTENER * len(listeners))
        report.more = report.more or (len(heads) >= self._most_heads and bool(report.recovered or report.removed))

    def _share(self, room: int, others: int) -> int:
        """So much room is the inbox's: half of it where others want some, so that neither waits for the other's backlog to end."""
        self._odd_is_ours = not self._odd_is_ours
        return room - min(others, (max(room, 0) + (not self._odd_is_ours)) // 2)

    @property
    def _most_heads(self) -> int:
        return max(_HEADS, 3 * self._settings.queue_high_water)

    def _heads(self, now: float) -> list[Document]:
        """The oldest batches; parked ones, and what other versions wrote, do not take the place of others."""
        known: list[Document] = []
        unknown: list[Document] = []
        parked: dict[str, frozenset[str]] = {}
        after = ""
        self._apart = {batch: until for batch, until in self._apart.items() if until > now}
        paused = self._pauses.paused()
        limit = self._most_heads
        while True:
            page = self._inbox.heads(limit, after=after)
            known_parked = {h["_id"]: self._parked[h["_id"]] for h in page if h["_id"] in self._parked}
            parked |= {batch: types for batch, types in known_parked.items() if types <= paused}
            unknown += [head for head in page if head.get("v") != MESSAGE_VERSION]
            known += [head for head in page if head.get("v") == MESSAGE_VERSION and head["_id"] not in self._apart]
            after = page[-1]["_id"] if page else after
            if len(page) < limit or len(known) - len(parked) >= limit:
                self._parked = parked
                self._refuse(unknown)
                return known

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
                seq=head["seq"] or 0,
                forwards=head["forwards"],
                seen_at=self._batches.seen_at(batch),
                age_s=max(now - self._batches.first_at(batch), (wall - head["accepted_at"]).total_seconds()),
                being_sent=self._being_sent(batch),
            )
            verdict = judge(
                standing,
                settled,
                now=now,
                taken_at=self.recovery.taken_at(batch),
                grace_s=self._grace_s,
                patience_s=self._settings.lease_ms / 1000,
            )
            if verdict is Verdict.FREE:
                free.append(head)
            elif verdict is Verdict.DOUBTFUL:
                doubtful.append(head)
        yield from _chunks(self._by_delivery(free))
        yield from _chunks(self._longest_unseen(self._by_delivery(doubtful)))

    def _longest_unseen(self, deliveries: list[list[Document]]) -> list[list[Document]]:
        """Some of the doubtful ones, in turns: a slow listener's stay doubtful for long, and must not hide a dead one's."""

        def looked_at(heads: list[Document]) -> int:
            return self._looked_at.get(self._delivery_of(heads[0]), 0)

        chosen = sorted(deliveries, key=looked_at)[:_DOUBTFUL_PER_SWEEP]
        self._looked_at = {self._delivery_of(heads[0]): looked_at(heads) for heads in deliveries}
        self._looks += 1
        self._looked_at.update((self._delivery_of(heads[0]), self._looks) for heads in chosen)
        return chosen

    def _by_delivery(self, heads: Sequence[Document]) -> list[list[Document]]:
        groups: dict[Any, list[Document]] = {}
        for head in heads:
            groups.setdefault(self._delivery_of(head), []).append(head)
        return list(groups.values())

    def _delivery_of(self, head: Document) -> Any:
        """What the batches of one delivery have in common: their place in the fan-out, or the copy in which this process sent them again."""
        return head["seq"] or self.recovery.copy(head["_id"]) or head["_id"]

    def _settle(self, report: Report, heads: list[Document], room: int, now: float, *, spread: int) -> int:
        """Remove those batches that are finished, send those again that nobody has. Returns in how many copies."""
        entries = self._inbox.entries_of([head["_id"] for head in heads])
        pairs = list({(key, digest) for events in entries.values() for key, digest, _ in events})
        ignored = {
            (key, digest) for events in entries.values() for key, digest, kind in events if self._policies.of(kind).ignores_conflicts
        }
        standing = self._progress(pairs, ignored)
        self._refuse_events(standing.refused)
        done = standing.finished
        rest = [pair for pair in pairs if pair not in done and pair not in standing.refused]
        claimed = look(self._claims, rest)
        marked = [pair for pair in rest if pair in claimed.done]
        late, forgotten = forget_refuted(self._claims, marked, lambda some: self._progress(some, ignored).finished)
        done |= late
        report.forgotten += forgotten
        paused = self._pauses.paused()
        over: list[str] = []
        unfinished_of: dict[Any, list[tuple[Document, list[EventRef]]]] = {}
        for head in heads:
            events = entries.get(head["_id"])
            if events is None:
                continue  # somebody has removed it since
            unfinished = [event for event in events if (event[0], event[1]) not in done]
            if not unfinished:
                over.append(head["_id"])
                continue
            readable = [event for event in unfinished if (event[0], event[1]) not in standing.refused]
            going = [event for event in readable if event[2] not in paused]
            if not going:
                if readable == unfinished:
                    self._parked[head["_id"]] = frozenset(kind for _, _, kind in unfinished)
                else:
                    self._apart[head["_id"]] = now + _APART_S
                continue
            unfinished_of.setdefault(self._delivery_of(head), []).append((head, going))
        if over:
            self._inbox.remove(over)
            report.removed += len(over)
        again: list[tuple[Document, list[EventRef]]] = []
        for batches in unfinished_of.values():
            free = set(in_no_hands([(key, digest) for _, going in batches for key, digest, _ in going], claimed))
            again += [(head, some) for head, going in batches if (some := [event for event in going if (event[0], event[1]) in free])]
        copies = _copies(again, spread)
        report.more = report.more or len(copies) > max(room, 0)
        return self._recover(report, copies[: max(room, 0)])

    def _progress(self, pairs: Sequence[Pair], ignored: set[Pair]) -> Progress:
        if not pairs:
            return Progress(finished=set(), refused=set())
        return progress(pairs, ledger=self._ledger, failures=self._failures, ignored=ignored)

    def _refuse_events(self, pairs: set[Pair]) -> None:
        """Say once that events are left to a sweeper that can read what is noted of them."""
        if pairs and not self._events_refused:
            log.error("event.refused", events=len(pairs), first=min(pairs)[0], known=MESSAGE_VERSION, reason="a record of another version")
            self._events_refused = True

    def _recover(self, report: Report, copies: list["_Copy"]) -> int:
        if not copies:
            return 0
        self._sender.send([self._outgoing(copy) for copy in copies])
        for copy in copies:
            self.recovery.sent(*copy.batches)
        batches = [batch for copy in copies for batch in copy.batches]
        self._inbox.mark_forwarded([(batch, 0) for batch in batches])
        events = sum(len(one["keys"]) for copy in copies for one in copy.announced)
        forwards = max(copy.forwards for copy in copies)
        log.info("batch.recovered", batches=len(batches), deliveries=len(copies), events=events, first=batches[0], forwards=forwards)
        report.recovered += len(batches)
        report.recovered_events += events
        return len(copies)

    def _outgoing(self, copy: "_Copy") -> Outgoing:
        message = delivery(copy.announced, deployment=self._claims.deployment, seq=0, forwards=copy.forwards)
        name = task_id(message["keys"][0], len(message["keys"]) - 1, "recovery", attempt=copy.forwards)
        return Outgoing(queue=RECOVERY_QUEUE, task_id=name, message=message)


@dataclass(frozen=True, slots=True)
class _Copy:
    """Batches that go to the recovery queue in one delivery, for the ``forwards``-th time."""

    announced: list[Announcement]
    forwards: int

    @property
    def batches(self) -> list[str]:
        return [one["batch"] for one in self.announced]


def _copies(again: Sequence[tuple[Document, list[EventRef]]], spread: int) -> list[_Copy]:
    """Which batches share a copy: of as many events as make ``spread`` copies of all; the oldest first."""
    max_events = max(1, min(_COPY_EVENTS, sum(len(events) for _, events in again) // spread))
    by_forwards: dict[int, list[Announcement]] = {}
    for head, events in again:
        size = head.get("bytes") if head["forwards"] < _ALONE_FROM else None
        announced = announcement(head["_id"], events, head["accepted_at"], size=size)
        by_forwards.setdefault(head["forwards"] + 1, []).append(announced)
    copies = [_Copy(group, forwards) for forwards, announced in by_forwards.items() for group in together(announced, max_events=max_events)]
    return sorted(copies, key=lambda copy: copy.batches[0])


def _chunks(groups: list[list[Document]]) -> Iterator[list[Document]]:
    """Heads that are looked up together: whole deliveries."""
    chunk: list[Document] = []
    events = 0
    for heads in groups:
        chunk += heads
        events += sum(head.get("count", _MOST_EVENTS) for head in heads)
        if events >= _CHUNK_EVENTS:
            yield chunk
            chunk, events = [], 0
    if chunk:
        yield chunk
