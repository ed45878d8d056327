"""What becomes of events that do not go through: retried, dead, in conflict, stale. Each is stored with its body.

Every failure is written to MongoDB first, by majority and filtered by fencing token; only then is its claim given back.
"""

import random
import traceback
from collections.abc import Sequence

from app.errors import TransientError
from app.stores.failures import Problem
from app.stores.records import Entry
from workers.handlers import PermanentFailure, RetryLater
from workers.run import Run, Work
from workers.runtime import Runtime

MAX_TRACEBACK = 8_000
"""Characters of a traceback that are kept, from its end."""


def record_failure(run: Run, work: Work, error: BaseException) -> None:
    """Store what a handler's run raised, and decide what comes next: again after a pause, or dead.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away; then the event is left, and no attempt is counted.
    """
    policy = work.policy
    if isinstance(error, RetryLater):
        _record(run, work, Problem(str(error)), delay_ms=max(0, int(error.seconds * 1000)), counts=False)
        return
    attempts = work.attempts + 1
    problem = Problem(f"{type(error).__name__}: {error}"[:500], _described(error))
    dead = isinstance(error, PermanentFailure) or attempts >= policy.max_attempts
    delay_ms = None if dead else backoff_ms(attempts, policy.backoff_ms, policy.backoff_max_ms)
    _record(run, work, problem, delay_ms=delay_ms)


def record_deadly(run: Run, work: Work) -> None:
    """Store as dead an event whose solo runs never ended: it kills or hangs its process."""
    problem = Problem("it kills or hangs its process: its solo runs began and never ended")
    _record(run, work, problem, delay_ms=None, counts=False)


def _record(run: Run, work: Work, problem: Problem, *, delay_ms: int | None, counts: bool = True) -> None:
    entry = work.entry
    written = run.runtime.failures.record_attempt(
        entry, run.origin(work.token), problem, delay_ms=delay_ms, ended_start=work.started, counts=counts
    )
    work.started = False
    if written:
        run.confirm([work.pair])
        run.tally.fail("dead" if delay_ms is None else "retrying")
        run.log.warning(
            "event.dead" if delay_ms is None else "event.failed",
            key=entry.key,
            token=work.token,
            attempt=work.attempts + counts,
            reason=problem.reason,
            delay_ms=delay_ms,
        )
    run.release([entry.key])


def quarantine(run: Run, conflicts: Sequence[tuple[Entry, str]]) -> None:
    """Store events whose key is held with another digest, unless MongoDB shows this digest as finished or its type ignores it.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    if not conflicts:
        return
    ledger = run.runtime.ledger.find([entry.key for entry, _ in conflicts])
    for entry, other_digest in conflicts:
        committed = ledger.get(entry.key)
        pair = (entry.key, entry.digest)
        if committed is not None and entry.digest in committed.digests:
            run.confirm([pair])
            run.tally.skip("done", committed.listener)
        elif run.runtime.policies.of(entry.type).on_conflict == "ignore":
            _ignore(run, entry, committed is not None)
        else:
            other = committed.digest if committed is not None else other_digest
            run.runtime.failures.record_final(
                [(entry, run.origin(0), "conflict", {"reason": "same key, other content", "other_digest": other})]
            )
            run.confirm([pair])
            run.tally.fail("conflict")
            run.log.warning("event.conflict", key=entry.key, digest=entry.digest, other_digest=other)
        run.release([entry.key])


def _ignore(run: Run, entry: Entry, in_ledger: bool) -> None:
    """Count the other content as refused, once the ledger has the key; before that, leave it to the sweeper."""
    if in_ledger and run.runtime.ledger.reject(entry.key, entry.digest):
        run.confirm([(entry.key, entry.digest)])
        run.tally.skip("ignored", "conflict")


def store_stale(run: Run, entries: Sequence[Entry]) -> None:
    """Store events that were accepted before their retention began: whether they were processed then, nobody can tell."""
    if not entries:
        return
    more = {"reason": "accepted before its type's retention began, and not in the ledger"}
    run.runtime.failures.record_final([(entry, run.origin(0), "stale", more) for entry in entries])
    run.confirm((entry.key, entry.digest) for entry in entries)
    for entry in entries:
        run.tally.fail("stale")
        run.log.warning("event.stale", key=entry.key)
    run.release([entry.key for entry in entries])


def note_ended_starts(runtime: Runtime) -> None:
    """Take back the starts of solo runs that an outage ended: they are nobody's attempt."""
    while runtime.unended:
        pair = runtime.unended[0]
        runtime.failures.end_start(*pair)
        runtime.unended.remove(pair)


def start_was_interrupted(run: Run, work: Work) -> None:
    """An outage ended a solo run: take its start back now, or as soon as MongoDB answers."""
    run.runtime.unended.append(work.pair)
    work.started = False
    try:
        note_ended_starts(run.runtime)
    except TransientError as error:
        run.log.warning("event.start_not_ended", key=work.entry.key, error=str(error))


def backoff_ms(attempts: int, base_ms: int, max_ms: int) -> int:
    """Pause before the next attempt: doubling from ``base_ms`` up to ``max_ms``, times 0.5 to 1.

    Source: "equal jitter", Marc Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    full = min(max_ms, base_ms * 2 ** min(attempts - 1, 40))
    return int(full * random.uniform(0.5, 1.0))


def _described(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error)[:2_000], "traceback": text[-MAX_TRACEBACK:]}
