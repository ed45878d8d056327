"""Steps 4 and 5, handle and commit: ledger documents first, then the handlers, in one majority transaction per slice.

Events without handlers are one unordered insert. When a slice's transaction does not go through, for whatever reason, its
events run one by one, so that a bad one harms only itself. A suspect runs alone, after its start has been counted.
"""

import contextlib
import random
import time
from collections.abc import Sequence

from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from app.errors import PermanentError, StoreUnavailable, TransientError
from app.stores.mongo import DUPLICATE_KEY, answers, first_line
from workers.failing import quarantine, record_deadly, record_failure, start_was_interrupted
from workers.handling import HandlerRaised, run_at_least_once
from workers.run import Run, Work
from workers.transaction import ClaimLost, CommitLost, commit_transaction_of, ledger_document

BATCH_TRIES = 3
"""Tries of a slice's transaction against write conflicts, before its events run one by one."""


class TookTooLong(PermanentError):
    """A handler's transaction outlived its limit while MongoDB was well: the handler's failure."""


def commit(run: Run, works: Sequence[Work], session: ClientSession | None) -> None:
    """Commit what can be committed; record what fails; leave held what an outage interrupts.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    plain = [work for work in works if not work.handlers]
    handled = [work for work in works if work.handlers]
    store(run, plain)
    if not handled or session is None:
        return
    ready = [work for work in handled if not work.suspect and _ran_at_least_once(run, work)]
    if len(ready) > 1 and _commit_together(run, ready, session):
        _won(run, ready)
    else:
        for work in ready:
            commit_alone(run, work, session)
    for work in handled:
        if work.suspect:
            commit_suspect(run, work, session)


def store(run: Run, works: Sequence[Work]) -> None:
    """Commit events that have no handlers left to run: one unordered insert at majority."""
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
            run.tally.skip("done", committed.listener)
            run.complete([work.entry.key])
        else:
            quarantine(run, [(work.entry, committed.digest)])


def commit_suspect(run: Run, work: Work, session: ClientSession) -> None:
    """Run a suspect alone in its process, counted before it begins; after too many starts that never ended it is dead."""
    lost_starts = work.failure.starts if work.failure else 0
    if work.attempts + lost_starts >= work.policy.max_attempts:
        record_deadly(run, work)
        return
    due_ms = int(work.policy.max_handler_s * 1000) + 2 * run.runtime.settings.lease_ms
    with run.runtime.alone:
        failure = run.runtime.failures.record_start(work.entry, run.origin(work.token), due_ms=due_ms)
        if failure is None:
            run.release([work.entry.key])
            return
        work.failure, work.started = failure, True
        run.log.info("event.solo", key=work.entry.key, token=work.token, starts=failure.starts)
        try:
            if _ran_at_least_once(run, work):
                commit_alone(run, work, session)
        except TransientError:
            start_was_interrupted(run, work)
            raise
        if work.started:
            start_was_interrupted(run, work)


def commit_alone(run: Run, work: Work, session: ClientSession) -> None:
    """Commit one event in a transaction of its own, trying again on write conflicts for as long as its handler may take.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    started = time.monotonic()
    tries = 0
    while True:
        tries += 1
        try:
            commit_transaction_of(run, [work], session)
        except HandlerRaised as raised:
            record_failure(run, work, raised.error)
        except ClaimLost:
            run.release([work.entry.key])
        except CommitLost:
            judge_taken(run, [work])
        except PyMongoError as error:
            if error_code(error) == DUPLICATE_KEY:
                judge_taken(run, [work])
            elif not answers(run.runtime.db):
                raise StoreUnavailable(f"MongoDB did not answer while committing: {first_line(error)}") from error
            elif time.monotonic() - started > work.policy.max_handler_s:
                record_failure(run, work, TookTooLong(f"its transaction did not end within {work.policy.max_handler_s:g} s: {first_line(error)}"))
            elif error.has_error_label("TransientTransactionError"):
                time.sleep(random.uniform(0.002, 0.02) * min(tries, 10))  # noqa: S311 - spreads retries
                continue
            else:
                record_failure(run, work, error)
        else:
            _won(run, [work])
        return


def error_code(error: PyMongoError) -> int | None:
    """The server's code of an error, from its first write error for a bulk one."""
    details = getattr(error, "details", None) or {}
    write_errors = details.get("writeErrors") or [{}]
    return write_errors[0].get("code") or getattr(error, "code", None)


def _commit_together(run: Run, works: Sequence[Work], session: ClientSession) -> bool:
    for attempt in range(BATCH_TRIES):
        try:
            commit_transaction_of(run, works, session)
        except PyMongoError as error:
            if not answers(run.runtime.db):
                raise StoreUnavailable(f"MongoDB did not answer while committing: {first_line(error)}") from error
            if not error.has_error_label("TransientTransactionError"):
                break
            time.sleep(random.uniform(0.002, 0.02) * (attempt + 1))  # noqa: S311 - spreads retries
        except (HandlerRaised, ClaimLost, CommitLost) as error:
            run.log.info("batch.one_by_one", events=len(works), reason=type(error).__name__)
            return False
        else:
            return True
    run.log.info("batch.one_by_one", events=len(works), reason="write conflicts")
    return False


def _ran_at_least_once(run: Run, work: Work) -> bool:
    try:
        run_at_least_once(run, work)
    except HandlerRaised as raised:
        record_failure(run, work, raised.error)
        return False
    return True


def _won(run: Run, works: Sequence[Work]) -> None:
    if not works:
        return
    run.confirm(work.pair for work in works)
    run.tally.won += len(works)
    failed_before = [work.pair for work in works if work.failure is not None]
    for work in works:
        work.started = False
    run.log.debug("batch.committed", events=len(works))
    run.complete(work.entry.key for work in works)
    if failed_before:
        with contextlib.suppress(TransientError):  # the sweeper removes what the ledger refutes
            run.runtime.failures.remove(failed_before)
