"""Accepting events in the producer's own process, straight into the inbox; with a session, inside the producer's own transaction.

    with client.start_session() as session, session.start_transaction():
        client["shop"]["orders"].insert_one(order, session=session)
        accept(event, db=client["dedup"], session=session)

Guarantees: inside a transaction the events are accepted exactly when it commits, together with the producer's other writes: an outbox
without a second table. Without one, they are in the inbox by majority when :func:`accept` returns. They are checked as at the other doors, and
found by the sweeper: no bridge has to hear of them, so they start about ``grace_ms + sweep_ms`` later than others.

Not guaranteed: a majority write where the producer's transaction has a weaker write concern (MongoDB's default is majority); and that the inbox
has room: its limits are the broadcaster's, which this function does not ask.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bson.codec_options import CodecOptions
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from app.errors import CommitUnknown
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.settings import Settings, load_settings
from app.stores.inbox import Inbox
from app.stores.mongo import Document
from app.stores.records import inbox_document, new_batch_id, utc_now
from app.stores.submission import Submission, prepare

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.database import AsyncDatabase
    from pymongo.client_session import ClientSession
    from pymongo.database import Database

DOOR = "python"
_REPEAT_PAUSE_S = 0.1
_AT_MAJORITY: dict[str, Any] = {
    "codec_options": CodecOptions(),
    "read_concern": ReadConcern("majority"),
    "read_preference": ReadPreference.PRIMARY,
    "write_concern": WriteConcern("majority"),
}


def accept(
    events: dict[str, Any] | Sequence[dict[str, Any]],
    *,
    db: "Database[Any]",
    session: "ClientSession | None" = None,
    settings: Settings | None = None,
) -> list[str]:
    """Accept one event or several, as a whole or not at all.

    Args:
        events: 1 to 500 events as at ``POST /events``: plain (``type``, and optional ``data``, ``id``, ``source``, ``time``) or CloudEvents;
            their data is JSON: no dates, no tuples.
        db: the deployment's database, by the producer's own client.
        session: of that client, in a transaction.
        settings: name the policy file and the limits; by default the environment's, with ``policies.toml`` in the working folder.
            Keys are made by the policies, so they must be those of the broadcaster.

    Returns:
        The keys of the distinct events, in order.

    Raises:
        InvalidEvent: the events are refused, as they would be at the other doors.
        StoreUnavailable, CommitUnknown: without a transaction: not known to be stored; accept the same events again.
        pymongo.errors.PyMongoError: inside a transaction the driver's errors pass unchanged, so that ``with_transaction`` knows them.
    """
    submission, document = _document(events, settings)
    inbox = db.with_options(**_AT_MAJORITY)["inbox"]
    if session is not None:
        inbox.insert_one(document, session=session)
    else:
        _write(Inbox(db.with_options(**_AT_MAJORITY)), document, _of(settings)[0])
    return list(submission.keys)


async def accept_async(
    events: dict[str, Any] | Sequence[dict[str, Any]],
    *,
    db: "AsyncDatabase[Any]",
    session: "AsyncClientSession",
    settings: Settings | None = None,
) -> list[str]:
    """:func:`accept` inside a transaction of an ``AsyncMongoClient``; there is none without a session."""
    submission, document = _document(events, settings)
    await db.with_options(**_AT_MAJORITY)["inbox"].insert_one(document, session=session)
    return list(submission.keys)


def _document(events: dict[str, Any] | Sequence[dict[str, Any]], settings: Settings | None) -> tuple[Submission, Document]:
    settings, parser = _of(settings)
    items = [events] if isinstance(events, dict) else list(events)
    submission = prepare(parser.values(items), max_events=settings.max_batch_events)
    return submission, inbox_document(new_batch_id(), submission.entries, door=DOOR, accepted_at=utc_now())


def _write(inbox: Inbox, document: Document, settings: Settings) -> None:
    """Store one batch; what is not confirmed is repeated with the same ``_id`` for as long as one operation may take."""
    give_up_at = time.monotonic() + settings.mongo_timeout_ms / 1000
    while True:
        try:
            return inbox.write([document])
        except CommitUnknown:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_REPEAT_PAUSE_S)


@functools.lru_cache(maxsize=16)
def _of(settings: Settings | None) -> tuple[Settings, EventParser]:
    """The settings and their parser; read once per process."""
    if settings is None:
        # Only the policies and the limits are of use here, so a producer need not say where the servers are.
        settings = load_settings(
            folder=Path.cwd(), redis_url="redis://unused", broker_url="redis://unused", mongo_url="mongodb://unused/unused"
        )
    return settings, EventParser(Policies.load(settings.policies, settings), settings)
