"""Connections to MongoDB, and the translation of its driver's errors into ours.

Guarantees: every client reads at majority from the primary and writes at majority, unless a call says otherwise; no call
waits longer than ``Settings.mongo_timeout_ms``. Does not guarantee that a call whose reply was lost had no effect: that is
what :class:`~app.errors.CommitUnknown` and the callers' idempotent writes are for.
"""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from app.errors import CommitUnknown, PermanentError, StoreUnavailable
from app.settings import Settings, database_of

Document = dict[str, Any]
AnyDatabase = TypeVar("AnyDatabase", Database[Any], AsyncDatabase[Any])

RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument, tz_aware=True)
"""Decode one level, leave what lies below as BSON bytes."""

DUPLICATE_KEY = 11000
CANNOT_HOLD = frozenset({2, 9, 15, 22, 121, 10334, 17280, 17419, 17420})
"""Codes that mean the document: too large, nested too deeply, not BSON, refused by a validator. Any other may pass: a server that takes no
writes (371) or whose disk is full says so for each document too."""
NO_COLLECTION = 26
INTERRUPTED = 11601
_SESSION_ID = re.compile(r"[0-9a-f]{32}\Z")
_UNKNOWN_CODES = frozenset({64, 79, 91, 189, 11600, 11602, 10107, 13435})
"""Write-concern and fail-over codes: the write may or may not last."""


def connect(settings: Settings, *, role: str) -> Database[Document]:
    """Open the deployment's database; lazily, so an absent server shows at the first call.

    Args:
        settings: names the server, the database and the time-out.
        role: shown as the connection's ``appName`` in MongoDB's log.
    """
    client: MongoClient[Document] = MongoClient(settings.mongo_url, **_options(settings, role))
    return client.get_database(database_of(settings.mongo_url), **_AT_MAJORITY)


def connect_async(settings: Settings, *, role: str) -> AsyncDatabase[Document]:
    """The same for ``async def`` handlers; to be used on one event loop."""
    client: AsyncMongoClient[Document] = AsyncMongoClient(settings.mongo_url, **_options(settings, role))
    return client.get_database(database_of(settings.mongo_url), **_AT_MAJORITY)


_AT_MAJORITY: dict[str, Any] = {
    "read_concern": ReadConcern("majority"),
    "read_preference": ReadPreference.PRIMARY,
    "write_concern": WriteConcern("majority"),
}


TRANSACTION: dict[str, Any] = {"read_concern": ReadConcern("snapshot"), "write_concern": WriteConcern("majority")}
"""How transactions are started."""


def in_transaction(db: AnyDatabase) -> AnyDatabase:
    """The database without concerns of its own: inside a transaction the session has them, and MongoDB refuses others."""
    return db.with_options(read_concern=ReadConcern(), write_concern=WriteConcern())


def _options(settings: Settings, role: str) -> dict[str, Any]:
    return {
        "appname": f"dedup-{role}",
        "tz_aware": True,
        "uuidRepresentation": "standard",
        "serverSelectionTimeoutMS": settings.mongo_timeout_ms,
        "connectTimeoutMS": settings.mongo_timeout_ms,
        "timeoutMS": settings.mongo_timeout_ms,
        "retryWrites": True,
    }


def unacknowledged_by_majority(collection: Collection[Document]) -> Collection[Document]:
    """The same collection with ``w: 1``: for writes that may be lost, such as removing what is finished."""
    return collection.with_options(write_concern=WriteConcern(1))


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the driver's outage errors into ours; let duplicate-key and bulk errors through to those who can read them.

    Raises:
        CommitUnknown: a write concern was not satisfied in time, or the primary changed under a write.
        StoreUnavailable: no answer, no primary, or a refusal such as failed authentication.
    """
    try:
        yield
    except BulkWriteError as error:
        details = error.details or {}
        if details.get("writeConcernErrors") and not details.get("writeErrors"):
            raise CommitUnknown(f"MongoDB did not confirm {doing} by a majority") from error
        raise
    except WriteConcernError as error:
        raise CommitUnknown(f"MongoDB did not confirm {doing} by a majority") from error
    except (ConnectionFailure, ExecutionTimeout, WaitQueueTimeoutError) as error:
        raise StoreUnavailable(f"MongoDB did not answer while {doing}: {first_line(error)}") from error
    except OperationFailure as error:
        if error.code == DUPLICATE_KEY:
            raise
        if error.code in _UNKNOWN_CODES or error.has_error_label("RetryableWriteError"):
            raise CommitUnknown(f"MongoDB did not confirm {doing}: {first_line(error)}") from error
        raise StoreUnavailable(f"MongoDB refused {doing}: {first_line(error)}") from error


def judge_write_errors(error: BulkWriteError, doing: str) -> list[int]:
    """Tell what the errors of single documents mean; to be called inside :func:`translated`.

    Returns:
        The places of those whose ``_id`` is taken.

    Raises:
        StoreUnavailable: the server takes no writes for a while.
        PermanentError: it cannot hold one of the documents.
    """
    errors = (error.details or {}).get("writeErrors", [])
    others = [e for e in errors if e["code"] != DUPLICATE_KEY]
    if passing := [e for e in others if e["code"] not in CANNOT_HOLD]:
        raise StoreUnavailable(f"MongoDB refused {doing}: {passing[0]['errmsg'][:200]}") from error
    if others:
        raise PermanentError(f"MongoDB cannot hold the event: {others[0]['errmsg'][:200]}") from error
    return [e["index"] for e in errors]


def error_code(error: BaseException) -> int | None:
    """The server's code of an error, from its first write error for a bulk one."""
    details = getattr(error, "details", None) or {}
    write_errors = details.get("writeErrors") or [{}]
    return write_errors[0].get("code") or getattr(error, "code", None)


def usage_pipeline() -> list[Document]:
    """Asks for a collection's numbers, by its metadata."""
    return [{"$collStats": {"storageStats": {}}}, {"$project": {"storageStats.count": 1, "storageStats.size": 1}}]


def usage_in(shards: list[Document]) -> tuple[int, int]:
    """Number of documents, and their bytes before compression, out of the answers to :func:`usage_pipeline`."""
    found = [shard.get("storageStats", {}) for shard in shards]
    return sum(int(shard.get("count", 0)) for shard in found), sum(int(shard.get("size", 0)) for shard in found)


def usage_of(collection: Collection[Document], session: ClientSession | None = None) -> tuple[int, int]:
    """Number of documents, and their bytes before compression, by the collection's metadata; may be off after a crash of MongoDB.

    To be called inside :func:`translated`.
    """
    try:
        at_once = collection.with_options(read_concern=ReadConcern("local"))
        return usage_in(list(at_once.aggregate(usage_pipeline(), session=session)))
    except OperationFailure as error:
        if error.code == NO_COLLECTION:
            return 0, 0
        raise


def end_transactions(db: Database[Document], sessions: AbstractSet[str]) -> None:
    """End the open transactions of other processes' sessions, given by their hex ids; what is no id is passed over.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    ids = [{"id": Binary(bytes.fromhex(session), 4)} for session in sorted(sessions) if _SESSION_ID.match(session)]
    if ids:
        with translated("ending the transactions of a dead listener"):
            db.client.admin.command("killSessions", ids)


def first_line(error: BaseException) -> str:
    """The first 200 characters of an error's text, without the driver's topology dump."""
    text = str(error).partition(", Timeout:")[0].splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def answers(db: Database[Document]) -> bool:
    """Whether a primary answers now, within the time-out."""
    try:
        db.client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def server_now(db: Database[Document]) -> datetime:
    """The primary's clock: the one that instants are compared by which one process writes and another one reads.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    with translated("asking the time"):
        now: datetime = db.client.admin.command("hello")["localTime"]
        return now if now.tzinfo else now.replace(tzinfo=UTC)
