"""Running the users' handlers for one event."""

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.outbox import without_limits
from app.stores.mongo import INTERRUPTED, error_code
from app.stores.records import event_of
from workers.handlers import Context, Handler, checked_result
from workers.run import Run, Work

_EXITS_OF_THE_POOL = frozenset(-(256 - signum) for signum in signal.Signals)
"""With these codes billiard ends a child on a signal; a handler's ``sys.exit(-1)`` is none of them."""


class HandlerRaised(Exception):
    """A handler raised; ``error`` is what it raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)  # its text may be anything, and raise when it is asked for
        self.error = error


def run_at_least_once(run: Run, work: Work) -> None:
    """Run the plain handlers that stand outside the transaction, before the commit.

    Raises:
        HandlerRaised: one of them failed, or of handlers none of which is to follow, the results cannot be kept.
    """
    plain = [h for h in work.handlers if h.at_least_once and not h.is_async]
    work.results = _call(run, work, plain, run.runtime.db, inside=False) if plain else []
    if len(plain) == len(work.handlers):
        work.result = _checked(work.results)


async def run_async_at_least_once(run: Run, work: Work) -> None:
    """The same with ``async def`` ones, which come after the plain ones; those run in a thread, so that nobody waits for them.

    Raises:
        As :func:`run_at_least_once`.
    """
    if any(h.at_least_once and not h.is_async for h in work.handlers):
        await asyncio.to_thread(run_at_least_once, run, work)
    if on_loop := [h for h in work.handlers if h.at_least_once and h.is_async]:
        work.results += await _call_async(run, work, on_loop, run.runtime.async_db(), inside=False)
    if not work.transactional:
        work.result = _checked(work.results)


def run_transactional(run: Run, work: Work, db: Database[Any]) -> None:
    """Run the transactional handlers, and note what the ledger is to keep of the results of all handlers of the event.

    The caller has a transaction open and its session bound; ``db`` is what :func:`app.stores.mongo.in_transaction` gives.

    Raises:
        HandlerRaised: one of them failed.
        PyMongoError: the transaction is over for a reason that is not the handler's (a write conflict, say).
    """
    work.result = _checked([*work.results, *_call(run, work, work.transactional, db, inside=True)])


async def run_async_transactional(run: Run, work: Work, db: AsyncDatabase[Any]) -> None:
    """The same for ``async def`` handlers."""
    work.result = _checked([*work.results, *await _call_async(run, work, work.transactional, db, inside=True)])


def _checked(results: list[Any]) -> Any:
    try:
        return checked_result(results)
    except Exception as error:  # a user's object may raise anything when it is looked at
        raise HandlerRaised(error) from error


def _call(run: Run, work: Work, handlers: Sequence[Handler], db: Any, *, inside: bool) -> list[Any]:
    with _judging(run, work, inside=inside):
        event, context = event_of(work.entry), _context(run, work, db)
        return [handler.function(event, context) for handler in handlers]


async def _call_async(run: Run, work: Work, handlers: Sequence[Handler], db: Any, *, inside: bool) -> list[Any]:
    with _judging(run, work, inside=inside):
        event, context = event_of(work.entry), _context(run, work, db)
        return [await handler.function(event, context) for handler in handlers]


@contextmanager
def _judging(run: Run, work: Work, *, inside: bool) -> Iterator[None]:
    """Note that a handler runs, and tell what it raises from a transaction that is over, if it is inside one of ours."""
    with run.runtime.renewal.running(work.entry.key, work.policy.max_handler_s), without_limits():
        try:
            yield
        except PyMongoError as error:
            if inside and (error.has_error_label("TransientTransactionError") or error_code(error) == INTERRUPTED):
                raise
            raise HandlerRaised(error) from error
        except BaseException as error:
            if _ends_the_process(run, error):
                raise
            raise HandlerRaised(error) from error  # an exit or a cancellation of the handler's own is an error like any other


def _ends_the_process(run: Run, error: BaseException) -> bool:
    """Whether it is not the handler's: the pool or the worker ends, or Ctrl-C in a program that only borrows the pipeline, as tests do."""
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler  # which no listener has
    return isinstance(error, SystemExit) and (run.runtime.ending() or error.code in _EXITS_OF_THE_POOL)


def _context(run: Run, work: Work, db: Any) -> Context:
    return Context(
        db=db,
        key=work.entry.key,
        fencing_token=work.token,
        attempt=work.attempts + 1,
        listener=run.listener,
    )
