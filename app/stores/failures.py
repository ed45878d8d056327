"""Failures: every (key, digest) that did not go through, with its body. Nothing fails silently.

| field | type | meaning |
|---|---|---|
| ``_id`` | str | ``<key>#<digest>`` |
| ``v`` | int | version of this form; a document of another one is left alone, and its event with it |
| ``state`` | str | ``retrying``, ``dead``, ``conflict``, ``malformed``, ``stale`` |
| ``key, digest, type, body`` | | the event |
| ``attempts`` | int | handler runs that raised |
| ``starts`` | int | solo runs that began and have not ended: a run that kills or hangs its process leaves its mark here |
| ``solo`` | long | fencing token of the last solo run that began, until it ends: so an end is counted once |
| ``due_at`` | date | state ``retrying``: when to try again, by MongoDB's clock |
| ``sent_until`` | date | the sweeper has sent it, and waits this long before it sends it again |
| ``reason``, ``error`` | str, document | why; ``{type, message, traceback}`` |
| ``preferred`` | bool | an operator chose this content among those of its key |
| ``retried_at`` | date | when an operator last had it tried again, by MongoDB's clock: its retention counts from then |
| ``other_digest`` | str | state ``conflict``: the digest that holds the key |
| ``token`` | long | fencing token of the last writer; an older writer changes nothing |
| ``generation`` | int | it is to be processed again (:mod:`app.reprocessing`): only a ledger document of this generation refutes it |
| ``decisions`` | array | what operators decided: ``{at, by, what, digest}`` |
| ``batch, door, accepted_at, first_failed_at, updated_at, listener`` | | where it came from, when, by whom |

State machine: ``retrying -> dead | conflict | stale | (gone, once the ledger has it)``; the others stay until an operator decides. The ledger
wins: a document whose (key, digest) is in the ledger is garbage, and removed by whoever sees it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, ReturnDocument
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError

from app.errors import StoreUnavailable
from app.naming import MESSAGE_VERSION
from app.stores.mongo import DUPLICATE_KEY, RAW, Document, server_now, translated
from app.stores.records import Entry, entry_from, utc_now

BLOCKING = ("retrying", "dead")
"""States in which another digest of the same key is in conflict with this one."""

UNKNOWN = "unknown"
"""Stands as state of what another version of this software wrote: nobody here can tell what it says."""
_NEVER = datetime.fromtimestamp(0, UTC)


class Failure(msgspec.Struct, frozen=True):
    """What ``failures`` says about one (key, digest)."""

    key: str
    digest: str
    state: str
    attempts: int
    starts: int
    due_at: datetime | None
    first_failed_at: datetime
    accepted_at: datetime
    token: int
    batch: str | None = None
    preferred: bool = False
    door: str | None = None
    updated_at: datetime | None = None
    listener: str | None = None
    reason: str | None = None
    error: Any = None
    decisions: list[Any] = []
    generation: int = 0
    retried_at: datetime | None = None

    @property
    def known(self) -> bool:
        """Whether this software can read it; else nothing may be decided about its key."""
        return self.state != UNKNOWN

    @property
    def order(self) -> tuple[bool, datetime, str]:
        """Which of several contents of a key comes first: the one an operator chose, else the one that failed first."""
        return not self.preferred, self.first_failed_at, self.digest


class Problem(msgspec.Struct, frozen=True):
    """Why an event failed: a reason of a few words, and the exception where there was one."""

    reason: str
    error: dict[str, str] | None = None


_STATE = dict.fromkeys(
    (
        *("v", "key", "digest", "state", "attempts", "starts", "due_at", "first_failed_at", "accepted_at", "token", "batch", "preferred"),
        *("door", "updated_at", "listener", "reason", "decisions", "generation", "retried_at"),
    ),
    1,
)


COUNTS: list[Document] = [{"$sort": {"state": ASCENDING}}, {"$group": {"_id": "$state", "n": {"$sum": 1}}}]
"""Numbers by state; in the order of an index, or else MongoDB would read the documents."""


class Failures:
    """The collection ``failures`` of one deployment. Thread-safe. Every write is at majority."""

    def __init__(self, db: Database[Document]) -> None:
        self.collection = db["failures"]
        self._raw: Collection[RawBSONDocument] = self.collection.with_options(codec_options=RAW)

    def ensure_indexes(self) -> None:
        """Make the indexes by key and by due time; safe to repeat."""
        with translated("making the indexes of failures"):
            self.collection.create_index("key", name="key")
            self.collection.create_index([("state", ASCENDING), ("due_at", ASCENDING)], name="due")

    def now(self) -> datetime:
        """MongoDB's clock, which ``due_at`` and ``sent_until`` are by: hosts need not agree on theirs."""
        return server_now(self.collection.database)

    def of_keys(self, keys: Sequence[str]) -> dict[str, list[Failure]]:
        """Failures by key, in their order, by majority read."""
        with translated("reading failures"):
            found = list(self.collection.find({"key": {"$in": list(keys)}}, _STATE))
        by_key: dict[str, list[Failure]] = {}
        for failure in sorted((_failure(document) for document in found), key=lambda f: f.order):
            by_key.setdefault(failure.key, []).append(failure)
        return by_key

    def fetch(self, pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[Entry, Failure]]:
        """The failures of ``(key, digest)`` pairs with their bodies, by id; those of other versions are left out."""
        with translated("fetching failures"):
            found = self._raw.find({"_id": {"$in": [failure_id(k, d) for k, d in pairs]}, "v": MESSAGE_VERSION})
            return {d["_id"]: (entry_from(d), _failure(d)) for d in found}

    def record_attempt(
        self, entry: Entry, origin: "Origin", problem: Problem, *, delay_ms: int | None, ended_start: bool, counts: bool = True
    ) -> bool:
        """Note a run that raised, and when it is due again; with ``delay_ms=None`` the event is dead.

        Args:
            entry: the event.
            origin: batch, listener and fencing token of the writer.
            problem: what went wrong.
            delay_ms: pause before the next attempt, or None for none.
            ended_start: the run had been noted by :meth:`record_start`; it has ended now.
            counts: whether it is an attempt (``RetryLater`` is none).

        Returns:
            False when a later winner (with a higher token) has written already, or another version; then nothing is changed.
        """
        now = self.now()
        fields: Document = {
            "state": "dead" if delay_ms is None else "retrying",
            "reason": problem.reason,
            "due_at": None if delay_ms is None else now + timedelta(milliseconds=delay_ms),
        }
        if problem.error is not None:
            fields["error"] = problem.error
        attempts = int(counts)
        if ended_start and self._advance(entry, origin, fields, {"attempts": attempts, "starts": -1}, solo=True):
            return True
        return self._advance(entry, origin, fields, {"attempts": attempts, "starts": 0})  # its start is not there (any more)

    def record_start(self, entry: Entry, origin: "Origin", *, due_ms: int) -> Failure | None:
        """Count a solo run before it begins; should it never end, it is due again after ``due_ms``.

        Returns:
            The failure with its new counts, or None when a later winner has written already, or another version.
        """
        fields: Document = {"state": "retrying", "due_at": self.now() + timedelta(milliseconds=due_ms), "solo": origin.token}
        if not self._advance(entry, origin, fields, {"attempts": 0, "starts": 1}, default_reason="a run that has not ended"):
            return None
        with translated("reading a failure"):
            found = self.collection.find_one({"_id": failure_id(entry.key, entry.digest)}, _STATE)
        return None if found is None else _failure(found)

    def end_start(self, key: str, digest: str, token: int) -> None:
        """Take back the start of the run with this token, which an outage ended; the event is due at once.

        Safe to repeat, and when the start was never stored.
        """
        with translated("recording a failure"):
            self.collection.update_one(
                {"_id": failure_id(key, digest), "v": MESSAGE_VERSION, "state": "retrying", "solo": token},
                {"$inc": {"starts": -1}, "$set": {"due_at": self.now(), "sent_until": None}, "$unset": {"solo": ""}},
            )

    def _advance(
        self,
        entry: Entry,
        origin: "Origin",
        fields: Document,
        counts: dict[str, int],
        *,
        default_reason: str | None = None,
        solo: bool = False,
    ) -> bool:
        """Write what a run has led to, unless a later winner has written; with ``solo`` only where this run's start is noted."""
        now = utc_now()
        on_insert = _identity(entry, origin, now)
        if default_reason is not None:
            on_insert["reason"] = default_reason
        update: Document = {
            "$set": {**fields, "sent_until": None, "updated_at": now, "token": origin.token, "listener": origin.listener},
            "$inc": counts,
            "$setOnInsert": on_insert,
        }
        if "solo" not in fields:
            update["$unset"] = {"solo": ""}
        query: Document = {
            "_id": failure_id(entry.key, entry.digest),
            "v": MESSAGE_VERSION,
            "token": {"$lte": origin.token},
            "state": {"$in": ["retrying", "dead"]},
        }
        if solo:
            query["solo"] = origin.token
        with translated("recording a failure"):
            try:
                written = self.collection.find_one_and_update(query, update, upsert=not solo, return_document=ReturnDocument.AFTER)
            except DuplicateKeyError:
                return False
        return written is not None

    def record_final(self, entries: Sequence[tuple[Entry, "Origin", str, Document]]) -> None:
        """Store events in a final state: ``(entry, origin, state, more fields)``.

        One that is there as ``retrying`` gets that state and is tried no more; in any other state it stays as it is.
        Used for ``conflict`` (with ``other_digest``), ``stale``, and ``malformed``.
        """
        now = utc_now()
        documents = [
            {
                "_id": failure_id(entry.key, entry.digest),
                **_identity(entry, origin, now),
                "state": state,
                "attempts": 0,
                "starts": 0,
                "due_at": None,
                "updated_at": now,
                "token": origin.token,
                "listener": origin.listener,
                **more,
            }
            for entry, origin, state, more in entries
        ]
        if not documents:
            return
        with translated("recording failures"):
            try:
                self.collection.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                details = error.details or {}
                errors = details.get("writeErrors", [])
                if details.get("writeConcernErrors") or any(e["code"] != DUPLICATE_KEY for e in errors):
                    raise StoreUnavailable("MongoDB did not store the failures") from error
                self._finalize([entries[e["index"]] for e in errors], now)
                self._confirm([documents[e["index"]]["_id"] for e in errors])

    def _finalize(self, entries: Sequence[tuple[Entry, "Origin", str, Document]], now: datetime) -> None:
        for entry, _, state, more in entries:
            self.collection.update_one(
                {"_id": failure_id(entry.key, entry.digest), "v": MESSAGE_VERSION, "state": "retrying"},
                {"$set": {"state": state, "due_at": None, "sent_until": None, "updated_at": now, **more}},
            )

    def _confirm(self, ids: Sequence[str]) -> None:
        """What was there already must be there by majority, too: a fail-over may have taken it back, or somebody removed it."""
        if self.collection.count_documents({"_id": {"$in": list(ids)}}) < len(set(ids)):
            raise StoreUnavailable("failures that MongoDB said it had are not there any more")

    def due(self, limit: int, *, paused: Iterable[str] = ()) -> list[Document]:
        """Failures whose next attempt is due, but for paused types: ``{key, digest, type, batch, accepted_at, starts, attempts, due_at, sent_until, bytes}``."""
        now = self.now()
        query: Document = {"v": MESSAGE_VERSION, "state": "retrying", "due_at": {"$lte": now}, "sent_until": {"$not": {"$gt": now}}}
        if apart := list(paused):
            query["type"] = {"$nin": apart}
        fields = _STATE | {"type": 1, "sent_until": 1, "bytes": {"$bsonSize": "$body"}}
        with translated("reading due failures"):
            return list(self.collection.find(query, fields).sort("due_at", ASCENDING).limit(limit))

    def postpone(self, pairs: Sequence[tuple[str, str]], by_ms: int) -> None:
        """Note that due failures were sent: they come up again after ``by_ms`` if nothing happens to them."""
        with translated("postponing failures"):
            self.collection.update_many(
                {"_id": {"$in": [failure_id(k, d) for k, d in pairs]}, "v": MESSAGE_VERSION, "state": "retrying"},
                {"$set": {"sent_until": self.now() + timedelta(milliseconds=by_ms)}},
            )

    def scan(self, after: str, limit: int) -> list[Document]:
        """``{_id, v, key, digest}`` of failures in any state, in the order of their ids, from behind the id ``after``."""
        with translated("looking through failures"):
            found = self.collection.find({"_id": {"$gt": after}}, {"v": 1, "key": 1, "digest": 1})
            return list(found.sort("_id", ASCENDING).limit(limit))

    def remove(self, pairs: Iterable[tuple[str, str]], generations: Mapping[str, int] | None = None) -> int:
        """Remove failures that the ledger refutes: their (key, digest) is committed. Returns how many were there.

        Those of other versions stay, for a process that knows them.

        Args:
            pairs: (key, digest).
            generations: of the ledger's documents, by key, where not 0. A failure of a later generation stays: its key was reopened
                after the ledger was read.
        """
        by_generation: dict[int, list[str]] = {}
        for key, digest in pairs:
            by_generation.setdefault((generations or {}).get(key, 0), []).append(failure_id(key, digest))
        with translated("removing refuted failures"):
            return sum(
                self.collection.delete_many(
                    {"_id": {"$in": ids}, "v": MESSAGE_VERSION, "generation": {"$not": {"$gt": generation}}}
                ).deleted_count
                for generation, ids in by_generation.items()
            )

    def counts(self) -> dict[str, int]:
        """Number of failures by state; scans an index, and no documents, since they are many and long at the limit."""
        with translated("counting failures"):
            rows = self.collection.aggregate(COUNTS)
            return {str(r["_id"]): int(r["n"]) for r in rows}

    def of_key(self, key: str) -> list[Document]:
        """The whole documents of a key, oldest first."""
        with translated("reading failures"):
            return list(self.collection.find({"key": key}).sort("first_failed_at", ASCENDING))


def ahead_of(found: Sequence[Failure], digest: str) -> Failure | None:
    """Of the failures of one key: other content that waits or is dead, and that comes before this one; or None."""
    own = next((f for f in found if f.digest == digest), None)
    return next((f for f in found if f.digest != digest and f.state in BLOCKING and (own is None or f.order < own.order)), None)


class Origin(msgspec.Struct, frozen=True):
    """Where a failure comes from: the batch, and the winner that writes it."""

    batch: str | None
    accepted_at: datetime
    listener: str
    token: int
    door: str | None = None


def failure_id(key: str, digest: str) -> str:
    """``_id`` of a failure. Injective: a key holds no ``#``."""
    return f"{key}#{digest}"


def _identity(entry: Entry, origin: Origin, now: datetime) -> Document:
    return {
        "v": MESSAGE_VERSION,
        "key": entry.key,
        "digest": entry.digest,
        "type": entry.type,
        "body": entry.body,
        "batch": origin.batch,
        "door": origin.door,
        "accepted_at": origin.accepted_at,
        "first_failed_at": now,
    }


def _failure(document: Any) -> Failure:
    if document.get("v") != MESSAGE_VERSION:
        return Failure(
            key=document["key"],
            digest=str(document.get("digest", "")),
            state=UNKNOWN,
            attempts=0,
            starts=0,
            due_at=None,
            first_failed_at=_NEVER,
            accepted_at=_NEVER,
            token=0,
        )
    return Failure(
        key=document["key"],
        digest=document["digest"],
        state=document["state"],
        attempts=document["attempts"],
        starts=document["starts"],
        due_at=document.get("due_at"),
        first_failed_at=document["first_failed_at"],
        accepted_at=document["accepted_at"],
        token=document["token"],
        batch=document.get("batch"),
        preferred=document.get("preferred", False),
        door=document.get("door"),
        updated_at=document.get("updated_at"),
        listener=document.get("listener"),
        reason=document.get("reason"),
        error=document.get("error"),
        decisions=list(document.get("decisions") or ()),
        generation=document.get("generation", 0),
        retried_at=document.get("retried_at"),
    )
