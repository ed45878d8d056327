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
| ``door``, ``forwards``, ``forwarded_at`` | str, int, date | by which door it came; how often its batch was sent, and when, as far as the winner knew |
| ``previous_owner`` | str | who had the claim before, where it was taken over |
| ``failed`` | document | runs that failed before this one: how many, when, by whom, why |
| ``result`` | any | what its handler returned, if anything |
| ``decisions`` | array | what operators decided: ``{at, by, what, digest}`` |
| ``expires_at`` | date | end of its retention, a tombstone's counted from the last decision; absent where it is kept for ever |
| ``discarded`` | bool | a tombstone: nothing was committed, and an operator gave up ``digest`` and what is in ``rejected`` |
| ``reopened`` | bool | to be processed again (:mod:`app.reprocessing`); until then it proves nothing finished |
| ``generation``, ``recommits`` | int, int | how often it was reopened, and committed again |
| ``reprocessed`` | array | of each reopening: ``{generation, at, by, reason, former, withdrawn}``; ``former`` is what the commit before had said |

Guarantees: at most one document per key, and reads see only what a majority holds. A document that is reopened keeps its ``_id``: so a
listener that knows nothing of it meets the fence, and only a commit that names its generation takes its place. So does a tombstone: content that
it does not refuse takes its place by a compare-and-set, and what it refuses stays refused, in ``rejected``.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from pymongo import DESCENDING
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from app.errors import CommitUnknown
from app.naming import MESSAGE_VERSION
from app.stores.mongo import Document, judge_write_errors, translated


class Committed(msgspec.Struct, frozen=True):
    """What the ledger says about a key.

    Attributes:
        digests: every digest for which the key counts as finished: the one that stands, superseded and rejected ones.
        claim_id: the claim under which it was committed.
        known: whether this software can read it; else there are no digests, and nothing may be decided about the key.
        generation: how often the key was reopened.
        reopened: it is to be processed again: ``digest`` is then among ``digests`` no more.
        discarded: it is a tombstone: nothing is committed, and ``digests`` are refused.
    """

    digest: str
    digests: frozenset[str]
    listener: str
    claim_id: str
    result: Any = None
    known: bool = True
    generation: int = 0
    reopened: bool = False
    discarded: bool = False

    @property
    def place(self) -> int:
        """What :meth:`Ledger.recommit` is to be told, so that a commit takes this document's place; 0 where none can."""
        return TOMBSTONE if self.discarded else self.generation


TOMBSTONE = -1
"""Stands as generation where a commit takes a tombstone's place."""
_UNKNOWN = Committed(digest="", digests=frozenset(), listener="", claim_id="", known=False)
_PROOF = dict.fromkeys(
    ("v", "digest", "superseded", "rejected", "listener", "claim_id", "result", "generation", "reopened", "discarded"), 1
)
OF_ONE_RUN = (
    "listener",
    "claim_id",
    "token",
    "attempt",
    "batch",
    "forwards",
    "forwarded_at",
    "previous_owner",
    "failed",
    "result",
    "processed_at",
)
"""Fields that tell of one processing; those of an earlier one are kept in ``reprocessed``."""
_SEARCH_MS = 2_000


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

    def size(self) -> int:
        """Number of documents, by the collection's metadata; may be off after a crash of MongoDB.

        Raises:
            StoreUnavailable: MongoDB is away.
        """
        with translated("counting the ledger"):
            return self.collection.estimated_document_count()

    def find(self, keys: Sequence[str]) -> dict[str, Committed]:
        """What is committed among ``keys``, by majority read; what is reopened is not.

        Raises:
            StoreUnavailable: MongoDB is away.
        """
        return {key: committed for key, committed in self.look(keys).items() if not committed.reopened}

    def look(self, keys: Sequence[str]) -> dict[str, Committed]:
        """The same, with what is reopened.

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
                if (error.details or {}).get("writeConcernErrors"):
                    raise CommitUnknown("MongoDB did not confirm committing events by a majority") from error
                taken = judge_write_errors(error, "committing events")
                if not taken:
                    raise
                return [documents[index]["_id"] for index in taken]
        return []

    def recommit(self, document: Document, generation: int, session: ClientSession | None = None) -> bool:
        """Commit a document in the place of the one that was reopened, or of a tombstone, at majority or in ``session``'s transaction.

        Returns:
            False when the key is not reopened (any more), or in another generation, or no tombstone, or one that refuses this content; then
            nothing is changed.

        Raises:
            CommitUnknown: outside a transaction: not known to last; read again before judging.
            StoreUnavailable: outside a transaction: MongoDB is away. Inside one the driver's errors pass.
        """
        query, update = recommitment(document, generation)
        if session is not None:
            return self.collection.update_one(query, update, session=session).matched_count == 1
        with translated("committing events again"):
            return self.collection.update_one(query, update).matched_count == 1

    def reject(self, key: str, digest: str, *, decision: Document) -> bool:
        """Count ``digest`` as refused for a committed key; False when the key is not committed (any more), or with this very content."""
        update = {"$addToSet": {"rejected": digest}, "$push": {"decisions": decision}}
        with translated("refusing other content"):
            query = {"_id": key, "v": MESSAGE_VERSION, "digest": {"$ne": digest}, "reopened": {"$exists": False}}
            return self.collection.update_one(query, update).matched_count == 1

    def keep_tombstone(self, key: str, kept: Document) -> None:
        """Let a key's tombstone stay at least for as long as :func:`expiry` said; what is no tombstone stays as it is."""
        longer: Document = {"$lt": kept["expires_at"]} if kept else {"$exists": True}
        update: Document = {"$set": kept} if kept else {"$unset": {"expires_at": ""}}
        with translated("keeping a decision"):
            self.collection.update_one({"_id": key, "v": MESSAGE_VERSION, "discarded": True, "expires_at": longer}, update)

    def supersede(self, key: str, old: str, *, digest: str, type: str, body: Any, decision: Document) -> bool:
        """Let other content stand in the place of the committed one, whose digest is ``old``, and which is superseded.

        Returns:
            False when ``old`` does not stand (any more); then nothing is changed.
        """
        changed = {"digest": digest, "type": type, "body": body, "decided_at": decision["at"]}
        update: Document = {name: {"$literal": value} for name, value in changed.items()}
        update["decisions"] = {"$concatArrays": [_array("$decisions"), {"$literal": [decision]}]}
        update["superseded"] = {"$concatArrays": [_without("$superseded", digest, old), {"$literal": [old]}]}
        update["rejected"] = {"$cond": [{"$isArray": "$rejected"}, _without("$rejected", digest), "$$REMOVE"]}
        query = {"_id": key, "v": MESSAGE_VERSION, "digest": old, "reopened": {"$exists": False}, "discarded": {"$exists": False}}
        with translated("accepting new content"):
            return self.collection.update_one(query, [{"$set": update}]).matched_count == 1

    def get(self, key: str) -> Document | None:
        """The whole document of a key, or None."""
        with translated("reading the ledger"):
            return self.collection.find_one({"_id": key})

    def recent(self, *, type: str | None, listener: str | None, limit: int, bodies: bool = True) -> list[Document]:
        """The newest documents first, in the order of their insertion, filtered by type and listener.

        There is no second index to pay for at every insert: a rare type is searched for backwards from the end, for at
        most two seconds.

        Raises:
            StoreUnavailable: MongoDB is away, or the search took too long.
        """
        query = {name: value for name, value in (("type", type), ("listener", listener)) if value}
        with translated("listing the ledger"):
            return list(
                self.collection.find(query, None if bodies else {"body": 0})
                .sort("$natural", DESCENDING)
                .limit(limit)
                .max_time_ms(_SEARCH_MS)
            )

    def count(self) -> int:
        """Exact number of documents, by majority read; scans the ``_id`` index."""
        with translated("counting the ledger"):
            return self.collection.count_documents({}, hint="_id_")


def recommitment(document: Document, generation: int) -> tuple[Document, Document | list[Document]]:
    """Query and update that commit a document where its key is reopened in this generation, or has a tombstone (:data:`TOMBSTONE`).

    Digests that operators decided about stay, and so do the story of earlier processings, and door and time of acceptance; of a tombstone,
    which tells of other content, only what was decided stays.
    """
    if generation == TOMBSTONE:
        return _in_place_of_a_tombstone(document)
    kept = ("_id", "v", "digest", "type", "body", "door", "accepted_at")
    changed = {name: value for name, value in document.items() if name not in kept}
    gone = [name for name in (*OF_ONE_RUN, "expires_at") if name not in changed] + ["reopened"]
    query = {"_id": document["_id"], "digest": document["digest"], "generation": generation, "reopened": True}
    return query, {"$set": changed, "$unset": dict.fromkeys(gone, ""), "$inc": {"recommits": 1}}


def _in_place_of_a_tombstone(document: Document) -> tuple[Document, list[Document]]:
    digest = document["digest"]
    query = {"_id": document["_id"], "v": document["v"], "discarded": True, "digest": {"$ne": digest}, "rejected": {"$ne": digest}}
    changed = {name: {"$literal": value} for name, value in document.items() if name != "_id"}
    refused = {"$concatArrays": [_array("$rejected"), ["$digest"]]}
    gone = [name for name in (*OF_ONE_RUN, "door", "expires_at", "discarded") if name not in document]
    return query, [{"$set": {**changed, "rejected": refused}}, {"$unset": gone}]


def _array(field: str) -> Document:
    return {"$ifNull": [field, []]}


def _without(field: str, *digests: str) -> Document:
    """A list of digests, in its order, without these."""
    return {"$filter": {"input": _array(field), "cond": {"$not": {"$in": ["$$this", {"$literal": digests}]}}}}


def _committed(found: Document) -> Committed:
    if found.get("v") != MESSAGE_VERSION:
        return _UNKNOWN
    reopened = bool(found.get("reopened"))
    digests = {*found.get("superseded", ()), *found.get("rejected", ())}
    digests = digests - {found["digest"]} if reopened else digests | {found["digest"]}
    return Committed(
        digest=found["digest"],
        digests=frozenset(digests),
        listener=found["listener"],
        claim_id=found["claim_id"],
        result=found.get("result"),
        generation=found.get("generation", 0),
        reopened=reopened,
        discarded=bool(found.get("discarded")),
    )


def expiry(since: datetime, retention_s: int) -> dict[str, datetime]:
    """The field that ends a document's retention, or nothing when it is kept for ever."""
    return {"expires_at": since + timedelta(seconds=retention_s)} if retention_s else {}
