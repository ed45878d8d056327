"""The ledger: one document per processed event. Its unique ``_id`` is the fence that makes "once" true.

| field | type | meaning |
|---|---|---|
| ``_id`` | str | the key |
| ``v`` | int | version of this form; of a key that another one holds, nothing is decided |
| ``digest`` | str | digest of the content that stands |
| ``superseded`` | array of str | digests that an operator replaced |
| ``rejected`` | array of str | digests that an operator refused |
| ``type``, ``body`` | str, document | the event |
| ``listener``, ``claim_id``, ``token``, ``attempt`` | str, str, long, int | who committed it, and in which try |
| ``batch``, ``accepted_at``, ``processed_at`` | str, date, date | where it came from, and when |
| ``result`` | any | what its handler returned, if anything |
| ``expires_at`` | date | end of its retention; absent where it is kept for ever |

Guarantees: at most one document per key, and reads see only what a majority holds.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from pymongo import DESCENDING
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from app.errors import CommitUnknown, PermanentError
from app.naming import MESSAGE_VERSION
from app.stores.mongo import DUPLICATE_KEY, Document, translated


class Committed(msgspec.Struct, frozen=True):
    """What the ledger says about a key.

    Attributes:
        digests: every digest for which the key counts as finished: the one that stands, superseded and rejected ones.
        claim_id: the claim under which it was committed.
        known: whether this software can read it; else there are no digests, and nothing may be decided about the key.
    """

    digest: str
    digests: frozenset[str]
    listener: str
    claim_id: str
    result: Any = None
    known: bool = True


_UNKNOWN = Committed(digest="", digests=frozenset(), listener="", claim_id="", known=False)
_PROOF = {"v": 1, "digest": 1, "superseded": 1, "rejected": 1, "listener": 1, "claim_id": 1, "result": 1}


class Ledger:
    """The collection ``events`` of one deployment. Thread-safe."""

    def __init__(self, db: Database[Document]) -> None:
        self.collection = db["events"]

    def ensure_indexes(self) -> None:
        """Make the index that ends retention; safe to repeat."""
        with translated("making the ledger's index"):
            self.collection.create_index(
                "expires_at", expireAfterSeconds=0, name="retention", partialFilterExpression={"expires_at": {"$type": "date"}}
            )

    def find(self, keys: Sequence[str]) -> dict[str, Committed]:
        """What is committed among ``keys``, by majority read.

        Raises:
            StoreUnavailable: MongoDB is away.
        """
        with translated("reading the ledger"):
            return {d["_id"]: _committed(d) for d in self.collection.find({"_id": {"$in": list(keys)}}, _PROOF)}

    def insert(self, documents: Sequence[Document], session: ClientSession | None = None) -> list[str]:
        """Commit documents at majority.

        Outside a transaction, unordered: those whose key is taken are left out and named. Inside one (``session``), a taken
        key ends the transaction, and the driver's error passes through for the caller to abort and go one by one.

        Returns:
            The keys that were taken already; what holds them must be read again before it is judged.

        Raises:
            CommitUnknown: not known to last; read again before judging.
            StoreUnavailable: MongoDB is away.
            PermanentError: MongoDB cannot hold one of the documents.
        """
        if session is not None:
            self.collection.insert_many(documents, ordered=True, session=session)
            return []
        with translated("committing events"):
            try:
                self.collection.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                details = error.details or {}
                errors = details.get("writeErrors", [])
                if details.get("writeConcernErrors"):
                    raise CommitUnknown("MongoDB did not confirm committing events by a majority") from error
                if not errors:
                    raise
                if other := [e for e in errors if e["code"] != DUPLICATE_KEY]:
                    raise PermanentError(f"MongoDB cannot hold the event: {other[0]['errmsg'][:200]}") from error
                return [documents[e["index"]]["_id"] for e in errors]
        return []

    def reject(self, key: str, digest: str) -> bool:
        """Count ``digest`` as refused for a committed key; False when the key is not committed (any more)."""
        with translated("refusing other content"):
            query = {"_id": key, "v": MESSAGE_VERSION}
            return self.collection.update_one(query, {"$addToSet": {"rejected": digest}}).matched_count == 1

    def get(self, key: str) -> Document | None:
        """The whole document of a key, or None."""
        with translated("reading the ledger"):
            return self.collection.find_one({"_id": key})

    def recent(
        self, *, type: str | None, listener: str | None, limit: int, bodies: bool = True, max_time_ms: int = 2_000
    ) -> list[Document]:
        """The newest documents first, in the order of their insertion, filtered by type and listener.

        There is no second index to pay for at every insert: a rare type is searched for backwards from the end, for at
        most ``max_time_ms``.

        Raises:
            StoreUnavailable: MongoDB is away, or the search took too long.
        """
        query = {name: value for name, value in (("type", type), ("listener", listener)) if value}
        with translated("listing the ledger"):
            return list(
                self.collection.find(query, None if bodies else {"body": 0})
                .sort("$natural", DESCENDING)
                .limit(limit)
                .max_time_ms(max_time_ms)
            )

    def count(self) -> int:
        """Exact number of documents, by majority read; scans the ``_id`` index."""
        with translated("counting the ledger"):
            return self.collection.count_documents({}, hint="_id_")

    def count_by_listener(self) -> dict[str, int]:
        """Number of documents by the listener that committed them; scans the collection."""
        with translated("counting the ledger"):
            rows = self.collection.aggregate([{"$group": {"_id": "$listener", "n": {"$sum": 1}}}])
            return {str(r["_id"]): int(r["n"]) for r in rows}


def _committed(document: Document) -> Committed:
    if document.get("v") != MESSAGE_VERSION:
        return _UNKNOWN
    return Committed(
        digest=document["digest"],
        digests=frozenset((document["digest"], *document.get("superseded", ()), *document.get("rejected", ()))),
        listener=document["listener"],
        claim_id=document["claim_id"],
        result=document.get("result"),
    )


def expiry(accepted_at: datetime, retention_s: int) -> dict[str, datetime]:
    """The field that ends a document's retention, or nothing when it is kept for ever."""
    return {"expires_at": accepted_at + timedelta(seconds=retention_s)} if retention_s else {}
