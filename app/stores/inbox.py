"""The inbox: accepted batches that are not finished. The durable outbox of the whole system.

| field | type | meaning |
|---|---|---|
| ``_id`` | str, 26 | batch id, fixed before the first try, so that a repeated write is recognised |
| ``v`` | int | version of this form |
| ``accepted_at`` | date | when a door took it |
| ``door`` | str | ``http``, ``socketio``, … |
| ``seq`` | long | its place in the order of fan-out; 0 before it was sent, and once its last copy went to the recovery queue |
| ``forwarded_at`` | date | last time it was sent to listeners; ``accepted_at`` before that |
| ``forwards`` | int | how often it was sent, by fan-out or to the recovery queue |
| ``count``, ``bytes`` | int, int | of its events when it was accepted: how many, and their size, so that small batches can travel together |
| ``events`` | array, 1..500 | ``{key, digest, type, body}`` |

``seq``, ``forwarded_at`` and ``forwards`` keep their types and so their lengths: MongoDB notes a sending in its place, and does not write the bodies anew.

Guarantees: when :meth:`Inbox.write` returns, every batch is acknowledged by a majority. A batch is removed only by callers
who have seen by majority read that all of its events are finished.
"""

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from bson.int64 import Int64
from pymongo import ASCENDING, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import BulkWriteError, OperationFailure
from pymongo.read_concern import ReadConcern

from app.errors import CommitUnknown, PermanentError
from app.messages import EventRef
from app.naming import MESSAGE_VERSION
from app.stores.mongo import RAW, Document, judge_write_errors, translated, unacknowledged_by_majority, usage_of
from app.stores.records import Batch, entry_from, utc_now

_PAGES = {"wiredTiger": {"configString": "memory_page_max=30m"}}
"""So large may a page of the collection grow in WiredTiger's cache before whoever reads it next has to write it out; by default 10 MB, which are two
or three batches of large events that are about to be removed (ADR 20)."""


class UnknownVersion(PermanentError):
    """A record was written by a newer version of this software; it is left alone, and said so."""


class Inbox:
    """The collection ``inbox`` of one deployment. Thread-safe."""

    def __init__(self, db: Database[Document]) -> None:
        self._collection = db["inbox"]
        self._raw = self._collection.with_options(codec_options=RAW)
        self._weak = unacknowledged_by_majority(self._collection)
        self._latest = self._collection.with_options(read_concern=ReadConcern("local"))
        self._made = False

    def write(self, documents: Sequence[Document]) -> None:
        """Store batches (made by :func:`~app.stores.records.inbox_document`) at majority; safe to repeat.

        Raises:
            StoreUnavailable, CommitUnknown: not known to be stored; repeat with the same documents.
            PermanentError: MongoDB cannot hold one of them; others may be stored.
        """
        with translated("storing accepted events"):
            self._make()
            try:
                self._collection.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                judge_write_errors(error, "storing accepted events")  # a taken ``_id`` means that the document is there already
                if (error.details or {}).get("writeConcernErrors"):
                    raise CommitUnknown("MongoDB did not confirm storing accepted events by a majority") from error
                self._confirm([d["_id"] for d in documents])

    def _make(self) -> None:
        """Before the first write: make the collection, with large pages. Where it is there, or MongoDB refuses such an option, it is as it is."""
        if not self._made:
            with contextlib.suppress(OperationFailure):
                self._collection.database.create_collection(self._collection.name, check_exists=False, storageEngine=_PAGES)
            self._made = True

    def _confirm(self, batch_ids: list[str]) -> None:
        """After a duplicate ``_id``: a write by majority waits for the earlier one to be there by majority too.

        One that is not there any more was taken back by a fail-over, or is finished: written again, it does no harm.
        """
        there = self._collection.update_many({"_id": {"$in": batch_ids}}, {"$set": {"v": MESSAGE_VERSION}}).matched_count
        if there < len(batch_ids):
            raise CommitUnknown("what MongoDB said it had is not there any more")

    def fetch(self, batch_ids: Sequence[str]) -> dict[str, Batch]:
        """Batches with their bodies as raw BSON, by id, without those that nobody holds (any more).

        Raises:
            StoreUnavailable: MongoDB is away.
            UnknownVersion: all that were found were written by newer versions; beside others, such ones are passed over.
        """
        with translated("fetching batches"):
            found = list(self._raw.find({"_id": {"$in": list(batch_ids)}}))
        known = [document for document in found if document["v"] == MESSAGE_VERSION]
        if found and not known:
            name, version = found[0]["_id"], found[0]["v"]
            raise UnknownVersion(f"batch {name} has version {version}, this software knows {MESSAGE_VERSION}: upgrade this process")
        return {document["_id"]: _batch(document) for document in known}

    def entries_of(self, batch_ids: Sequence[str]) -> dict[str, list[EventRef]]:
        """``(key, digest, type)`` of each event of the named batches, without bodies."""
        with translated("reading batches"):
            found = self._collection.find({"_id": {"$in": list(batch_ids)}}, {"events.key": 1, "events.digest": 1, "events.type": 1})
            return {d["_id"]: [(e["key"], e["digest"], e["type"]) for e in d["events"]] for d in found}

    def heads(self, limit: int, *, after: str = "") -> list[Document]:
        """The oldest ``limit`` batches behind the id ``after``, without their events.

        A hint, no proof: read as the primary has it now, so that a batch which was just noted as forwarded shows it.

        Returns:
            ``{_id, v, accepted_at, seq, forwarded_at, forwards, count, bytes}``, oldest first.
        """
        fields = {"v": 1, "accepted_at": 1, "seq": 1, "forwarded_at": 1, "forwards": 1, "count": 1, "bytes": 1}
        with translated("reading the inbox"):
            return list(self._latest.find({"_id": {"$gt": after}}, fields).sort("_id", ASCENDING).limit(limit))

    def mark_forwarded(self, sent: Iterable[tuple[str, int]]) -> None:
        """Note that batches were sent, as ``(batch id, seq)``; those that are finished meanwhile are passed over."""
        at = utc_now()
        updates = [
            UpdateOne({"_id": batch_id}, {"$set": {"forwarded_at": at, "seq": Int64(seq)}, "$inc": {"forwards": 1}})
            for batch_id, seq in sent
        ]
        if updates:
            with translated("noting forwarded batches"):
                self._weak.bulk_write(updates, ordered=False)

    def remove(self, batch_ids: Sequence[str]) -> None:
        """Remove batches all of whose events the caller has seen finished by majority read.

        Weakly acknowledged: a removal that is rolled back brings a finished batch back, and the sweeper removes it again.
        """
        with translated("removing finished batches"):
            self._weak.delete_many({"_id": {"$in": list(batch_ids)}})

    def size(self) -> int:
        """Number of batches, by the collection's metadata."""
        with translated("counting the inbox"):
            return self._collection.estimated_document_count()

    def usage(self, session: ClientSession | None = None) -> tuple[int, int]:
        """Number of batches, and their bytes before compression, by the collection's metadata; may be off after a crash of MongoDB."""
        with translated("measuring the inbox"):
            return usage_of(self._collection, session)

    def oldest_at(self, session: ClientSession | None = None) -> datetime | None:
        """When the oldest batch was accepted, or None when the inbox is empty."""
        with translated("reading the inbox"):
            found = self._collection.find_one({}, {"accepted_at": 1}, sort=[("_id", ASCENDING)], session=session)
        return found.get("accepted_at") if found else None  # another version may say it otherwise

    def find_event(self, key: str) -> list[Document]:
        """Where a key waits: ``[{batch, accepted_at, digest, type, forwarded_at, forwards, door}]``; scans the inbox."""
        with translated("searching the inbox"):
            found = self._collection.find({"events.key": key}, {"events.body": 0}).limit(20)
            return [
                {
                    "batch": d["_id"],
                    "accepted_at": d["accepted_at"],
                    "door": d.get("door"),
                    "forwarded_at": d["forwarded_at"] if d.get("forwards") else None,
                    "forwards": d.get("forwards", 0),
                    "digest": e["digest"],
                    "type": e["type"],
                }
                for d in found
                for e in d["events"]
                if e["key"] == key
            ]


def _batch(found: Any) -> Batch:
    entries = [entry_from(e) for e in found["events"]]
    return Batch(id=found["_id"], accepted_at=found["accepted_at"], door=found["door"], entries=entries)
