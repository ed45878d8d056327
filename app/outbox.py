"""Accepting events in the producer's own process, straight into the inbox; with a session, inside the producer's own transaction.

    with client.start_session() as session, session.start_transaction():
        client["shop"]["orders"].insert_one(order, session=session)
        accept(event, db=client["dedup"], session=session)

In a handler ``accept(event, db=context.db)`` is enough: its transaction is found.

Guarantees: inside a transaction the events are accepted exactly when it commits, together with the producer's other writes: an outbox
without a second table. Without one, they are in the inbox by majority when :func:`accept` returns. They are checked as at the other doors, and
found by the sweeper: no bridge has to hear of them, so they start about ``grace_ms + sweep_ms`` later than others.

The limits of inbox and failures are asked at most once a second, as at the other doors, outside the producer's transaction: beyond them
:class:`~app.errors.InboxFull` says when to come back. A user who may not ask (``collStats``) is not held up, nor is a handler: what it accepts
takes the place of what it finishes, and an inbox that is full of such events could never empty.

Not guaranteed: a majority write where the producer's transaction has a weaker write concern (MongoDB's default is majority).
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bson.codec_options import CodecOptions
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from app.errors import CommitUnknown, InboxFull, TransientError
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.settings import Settings, load_settings
from app.stores.capacity import measure, measure_async, why_full
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
_FRESH_S = 1.0
_AT_MAJORITY: dict[str, Any] = {
    "codec_options": CodecOptions(tz_aware=True),
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
        session: of that client, in a transaction; by default the one that the caller's code is bound to, as a handler's is.
        settings: name the policy file and the limits; by default the environment's, with ``policies.toml`` in the working folder.
            Keys are made by the policies, so they must be those of the broadcaster.

    Returns:
        The keys of the distinct events, in order.

    Raises:
        InvalidEvent: the events are refused, as they would be at the other doors.
        InboxFull: the deployment takes no more for now; ``retry_after_s`` says when to come back. Abort the transaction.
        StoreUnavailable, CommitUnknown: without a transaction: not known to be stored; accept the same events again.
        pymongo.errors.PyMongoError: inside a transaction the driver's errors pass unchanged, so that ``with_transaction`` knows them.
    """
    at_majority = db.with_options(**_AT_MAJORITY)
    _check_room(at_majority, _of(settings)[0])
    submission, document = _document(events, settings)
    session = session or _bound(db)
    if session is not None:
        at_majority["inbox"].insert_one(document, session=session)
    else:
        _write(Inbox(at_majority), document, _of(settings)[0])
    return list(submission.keys)


async def accept_async(
    events: dict[str, Any] | Sequence[dict[str, Any]],
    *,
    db: "AsyncDatabase[Any]",
    session: "AsyncClientSession | None" = None,
    settings: Settings | None = None,
) -> list[str]:
    """:func:`accept` inside a transaction of an ``AsyncMongoClient``; there is none outside of one.

    Raises:
        ValueError: there is no session, and the caller's code is bound to none.
    """
    session = session or _bound(db)
    if session is None:
        raise ValueError("accept_async needs a session in a transaction; accept works without")
    at_majority = db.with_options(**_AT_MAJORITY)
    await _check_room_async(at_majority, _of(settings)[0])
    submission, document = _document(events, settings)
    await at_majority["inbox"].insert_one(document, session=session)
    return list(submission.keys)


def _bound(db: Any) -> Any:
    """The session in whose transaction the caller's code runs, without naming it: what is accepted there must not escape it."""
    find = getattr(db.client, "_get_bound_session", None)
    session = None if find is None else find()
    return session if session is not None and session.in_transaction else None


class _Rooms:
    """Why each database takes no more, as it was seen last; asked again after ``_FRESH_S``."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Any, dict[str, tuple[float, str]]] = WeakKeyDictionary()

    def due(self, db: Any) -> bool:
        """Whether it is time to ask; whoever is told so asks."""
        asked_at, reason = self._of(db).get(db.name, (float("-inf"), ""))
        due = time.monotonic() - asked_at > _FRESH_S
        if due:
            self._of(db)[db.name] = time.monotonic(), reason
        return due

    def note(self, db: Any, reason: str) -> None:
        """What was found."""
        self._of(db)[db.name] = time.monotonic(), reason

    def check(self, db: Any) -> None:
        """Raise InboxFull where it was found full."""
        if reason := self._of(db).get(db.name, (0.0, ""))[1]:
            raise InboxFull(reason)

    def _of(self, db: Any) -> dict[str, tuple[float, str]]:
        return self._seen.setdefault(db.client, {})


_rooms = _Rooms()
_unlimited: ContextVar[bool] = ContextVar("unlimited", default=False)


@contextlib.contextmanager
def without_limits() -> Iterator[None]:
    """Inside, in this thread or task, the limits are not asked: for handlers."""
    before = _unlimited.set(True)
    try:
        yield
    finally:
        _unlimited.reset(before)


def _check_room(db: "Database[Any]", settings: Settings) -> None:
    """Ask in a session of its own: one that is bound to the producer's code would bring the question into its transaction.

    Not a causally consistent one, which would wait for a majority where there is none.
    """
    if _unlimited.get():
        return
    if _rooms.due(db):
        with (
            contextlib.suppress(TransientError, PyMongoError),
            db.client.start_session(causal_consistency=False) as own,
        ):  # then the write will say it
            _rooms.note(db, why_full(measure(db, own), settings))
    _rooms.check(db)


async def _check_room_async(db: "AsyncDatabase[Any]", settings: Settings) -> None:
    if _unlimited.get():
        return
    if _rooms.due(db):
        with contextlib.suppress(TransientError, PyMongoError):
            async with db.client.start_session(causal_consistency=False) as own:
                _rooms.note(db, why_full(await measure_async(db, own), settings))
    _rooms.check(db)


def _document(events: dict[str, Any] | Sequence[dict[str, Any]], settings: Settings | None) -> tuple[Submission, Document]:
    settings, parser = _of(settings)
    items = [events] if isinstance(events, dict) else list(events)
    submission = prepare(parser.values(items))
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
