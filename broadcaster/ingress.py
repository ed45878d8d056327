"""Ingress: the one way of an event into the inbox, for every door.

Guarantees:
* What :meth:`Ingress.accept` returns for is in the inbox by majority write. Any transient error means "unknown": the producer
  sends the same events again, and the listeners see that they are the same.
* The events of one request lie in one inbox document, whose ``_id`` is fixed before the first try, so that a write that is
  repeated after a lost reply is recognised.
* Group commit: an event that finds a free writer goes at once, alone; what arrives while all writers are busy goes together.
* A request that is given up by its producer is stored all the same, and cancels nobody else's.
* Bounded: what waits in memory, what one document holds, what one write holds.

Not guaranteed: that an event is new. Whether it was processed before is for the listeners to find out.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import structlog

from app.errors import CommitUnknown, DedupError, InboxFull, InvalidEvent, PermanentError, StoreUnavailable, TransientError
from app.events.event import Event
from app.messages import Announcement, announcement
from app.stores.mongo import Document
from app.stores.records import inbox_document, new_batch_id, utc_now
from app.stores.submission import Submission, prepare
from broadcaster.grouping import Draft, Limits, Waiter, take_group

SHARED_BYTES = 4 * 1024 * 1024
"""Requests share a document up to this size."""
WRITE_BYTES = 24 * 1024 * 1024
WRITE_DOCUMENTS = 16
WAITING_BYTES = 64 * 1024 * 1024
"""Most bytes of events that wait for a writer; beyond it producers are told to come back."""
WRITERS = 2
"""Writes under way at a time: with two, a single event need not wait for a bulk write to end."""
REPEAT_PAUSE_S = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a producer is told: how many distinct events, their keys in the request's order, and their batch."""

    accepted: int
    keys: tuple[str, ...]
    batch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A batch that a majority holds; ``size`` is what its events take in the inbox, in bytes."""

    batch: str
    door: str
    accepted_at: datetime
    events: Sequence[Event]
    size: int

    def announcement(self) -> Announcement:
        """What bridges hear of it."""
        return announcement(self.batch, [(e.key, e.digest, e.type) for e in self.events], self.accepted_at, size=self.size)


class Ingress:
    """Group commit into the inbox. Belongs to one event loop; the writes run in threads of its own.

    Args:
        write: stores inbox documents at majority, safe to repeat (:meth:`app.stores.inbox.Inbox.write`).
        max_events: most events of one document.
        repeat_for_s: how long an unconfirmed write is repeated before its producers are told that it is unknown.
        on_stored: told of every batch after its producers; must not wait.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Document]], None],
        *,
        max_events: int,
        repeat_for_s: float,
        on_stored: Callable[[list[Stored]], None],
    ) -> None:
        self._write = write
        self._limits = Limits(
            document_events=max_events, document_bytes=SHARED_BYTES, write_documents=WRITE_DOCUMENTS, write_bytes=WRITE_BYTES
        )
        self._repeat_for_s = repeat_for_s
        self._on_stored = on_stored
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="inbox")
        self._waiting: deque[Waiter] = deque()
        self._waiting_bytes = 0
        self._writes: set[asyncio.Task[None]] = set()
        self._closing = False
        self.full: str = ""
        """Why no more events are taken in, or empty; set by whoever watches the inbox."""

    async def accept(self, events: Sequence[Event], *, door: str) -> Receipt:
        """Store the events of one request.

        Args:
            events: checked events (:mod:`app.events.parsing`), in the request's order.
            door: where they came in: ``http``, ``socketio``, …

        Raises:
            InvalidEvent: the request cannot be stored; see :func:`~app.stores.submission.prepare`.
            InboxFull: the inbox, or what waits for it, is at its limit.
            StoreUnavailable, CommitUnknown: not known to be stored; the producer repeats the same events.
        """
        self.check_open()
        return await self.submit(prepare(events), door=door)

    def check_open(self) -> None:
        """Refuse early, before a request is read.

        Raises:
            InboxFull: the inbox is at its limit.
            StoreUnavailable: the broadcaster is stopping.
        """
        if self._closing:
            raise StoreUnavailable("the broadcaster is stopping")
        if self.full:
            raise InboxFull(self.full)

    async def submit(self, submission: Submission, *, door: str) -> Receipt:
        """Store what :func:`~app.stores.submission.prepare` made; see :meth:`accept`."""
        self.check_open()
        if self._waiting_bytes + submission.size > WAITING_BYTES:
            raise InboxFull("more events wait to be stored than fit into memory")
        waiter = Waiter(submission=submission, door=door, stored=asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._waiting_bytes += submission.size
        self._start_writes()
        batch = await waiter.stored
        return Receipt(accepted=len(submission.entries), keys=submission.keys, batch=batch)

    async def close(self) -> None:
        """Take nothing more, and finish what was taken."""
        self._closing = True
        while self._writes:
            await asyncio.wait(self._writes)
        self._threads.shutdown(wait=False)

    def _start_writes(self) -> None:
        while self._waiting and len(self._writes) < WRITERS:
            drafts = take_group(self._waiting, self._limits)
            self._waiting_bytes -= sum(waiter.submission.size for draft in drafts for waiter in draft.waiters)
            task = asyncio.get_running_loop().create_task(self._store(drafts))
            self._writes.add(task)
            task.add_done_callback(self._write_ended)

    def _write_ended(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ingress.failed", exc_info=error)
        self._start_writes()

    async def _store(self, drafts: list[Draft]) -> None:
        try:
            await self._store_together(drafts)
        except TransientError as error:
            log.warning("batch.unknown", reason=str(error), requests=sum(len(d.waiters) for d in drafts))
            _fail(drafts, error)
            if isinstance(error, StoreUnavailable):
                self._fail_waiting(error)
        except PermanentError as error:
            log.error("batch.refused", reason=str(error), requests=sum(len(d.waiters) for d in drafts))
            await self._store_apart(drafts, error)
        finally:
            _fail(drafts, StoreUnavailable("the write ended in an unexpected error"))

    async def _store_together(self, drafts: list[Draft]) -> None:
        now = utc_now()
        named = [(new_batch_id(), draft) for draft in drafts]
        await self._write_until_known([inbox_document(name, d.entries, door=d.door, accepted_at=now) for name, d in named])
        for name, draft in named:
            for waiter in draft.waiters:
                if not waiter.stored.done():
                    waiter.stored.set_result(name)
        self._on_stored([Stored(batch=name, door=d.door, accepted_at=now, events=d.events, size=d.size) for name, d in named])

    async def _write_until_known(self, documents: list[Document]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._repeat_for_s
        while True:
            try:
                return await loop.run_in_executor(self._threads, self._write, documents)
            except CommitUnknown:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(REPEAT_PAUSE_S)

    async def _store_apart(self, drafts: list[Draft], error: PermanentError) -> None:
        """One request holds what MongoDB refuses: each goes alone, so that the others do not pay for it."""
        waiters = [w for d in drafts for w in d.waiters]
        if len(waiters) == 1:
            _fail(drafts, InvalidEvent(str(error)))
            return
        for waiter in waiters:
            draft = Draft(waiter.door)
            draft.add(waiter)
            await self._store([draft])

    def _fail_waiting(self, error: StoreUnavailable) -> None:
        """The store is away: whoever waits would only wait for another time-out."""
        for waiter in self._waiting:
            _tell(waiter, error)
        self._waiting.clear()
        self._waiting_bytes = 0


def _fail(drafts: list[Draft], error: DedupError) -> None:
    for draft in drafts:
        for waiter in draft.waiters:
            _tell(waiter, error)


def _tell(waiter: Waiter, error: DedupError) -> None:
    if not waiter.stored.done():
        waiter.stored.set_exception(type(error)(str(error)))
