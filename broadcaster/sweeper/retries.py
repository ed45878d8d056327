"""Failures: those that are due are sent again, those that the ledger refutes are removed.

Guarantees: a suspect (an event whose solo run began and never ended) travels alone; a failure is removed only when a majority
of MongoDB shows its (key, digest) in the ledger.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from app.claims.store import ClaimStore
from app.messages import Announcement, announcement, delivery
from app.naming import MESSAGE_VERSION, RECOVERY_QUEUE, task_id
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.mongo import Document
from app.stores.progress import Pair
from broadcaster.sending import Outgoing
from broadcaster.sweeper.lookup import forget_refuted, look
from broadcaster.together import together

log = structlog.get_logger()

_DUE_PER_SWEEP = 500
_EVENTS_PER_DELIVERY = 50
_SCAN_PER_ROUND = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Failures that travel together, and their delivery."""

    pairs: list[Pair]
    outgoing: Outgoing


@dataclass(slots=True, kw_only=True)
class Due:
    """What is due now: deliveries to send; and how many failures and marks of done were removed in finding that out."""

    groups: list[Group] = field(default_factory=list)
    refuted: int = 0
    forgotten: int = 0


class Retries:
    """The failures of one deployment, as the sweeper sees them. For one thread."""

    def __init__(self, settings: Settings, failures: Failures, ledger: Ledger, claims: ClaimStore) -> None:
        self._settings = settings
        self._failures = failures
        self._ledger = ledger
        self._claims = claims
        self._scanned_to = ""
        self._refused: set[str] = set()

    def due(self, paused: Collection[str] = (), under_way: Container[Pair] = ()) -> Due:
        """Find what is due, unfinished, of no paused type, in nobody's claim, and not under way.

        Args:
            paused: types to leave alone.
            under_way: pairs whose last copy still waits in the recovery queue.

        Raises:
            TransientError: MongoDB or Redis is away.
        """
        found = self._failures.due(_DUE_PER_SWEEP, paused=paused)
        due = Due()
        if not found:
            return due
        pairs = [_pair(failure) for failure in found]
        done = self._committed(pairs)
        claimed = look(self._claims, pairs)
        late, due.forgotten = forget_refuted(self._claims, [p for p in pairs if p in claimed.done and p not in done], self._committed)
        done |= late
        if done:
            due.refuted = self._failures.remove(done, _by_key(done))
        left = [f for f in found if _pair(f) not in done]
        free = [f for f in left if _pair(f) not in claimed.live and not _waits(f, under_way)]
        if held := {_pair(f) for f in left} - {_pair(f) for f in free}:
            self._failures.postpone(list(held), by_ms=self._settings.grace_ms)
        attempts = {_pair(f): f["attempts"] + f["starts"] + 1 for f in free}
        due.groups = [self._group(announced, attempts) for announced in _travelling(free)]
        return due

    def note_sent(self, groups: Sequence[Group]) -> None:
        """Put off what was sent: it comes up again when nothing has happened to it after a lease and a grace."""
        if groups:
            pairs = [pair for group in groups for pair in group.pairs]
            self._failures.postpone(pairs, by_ms=self._settings.lease_ms + self._settings.grace_ms)

    def remove_refuted(self) -> int:
        """Look through some of all failures, from where the last round ended, and remove those that the ledger has.

        That goes for every state: a conflict whose digest is in the ledger has been decided.
        """
        found = self._failures.scan(self._scanned_to, _SCAN_PER_ROUND)
        self._scanned_to = found[-1]["_id"] if len(found) == _SCAN_PER_ROUND else ""
        self._refuse([failure for failure in found if failure.get("v") != MESSAGE_VERSION])
        done = self._committed([_pair(failure) for failure in found if failure.get("v") == MESSAGE_VERSION])
        return self._failures.remove(done, _by_key(done)) if done else 0

    def _refuse(self, unknown: Sequence[Document]) -> None:
        """Say once of each version that its failures are left to a sweeper that knows it."""
        for version in {repr(failure.get("v")) for failure in unknown} - self._refused:
            log.error("failure.refused", version=version, failures=len(unknown), first=unknown[0]["_id"], known=MESSAGE_VERSION)
            self._refused.add(version)

    def _committed(self, pairs: Sequence[Pair]) -> dict[Pair, int]:
        """Those that are committed, with the generation of the ledger's document."""
        committed = self._ledger.find([key for key, _ in pairs]) if pairs else {}
        return {(key, digest): committed[key].generation for key, digest in pairs if key in committed and digest in committed[key].digests}

    def _group(self, announced: list[Announcement], attempts: Mapping[Pair, int]) -> Group:
        message = delivery(announced, deployment=self._claims.deployment, seq=0, forwards=1)
        pairs = list(zip(message["keys"], message["digests"], strict=True))
        name = task_id(pairs[0][0], len(pairs) - 1, "retry", attempt=attempts[pairs[0]])
        return Group(pairs=pairs, outgoing=Outgoing(queue=RECOVERY_QUEUE, task_id=name, message=message))


def _by_key(done: Mapping[Pair, int]) -> dict[str, int]:
    return {key: generation for (key, _), generation in done.items()}


def _waits(failure: Document, under_way: Container[Pair]) -> bool:
    """Whether its last copy waits in the queue: nobody has noted anything since that was sent."""
    return failure.get("sent_until") is not None and _pair(failure) in under_way


def _pair(failure: Document) -> Pair:
    return failure["key"], failure["digest"]


def _travelling(failures: list[Document]) -> list[list[Announcement]]:
    """Which failures share a delivery: suspects with none; two of one key neither."""
    alone = [[_announced(failure)] for failure in failures if failure["starts"] > 0]
    plain = sorted((f for f in failures if f["starts"] <= 0), key=lambda f: (f["accepted_at"], f["batch"] or ""))
    return alone + together([_announced(failure) for failure in plain], max_events=_EVENTS_PER_DELIVERY)


def _announced(failure: Document) -> Announcement:
    event = (failure["key"], failure["digest"], failure["type"])
    return announcement(None, [event], failure["accepted_at"], size=failure["bytes"])
