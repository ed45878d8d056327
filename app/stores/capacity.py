"""How much the deployment holds, and when doors take no more: one judgement for all of them.

| limit | why |
|---|---|
| ``inbox_max_batches``, ``inbox_max_bytes``, ``inbox_max_age_s`` | nobody processes, or not quickly enough |
| ``failures_max``, ``failures_max_bytes`` | events fail and nobody decides about them. What fails is never thrown away, so no more is taken in |

Not guaranteed: that a limit is never exceeded. What the inbox holds when ``failures`` reaches its limit may fail, too, and is kept.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from app.settings import Settings
from app.stores.inbox import Inbox
from app.stores.mongo import NO_COLLECTION, Document, translated, usage_in, usage_of, usage_pipeline
from app.stores.records import utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the deployment holds at one moment; bytes are before compression, and numbers may be off after a crash of MongoDB.

    Attributes:
        oldest_at: when the oldest batch of the inbox was accepted; None where there is none.
    """

    batches: int
    bytes: int
    oldest_at: datetime | None
    failures: int
    failure_bytes: int


def measure(db: Database[Document], session: ClientSession | None = None) -> Held:
    """Ask MongoDB.

    Args:
        db: the deployment's, at majority.
        session: instead of one that may be bound.

    Raises:
        StoreUnavailable: MongoDB is away, or refuses to say.
    """
    inbox = Inbox(db)
    batches, size = inbox.usage(session)
    with translated("measuring the failures"):
        failures, failure_bytes = usage_of(db["failures"], session)
    return Held(batches=batches, bytes=size, oldest_at=inbox.oldest_at(session), failures=failures, failure_bytes=failure_bytes)


async def measure_async(db: Any, session: Any) -> Held:
    """:func:`measure` for an ``AsyncMongoClient``; its driver's errors pass unchanged."""
    batches, size = await _usage_async(db["inbox"], session)
    failures, failure_bytes = await _usage_async(db["failures"], session)
    oldest = await db["inbox"].find_one({}, {"accepted_at": 1}, sort=[("_id", 1)], session=session)
    return Held(batches=batches, bytes=size, oldest_at=oldest and oldest.get("accepted_at"), failures=failures, failure_bytes=failure_bytes)


async def _usage_async(collection: Any, session: Any) -> tuple[int, int]:
    try:
        at_once = collection.with_options(read_concern=ReadConcern("local"))
        return usage_in([shard async for shard in await at_once.aggregate(usage_pipeline(), session=session)])
    except OperationFailure as error:
        if error.code == NO_COLLECTION:
            return 0, 0
        raise


def why_full(held: Held, settings: Settings) -> str:
    """Why doors take no more, in one sentence; empty while they do."""
    oldest_s = 0.0 if held.oldest_at is None else (utc_now() - held.oldest_at).total_seconds()
    if held.batches >= settings.inbox_max_batches:
        return f"the inbox is full: {held.batches} batches wait, and {settings.inbox_max_batches} are the most"
    if held.bytes >= settings.inbox_max_bytes:
        return f"the inbox is full: {held.bytes} bytes wait, and {settings.inbox_max_bytes} are the most"
    if oldest_s > settings.inbox_max_age_s:
        return f"the inbox is stuck: its oldest batch waits for {oldest_s:.0f} s, and {settings.inbox_max_age_s} s are the most"
    remedy = "decide about them with 'dedup failures'"
    if held.failures >= settings.failures_max:
        return f"too many events have failed: {held.failures} are kept, and {settings.failures_max} are the most; {remedy}"
    if held.failure_bytes >= settings.failures_max_bytes:
        return f"too many events have failed: {held.failure_bytes} bytes are kept, and {settings.failures_max_bytes} are the most; {remedy}"
    return ""
