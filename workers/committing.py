"""Steps 4 and 5, handle and commit: ledger documents first, then the handlers, in one majority transaction per slice.

Events without handlers are one unordered insert. When a slice's transaction does not go through, for whatever reason, its
events run one by one, so that a bad one harms only itself. A suspect runs alone, after its start has been counted.
"""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from app.errors import PermanentError, StoreUnavailable, TransientError
from app.stores.mongo import DUPLICATE_KEY, answers, end_transactions, first_line
from workers.failing import quarantine, record_deadly, record_failure, start_was_interrupted
from workers.handling import HandlerRaised, run_at_least_once
from workers.run import Run, Work
from workers.sessions import Sessions
from workers.transaction import ClaimLost, CommitLost, KeyTaken, commit_async_transaction_of, commit_transaction_of, ledger_document

T = TypeVar("T")

LONGEST_PAUSE_S = 0.05
"""Between two tries against write conflicts: about as long as another listener's transaction takes."""


class TookTooLong(PermanentError):
    """A handler's transaction outlived its limit while MongoDB was well: the handler's failure."""


def commit(run: Run, works: Sequence[Work], sessions: Sessions) -> None:
    """Commit what can be committed; record what fails; leave held what an outage interrupts.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    store(run, [work for work in works if not work.handlers])
    handled = [work for work in works if work.handlers]
    if not handled:
        return
    ready = _through_at_least_once(run, [work for work in handled if not work.suspect])
    commit_together(run, [work for work in ready if not work.is_async], sessions)
    commit_concurrently(run, [work for work in ready if work.is_async], sessions)
    for work in handled:
        if work.suspect:
            commit_suspect(run, work, sessions)


def store(run: Run, works: Sequence[Work]) -> None:
    """Commit events that have no handlers left to run: one unordered insert at majority."""
    for work in works:
        if work.generation:
            recommitted = run.runtime.ledger.recommit(ledger_document(run, work), work.generation)
            _won(run, [work]) if recommitted else judge_taken(run, [work])
    works = [work for work in works if not work.generation]
    if not works:
        return
    try:
        taken = run.runtime.ledger.insert([ledger_document(run, work) for work in works])
    except PermanentError as error:
        if len(works) > 1:
            for work in works:
                store(run, [work])
        else:
            record_failure(run, works[0], error)
        return
    if taken:
        judge_taken(run, [work for work in works if work.entry.key in set(taken)])
        works = [work for work in works if work.entry.key not in set(taken)]
    _won(run, works)


def judge_taken(run: Run, works: Sequence[Work]) -> None:
    """After a duplicate key: read again by majority. Ours: won; same digest: skipped; other: conflict; absent: given back."""
    found = run.runtime.ledger.find([work.entry.key for work in works])
    for work in works:
        committed = found.get(work.entry.key)
        if committed is None:
            run.release([work.entry.key])
        elif committed.claim_id == run.claim_id and committed.digest == work.entry.digest:
            _won(run, [work])
        elif work.entry.digest in committed.digests:
            run.confirm([work.pair])
            run.tally.skip("done", committed.listener, work.entry.key)
            run.complete([work.entry.key])
        else:
            quarantine(run, [(work.entry, committed.digest)])


def commit_suspect(run: Run, work: Work, sessions: Sessions) -> None:
    """Run a suspect alone in its process, counted before it begins; after too many starts that never ended it is dead."""
    lost_starts = work.failure.starts if work.failure else 0
    if work.attempts + lost_starts >= work.policy.max_attempts:
        record_deadly(run, work)
        return
    due_ms = int(work.policy.max_handler_s * 1000) + 2 * run.runtime.settings.lease_ms
    with run.runtime.alone:
        try:
            failure = run.runtime.failures.record_start(work.entry, run.origin(work.entry.key, work.token), due_ms=due_ms)
            if failure is None:
                run.release([work.entry.key])
                return
            work.failure, work.started = failure, True
            run.log.info("event.solo", key=work.entry.key, token=work.token, starts=failure.starts)
            if _ran_at_least_once(run, work):
                commit_alone(run, work, sessions)
        except TransientError:
            start_was_interrupted(run, work)
            raise
        if work.started:
            start_was_interrupted(run, work)


def commit_together(run: Run, works: Sequence[Work], sessions: Sessions) -> None:
    """Commit a slice in one transaction; one by one when that does not go through."""
    if len(works) > 1 and _went_together(run, works, sessions):
        _won(run, works)
        return
    for work in works:
        commit_alone(run, work, sessions)


def commit_concurrently(run: Run, works: Sequence[Work], sessions: Sessions) -> None:
    """Commit events with ``async def`` transactional handlers, each in a transaction of its own, up to ``async_limit`` at once."""
    _at_once(run, works, lambda work: commit_alone(run, work, sessions))


def _through_at_least_once(run: Run, works: Sequence[Work]) -> list[Work]:
    """Run what stands outside transactions, ``async def`` handlers beside each other; the works whose handlers did not fail."""
    passed = {work.entry.key: _ran_at_least_once(run, work) for work in works if not work.waits}
    waiting = [work for work in works if work.waits]
    results = _at_once(run, waiting, lambda work: _ran_at_least_once(run, work))
    passed.update((work.entry.key, ran) for work, ran in zip(waiting, results, strict=True))
    return [work for work in works if passed[work.entry.key]]


def _at_once(run: Run, works: Sequence[Work], step: Callable[[Work], T]) -> list[T]:
    """One step for several events, each in a thread of its own, up to ``async_limit`` at once; all of them are awaited."""
    if not works:
        return []
    with ThreadPoolExecutor(min(len(works), run.runtime.settings.async_limit), thread_name_prefix="async-handlers") as pool:
        waiting = [pool.submit(step, work) for work in works]
    return [one.result() for one in waiting]


def commit_alone(run: Run, work: Work, sessions: Sessions) -> None:
    """Commit one event in a transaction of its own, trying again on write conflicts for as long as its handler may take.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    give_up_at = time.monotonic() + work.policy.max_handler_s
    tries = 1
    while not _tried(run, work, sessions, give_up_at):
        time.sleep(random.uniform(0.002, 0.02) * min(tries, 10))
        tries += 1


def _tried(run: Run, work: Work, sessions: Sessions, give_up_at: float) -> bool:
    """One try; False when another one may go through. What follows from it is noted by one thread at a time."""
    try:
        if work.is_async:
            run.runtime.loop.run(commit_async_transaction_of(run, work, sessions.on_loop[work.entry.key]))
        else:
            commit_transaction_of(run, [work], _plain(sessions))
    except HandlerRaised as raised:
        with run.lock:
            record_failure(run, work, raised.error)
    except ClaimLost:
        with run.lock:
            run.release([work.entry.key])
    except KeyTaken:
        with run.lock:
            judge_taken(run, [work])
    except CommitLost:
        with run.lock:
            end_transactions(run.runtime.db, {sessions.id_for(work.entry.key)})  # then it is either committed or gone
            judge_taken(run, [work])
    except PyMongoError as error:
        with run.lock:
            return _judged(run, work, error, give_up_at)
    else:
        with run.lock:
            _won(run, [work])
    return True


def _judged(run: Run, work: Work, error: PyMongoError, give_up_at: float) -> bool:
    """Tell a taken key, an outage, a transaction that outlived its limit and a write conflict apart."""
    if error_code(error) == DUPLICATE_KEY:
        judge_taken(run, [work])
    elif not answers(run.runtime.db):
        raise StoreUnavailable(f"MongoDB did not answer while committing: {first_line(error)}") from error
    elif time.monotonic() > give_up_at and not work.began:
        run.log.info(
            "event.locked", key=work.entry.key, token=work.token, reason=_named(error)
        )  # by somebody's open transaction: no attempt
        run.release([work.entry.key])
    elif time.monotonic() > give_up_at:
        limit = f"its transaction did not end within {work.policy.max_handler_s:g} s"
        record_failure(run, work, TookTooLong(f"{limit}: {first_line(error)}"))
    elif error.has_error_label("TransientTransactionError"):
        return False
    else:
        record_failure(run, work, error)
    return True


def _plain(sessions: Sessions) -> ClientSession:
    assert sessions.plain is not None, "a slice with handlers has a session"
    return sessions.plain


def error_code(error: PyMongoError) -> int | None:
    """The server's code of an error, from its first write error for a bulk one."""
    details = getattr(error, "details", None) or {}
    write_errors = details.get("writeErrors") or [{}]
    return write_errors[0].get("code") or getattr(error, "code", None)


def _named(error: PyMongoError) -> str:
    """An error for the log: its type and the server's name for it, without its text, which may quote what a handler wrote."""
    code = error_code(error)
    return type(error).__name__ + (f" {code}" if code else "") + (f" {name}" if (name := _code_name(error)) else "")


def _code_name(error: PyMongoError) -> str:
    return str((getattr(error, "details", None) or {}).get("codeName", ""))


def _went_together(run: Run, works: Sequence[Work], sessions: Sessions) -> bool:
    """Commit a slice in one transaction, waiting for others that hold its documents; False when it must go one by one."""
    give_up_at = time.monotonic() + min(work.policy.max_handler_s for work in works)
    tries = 0
    while True:
        tries += 1
        try:
            commit_transaction_of(run, works, _plain(sessions))
        except PyMongoError as error:
            if not answers(run.runtime.db):
                raise StoreUnavailable(f"MongoDB did not answer while committing: {first_line(error)}") from error
            if not error.has_error_label("TransientTransactionError") or time.monotonic() > give_up_at:
                run.log.info("batch.one_by_one", events=len(works), tries=tries, reason=_named(error))
                return False
            time.sleep(random.uniform(0.001, LONGEST_PAUSE_S * min(1.0, tries / 5)))
        except (HandlerRaised, ClaimLost, KeyTaken, CommitLost) as error:
            run.log.info("batch.one_by_one", events=len(works), tries=tries, reason=type(error).__name__)
            return False
        else:
            return True


def _ran_at_least_once(run: Run, work: Work) -> bool:
    try:
        run_at_least_once(run, work)
    except HandlerRaised as raised:
        with run.lock:
            record_failure(run, work, raised.error)
        return False
    return True


def _won(run: Run, works: Sequence[Work]) -> None:
    if not works:
        return
    run.confirm(work.pair for work in works)
    run.tally.win([work.entry.key for work in works])
    run.runtime.measures.committed(run.delivery, [w.entry.key for w in works if not w.generation])  # how long others took tells nothing
    failed_before = [work.pair for work in works if work.failure is not None]
    for work in works:
        work.started = False
    run.log.debug("batch.committed", events=len(works))
    run.complete(work.entry.key for work in works)
    if failed_before:
        with contextlib.suppress(TransientError):  # the sweeper removes what the ledger refutes
            run.runtime.failures.remove(failed_before, {w.entry.key: max(w.generation, w.failure.generation) for w in works if w.failure})
