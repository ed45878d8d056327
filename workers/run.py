"""The state of one task execution: its claim id, what it holds, what it has confirmed, and its tally."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import structlog

from app.claims.store import Answer, ClaimStore, Held, new_claim_id
from app.errors import RedisUnavailable
from app.events.policy import Policy
from app.messages import Delivery, EventRef
from app.stores.failures import Failure, Origin
from app.stores.progress import Pair
from app.stores.records import Batch, Entry
from workers.handlers import Handler
from workers.runtime import Runtime
from workers.tally import Tally

SUSPECT_FORWARDS = 3
"""A batch sent this often (once, and again twice) may hold an event that kills its listeners."""


class Work(msgspec.Struct):
    """A won event that MongoDB says is unfinished, on its way to its commit.

    Attributes:
        entry, handlers, policy: the event, the handlers for its type, and its type's policy.
        token: fencing token of this claim.
        failure: what is known of earlier runs that failed.
        suspect: whether it may have killed a process, and so runs alone.
        results: what its handlers returned so far.
        result: what the ledger is to keep of them, once all have run; None: nothing.
        solo_noted: a solo run was noted in ``failures`` and has not ended.
        handlers_began: its handlers have begun, in the transaction that was tried last.
        previous_owner: who had its claim before, where it was taken over.
        found: what its earlier runs left in ``failures``, as the check found it.
        generation: its key was reopened so often, and is to be committed again; 0: it is to be committed for the first time;
            :data:`app.stores.ledger.TOMBSTONE`: that, in a tombstone's place.
    """

    entry: Entry
    token: int
    handlers: tuple[Handler, ...]
    policy: Policy
    failure: Failure | None = None
    suspect: bool = False
    results: list[Any] = msgspec.field(default_factory=list)
    result: Any = None
    solo_noted: bool = False
    handlers_began: bool = False
    previous_owner: str = ""
    found: Failure | None = None
    generation: int = 0

    @property
    def pair(self) -> Pair:
        """(key, digest)"""
        return self.entry.key, self.entry.digest

    @property
    def transactional(self) -> list[Handler]:
        """Its handlers that run inside the transaction."""
        return [h for h in self.handlers if not h.at_least_once]

    @property
    def waits(self) -> bool:
        """Whether any of its handlers is ``async def``, so that it runs beside others of its slice."""
        return any(h.is_async for h in self.handlers)

    @property
    def attempts(self) -> int:
        """Runs that raised before this one."""
        return self.failure.attempts if self.failure else 0


def counted_from(accepted_at: datetime, failure: Failure | None) -> datetime:
    """From when an event's retention counts: from when it was accepted, or from when an operator last had it tried again."""
    return max(accepted_at, failure.retried_at) if failure is not None and failure.retried_at is not None else accepted_at


@dataclass(slots=True)
class Run:
    """One execution of the task.

    Attributes:
        held: keys claimed and neither completed nor given back, with their digests.
        confirmed: (key, digest) pairs known finished by an own majority write or a majority read.
        batches: the inbox batches, by id, once fetched.
        entries: of the batches, by (key, digest).
        errors: what earlier runs of failures raised, as ``failures`` has it, once fetched.
    """

    runtime: Runtime
    delivery: Delivery
    claims: ClaimStore
    claim_id: str = field(default_factory=new_claim_id)
    tally: Tally = field(default_factory=Tally)
    held: dict[str, str] = field(default_factory=dict)
    confirmed: set[Pair] = field(default_factory=set)
    batches: dict[str, Batch] = field(default_factory=dict)
    entries: dict[Pair, Entry] = field(default_factory=dict)
    errors: dict[Pair, Any] = field(default_factory=dict)
    log: Any = None

    def __post_init__(self) -> None:
        several = {"batches": len(self.delivery.batches)} if self.delivery.parts else {}
        self.log = structlog.get_logger().bind(listener=self.runtime.listener, batch=self.delivery.batch, claim_id=self.claim_id, **several)

    @property
    def listener(self) -> str:
        """Name of this listener."""
        return self.runtime.listener

    def batch_of(self, key: str) -> Batch | None:
        """The inbox batch that an event is from; None where its body is in ``failures``."""
        name = self.delivery.part_of(key).batch
        return self.batches.get(name) if name is not None else None

    def origin(self, key: str, token: int) -> Origin:
        """Where an event's failure comes from."""
        part, batch = self.delivery.part_of(key), self.batch_of(key)
        door = batch.door if batch is not None else None
        return Origin(batch=part.batch, accepted_at=part.accepted_at, listener=self.listener, token=token, door=door)

    @contextmanager
    def renewing(self, won: Sequence[tuple[EventRef, Answer]], lease_ms: int, session_id: Callable[[str], str]) -> Iterator[None]:
        """Keep the leases of what was won running until the end of the block."""
        held = [
            Held(
                key=key,
                digest=digest,
                claim_id=self.claim_id,
                token=answer.token,
                lease_ms=lease_ms,
                owner=self.listener,
                session=session_id(key),
                previous_owner=answer.owner,
            )
            for (key, digest, _), answer in won
        ]
        with self.runtime.renewal.hold(self.claims, held):
            yield

    def complete(self, keys: Iterable[str]) -> None:
        """Mark held keys done in Redis; MongoDB has them. A Redis that is away costs later copies a look into MongoDB."""
        mine = [(key, self.held.pop(key)) for key in keys if key in self.held]
        self.runtime.renewal.drop(self.claim_id, [key for key, _ in mine])
        try:
            self.claims.complete([k for k, _ in mine], [d for _, d in mine], claim_id=self.claim_id, owner=self.listener)
        except RedisUnavailable as error:
            self.log.warning("claim.complete_failed", keys=len(mine), error=str(error))

    def release(self, keys: Iterable[str]) -> None:
        """Give held keys back. A Redis that is away keeps them until their leases run out."""
        mine = [key for key in keys if self.held.pop(key, None) is not None]
        if not mine:
            return
        self.runtime.renewal.drop(self.claim_id, mine)
        try:
            self.claims.release(mine, claim_id=self.claim_id)
        except RedisUnavailable as error:
            self.log.warning("claim.release_failed", keys=len(mine), error=str(error))

    def confirm(self, pairs: Iterable[Pair]) -> None:
        """Note pairs as finished."""
        self.confirmed.update(pairs)
