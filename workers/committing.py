"""Steps 4 and 5, handle and commit: ledger documents first, then the handlers, in one majority transaction per slice.

Events without transactional handlers are one unordered insert. When a slice's transaction does not go through, for whatever reason, its
events run one by one, so that a bad one harms only itself. Events with ``async def`` handlers run beside each other
(:mod:`workers.concurrency`). A suspect runs alone, after its start has been counted.
"""

import random
import time
from collections.abc import Sequence

from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from app.errors import StoreUnavailable, TransientError
from app.stores.mongo import answers, first_line
from workers.concurrency import commit_concurrently
from workers.failing import record_deadly, record_failure, start_was_interrupted
from workers.handling import HandlerRaised, run_at_least_once
from workers.judging import NOT_THROUGH, judge, named
from workers.run import Run, Work
from workers.sessions import Sessions
from workers.storing import store, won
from workers.transaction import ClaimLost, CommitLost, KeyTaken, commit_transaction_of

LONGEST_PAUSE_S = 0.05
"""Between two tries against write conflicts: about as long as another listener's transaction takes."""


def commit(run: Run, works: Sequence[Work], sessions: Sessions) -> None:
    """Commit what can be committed; record what fails; leave held what an outage interrupts.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    store(run, [work for work in works if not work.handlers])
    handled = [work for work in works if work.handlers]
    if not handled:
        return
    calm = [work for work in handled if not work.suspect]
    ready = [work for work in calm if not work.waits and _ran_at_least_once(run, work)]
    store(run, [work for work in ready if not work.transactional])
    commit_together(run, [work for work in ready if work.transactional], sessions)
    _commit_waiting(run, [work for work in calm if work.waits], sessions)
    for work in handled:
        if work.suspect:
            commit_suspect(run, work, sessions)


def commit_suspect(run: Run, work: Work, sessions: Sessions) -> None:
    """Run a suspect alone in its process, counted before it begins; after too many starts that never ended it is dead."""
    lost_starts = work.failure.starts if work.failure else 0
    if work.attempts + lost_starts >= work.policy.max_attempts:
        record_deadly(run, work)
        return
    due_ms = work.policy.lease_ms + run.runtime.settings.grace_ms  # while it runs, its claim puts it off further
    with run.runtime.alone:
        try:
            failure = run.runtime.failures.record_start(work.entry, run.origin(work.entry.key, work.token), due_ms=due_ms)
            if failure is None:
                run.release([work.entry.key])
                return
            work.failure, work.solo_noted = failure, True
            run.log.info("event.solo", key=work.entry.key, token=work.token, starts=failure.starts)
            if work.waits:
                _commit_waiting(run, [work], sessions)
            elif _ran_at_least_once(run, work):
                commit_together(run, [work], sessions) if work.transactional else store(run, [work])
        except (TransientError, SystemExit):  # an outage, or the listener is told to end at once: not the event's fault
            start_was_interrupted(run, work)
            raise
        if work.solo_noted:
            start_was_interrupted(run, work)


def commit_together(run: Run, works: Sequence[Work], sessions: Sessions) -> None:
    """Commit a slice in one transaction; one by one when that does not go through."""
    if len(works) > 1 and _went_together(run, works, sessions):
        won(run, works)
        return
    for work in works:
        commit_alone(run, work, sessions)


def _commit_waiting(run: Run, works: Sequence[Work], sessions: Sessions) -> None:
    commit_concurrently(run, works, sessions, together=lambda ready: commit_together(run, ready, sessions))


def commit_alone(run: Run, work: Work, sessions: Sessions) -> None:
    """Commit one event in a transaction of its own, trying again on write conflicts for as long as its handler may take.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    give_up_at = time.monotonic() + work.policy.max_handler_s
    tries = 0
    while True:
        tries += 1
        try:
            commit_transaction_of(run, [work], _plain(sessions))
        except NOT_THROUGH as error:
            if judge(run, work, error, session_id=sessions.id_for(work.entry.key), give_up_at=give_up_at):
                return
            time.sleep(random.uniform(0.002, 0.02) * min(tries, 10))
        else:
            won(run, [work])
            return


def _plain(sessions: Sessions) -> ClientSession:
    assert sessions.plain is not None, "a slice with handlers has a session"
    return sessions.plain


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
                run.log.info("batch.one_by_one", events=len(works), tries=tries, reason=named(error))
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
        record_failure(run, work, raised.error)
        return False
    return True
