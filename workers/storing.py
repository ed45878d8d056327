"""What the ledger says: events committed by one insert, what a taken key means, and what follows from a commit."""

import contextlib
from collections.abc import Sequence

from app.errors import PermanentError, TransientError
from workers.failing import quarantine, record_failure
from workers.run import Run, Work
from workers.transaction import ledger_document


def store(run: Run, works: Sequence[Work]) -> None:
    """Commit events that have no handlers left to run: one unordered insert at majority."""
    for work in works:
        if work.generation:
            recommitted = run.runtime.ledger.recommit(ledger_document(run, work), work.generation)
            won(run, [work]) if recommitted else judge_taken(run, [work])
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
    won(run, works)


def judge_taken(run: Run, works: Sequence[Work]) -> None:
    """After a duplicate key: read again by majority. Ours: won; same digest: skipped; other: conflict; absent: given back."""
    if not works:
        return
    found = run.runtime.ledger.find([work.entry.key for work in works])
    for work in works:
        committed = found.get(work.entry.key)
        if committed is None:
            run.release([work.entry.key])
        elif committed.claim_id == run.claim_id and committed.digest == work.entry.digest:
            won(run, [work])
        elif work.entry.digest in committed.digests:
            run.confirm([work.pair])
            run.tally.skip("done", committed.listener, work.entry.key)
            run.complete([work.entry.key])
        else:
            quarantine(run, [(work.entry, committed.digest)])


def won(run: Run, works: Sequence[Work]) -> None:
    """Note that own commits of events stand: their claims become marks, and what was known of their failures goes."""
    if not works:
        return
    run.confirm(work.pair for work in works)
    run.tally.win([work.entry.key for work in works])
    run.runtime.measures.committed(run.delivery, [w.entry.key for w in works if not w.generation])  # how long others took tells nothing
    failed_before = [work.pair for work in works if work.failure is not None]
    for work in works:
        work.solo_noted = False
    run.log.debug("batch.committed", events=len(works))
    run.complete(work.entry.key for work in works)
    if failed_before:
        with contextlib.suppress(TransientError):  # the sweeper removes what the ledger refutes
            run.runtime.failures.remove(failed_before, {w.entry.key: max(w.generation, w.failure.generation) for w in works if w.failure})
