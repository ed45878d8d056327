"""One MongoDB transaction: ledger documents, the handlers' writes, a commit by majority.

The ledger documents of a slice come first, so that a rival's commit is met before any handler runs. An ``async def`` handler's first try is
*lazy*: its transaction begins with its first command, and the ledger document comes last in it; a handler that sends no command needs none.
Every further try is as with plain handlers. Retries are bounded here, since the driver's own ``with_transaction`` would go on for two minutes.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError
from pymongo.operations import UpdateOne

from app.naming import MESSAGE_VERSION
from app.stores.failures import Failure
from app.stores.ledger import expiry, recommitment
from app.stores.mongo import TRANSACTION, Document, in_transaction
from app.stores.records import utc_now
from workers.handling import run_async_transactional, run_transactional
from workers.run import Run, Work, counted_from

COMMIT_RETRY_S = 5.0
"""How long an unanswered commit is repeated; a commit may be repeated safely."""

COMMIT_PAUSE_S = 0.05

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ClaimLost(Exception):
    """Another claim id holds a key of this transaction: its commit would only lose against the ledger."""


class KeyTaken(Exception):
    """A key that was reopened is so no more: it was committed again, or withdrawn. Or its tombstone's place is taken, or this content refused."""


class Unanswered(Exception):
    """A handler began its transaction with a command that got no answer, and went on as if nothing were: nothing was written."""


class CommitLost(Exception):
    """Nobody said whether the commit stands; read the ledger again."""


def ledger_document(run: Run, work: Work) -> Document:
    """The document that proves an event processed."""
    entry, story = work.entry, work.found
    part, batch = run.delivery.part_of(entry.key), run.batch_of(entry.key)
    document: Document = {
        "_id": entry.key,
        "v": MESSAGE_VERSION,
        "digest": entry.digest,
        "type": entry.type,
        "body": entry.body,
        "listener": run.listener,
        "claim_id": run.claim_id,
        "token": work.token,
        "attempt": work.attempts + 1,
        "batch": part.batch or (story.batch if story is not None else None),
        "door": batch.door if batch is not None else story.door if story is not None else None,
        "accepted_at": part.accepted_at,
        "processed_at": utc_now(),
        **expiry(counted_from(part.accepted_at, story), work.policy.retention_s),
    }
    if batch is not None:
        document["forwards"] = run.delivery.forwards
        if run.delivery.seq:
            document["forwarded_at"] = _EPOCH + timedelta(milliseconds=run.delivery.seq // 1000)
    if work.result is not None:
        document["result"] = work.result
    if work.previous_owner:
        document["previous_owner"] = work.previous_owner
    if story is not None and story.generation and work.generation <= 0:  # its retention has removed the reopened document
        document["generation"] = story.generation
    if story is not None and (story.attempts or not story.generation):
        document["failed"] = _failed(run, work, story)
    return document


def _failed(run: Run, work: Work, story: Failure) -> Document:
    """What the ledger keeps of runs that failed before: their document in ``failures`` is removed after the commit."""
    kept = {
        "attempts": story.attempts,
        "starts": story.starts,
        "first_failed_at": story.first_failed_at,
        "at": story.updated_at,
        "listener": story.listener,
        "reason": story.reason,
        "error": run.errors.get(work.pair),
        "decisions": story.decisions,
    }
    return {name: value for name, value in kept.items() if value}


def commit_transaction_of(run: Run, works: Sequence[Work], session: ClientSession) -> None:
    """Commit events and all that their handlers write, or nothing.

    Raises:
        HandlerRaised: a handler failed; nothing was written.
        ClaimLost: a claim was seen to be another's; nothing was written.
        KeyTaken: a key that was reopened is so no more; nothing was written.
        CommitLost: the commit's answer was lost; the ledger must be read again.
        PyMongoError: the transaction did not go through: a taken key, a write conflict, an outage.
    """
    collection, db = run.runtime.ledger.collection, in_transaction(run.runtime.db)
    for work in works:
        work.handlers_began, work.result = False, None
    session.start_transaction(**TRANSACTION)
    try:
        _write_ledger(run, works, session)
        with session.bind(end_session=False):
            for work in works:
                _must_be_held(run, work)
                work.handlers_began = True
                run_transactional(run, work, db)
        if results := [_result_update(work) for work in works if work.result is not None]:
            collection.bulk_write(results, ordered=False, session=session)
        _commit(session)
    except BaseException:
        if session.in_transaction:
            with contextlib.suppress(PyMongoError):
                session.abort_transaction()
        raise


async def commit_async_transaction_of(run: Run, work: Work, session: AsyncClientSession) -> bool:
    """The same for one event whose transactional handlers are ``async def``, on the asynchronous client.

    Returns:
        False when its handlers have run and sent no command to MongoDB: then there is nothing to commit but the event itself.

    Raises:
        As :func:`commit_transaction_of`.
        Unanswered: nothing was written, and another try may go through.
    """
    lazy = session.operation_time is None  # no command was ever sent in it: this is the first try
    work.handlers_began, work.result = False, None
    await session.start_transaction(**TRANSACTION)
    try:
        if not lazy:
            await _write_ledger_async(run, work, session)
        _must_be_held(run, work)
        work.handlers_began = True
        async with session.bind(end_session=False):
            await run_async_transactional(run, work, run.runtime.async_db_in_transaction())
        if lazy and await _has_sent_nothing(session):
            return False
        if lazy:
            await _write_ledger_async(run, work, session)
        elif work.result is not None:
            ledger = run.runtime.async_db()[run.runtime.ledger.collection.name]
            await ledger.bulk_write([_result_update(work)], session=session)
        await _commit_async(session)
    except BaseException:
        if session.in_transaction:
            with contextlib.suppress(PyMongoError):
                await session.abort_transaction()
        raise
    return True


async def _has_sent_nothing(session: AsyncClientSession) -> bool:
    """Whether the handlers gave MongoDB no command; the transaction is over then, and MongoDB never heard of it.

    Its first command takes the transaction out of its starting state before it is sent, whatever becomes of it. Every answer, an error's too,
    brings the session an operation time, be the command a write, a bulk or a cursor's.

    Raises:
        Unanswered: a command was given, and none got an answer.
    """
    nothing = session._starting_transaction  # noqa: SLF001  nothing public tells a command that got no answer from none
    if not nothing and session.operation_time is not None:
        return False
    await session.abort_transaction()
    if not nothing:
        raise Unanswered("no command of its handlers got an answer")
    return True


def _result_update(work: Work) -> UpdateOne:
    return UpdateOne({"_id": work.entry.key}, {"$set": {"result": work.result}})


async def _commit_async(session: AsyncClientSession) -> None:
    give_up_at = time.monotonic() + COMMIT_RETRY_S
    while True:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            _judge_commit(error, give_up_at)
            await asyncio.sleep(COMMIT_PAUSE_S)
        else:
            return


def _write_ledger(run: Run, works: Sequence[Work], session: ClientSession) -> None:
    """Insert the documents of new keys; take the places of those that were reopened, and of tombstones."""
    if new := [ledger_document(run, work) for work in works if not work.generation]:
        run.runtime.ledger.insert(new, session=session)
    for work in works:
        if work.generation and not run.runtime.ledger.recommit(ledger_document(run, work), work.generation, session):
            raise KeyTaken(work.entry.key)


async def _write_ledger_async(run: Run, work: Work, session: AsyncClientSession) -> None:
    collection = run.runtime.async_db()[run.runtime.ledger.collection.name]
    if not work.generation:
        await collection.insert_one(ledger_document(run, work), session=session)
        return
    query, update = recommitment(ledger_document(run, work), work.generation)
    if not (await collection.update_one(query, update, session=session)).matched_count:
        raise KeyTaken(work.entry.key)


def _must_be_held(run: Run, work: Work) -> None:
    if run.runtime.renewal.lost(run.claim_id, work.entry.key):
        raise ClaimLost(work.entry.key)


def _commit(session: ClientSession) -> None:
    give_up_at = time.monotonic() + COMMIT_RETRY_S
    while True:
        try:
            session.commit_transaction()
        except PyMongoError as error:
            _judge_commit(error, give_up_at)
            time.sleep(COMMIT_PAUSE_S)
        else:
            return


def _judge_commit(error: PyMongoError, give_up_at: float) -> None:
    """Return when the commit is to be repeated: its answer was lost, and there is time."""
    if not error.has_error_label("UnknownTransactionCommitResult"):
        raise error
    if time.monotonic() > give_up_at:
        raise CommitLost(str(error)) from error
