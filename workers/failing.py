"""What becomes of events that do not go through: retried, dead, in conflict, stale. Each is stored with its body.

Every failure is written to MongoDB first, by majority and filtered by fencing token; only then is its claim given back.
"""

import contextlib
import random
import traceback
from collections.abc import Callable, Sequence

from app.errors import TransientError
from app.events.policy import Policy
from app.naming import MESSAGE_VERSION
from app.stores.failures import Problem, ahead_of
from app.stores.mongo import end_transactions
from app.stores.progress import Pair
from app.stores.records import Entry
from workers.handlers import PermanentFailure, RetryLater
from workers.run import Run, Work
from workers.runtime import Runtime

MAX_REASON = 500
MAX_MESSAGE = 2_000
MAX_TRACEBACK = 8_000
"""Characters of what is kept of an error: of its reason and its message from the beginning, of its traceback from the end."""


def record_failure(run: Run, work: Work, error: BaseException) -> None:
    """Store what a handler's run raised, and decide what comes next: again after a pause, or dead.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away; then the event is left, and no attempt is counted.
    """
    policy, name, text = work.policy, type(error).__name__, _said(lambda: str(error))
    if isinstance(error, RetryLater):
        _record(run, work, Problem(text[:MAX_REASON]), delay_ms=int(error.seconds * 1000), counts=False, told=name)
        return
    attempts = work.attempts + 1
    trace = _said(lambda: "".join(traceback.format_exception(error)))
    problem = Problem(f"{name}: {text}"[:MAX_REASON], {"type": name, "message": text[:MAX_MESSAGE], "traceback": trace[-MAX_TRACEBACK:]})
    dead = isinstance(error, PermanentFailure) or attempts >= policy.max_attempts
    delay_ms = None if dead else backoff_ms(policy, attempts)
    _record(run, work, problem, delay_ms=delay_ms, told=name)


def record_deadly(run: Run, work: Work) -> None:
    """Store as dead an event whose solo runs never ended: it kills or hangs its process."""
    problem = Problem("it kills or hangs its process: its solo runs began and never ended")
    _record(run, work, problem, delay_ms=None, counts=False, told=problem.reason)


def _record(run: Run, work: Work, problem: Problem, *, delay_ms: int | None, counts: bool = True, told: str) -> None:
    """Store it; the log is told no more than ``told``, since what an error says may quote the payload."""
    entry = work.entry
    written = run.runtime.failures.record_attempt(
        entry, run.origin(entry.key, work.token), problem, delay_ms=delay_ms, ended_start=work.solo_noted, counts=counts
    )
    work.solo_noted = False
    if written:
        run.confirm([work.pair])
        run.tally.fail("dead" if delay_ms is None else "retrying", entry.key)
        run.log.warning(
            "event.dead" if delay_ms is None else "event.failed",
            key=entry.key,
            token=work.token,
            attempt=work.attempts + counts,
            reason=told,
            delay_ms=delay_ms,
        )
    run.release([entry.key])


def quarantine(run: Run, conflicts: Sequence[tuple[Entry, str]]) -> None:
    """Store events whose key MongoDB shows to be held with other content, unless it shows theirs as finished too.

    A tombstone holds its key against content that comes anew, not against content that waits in ``failures`` for its retry.

    A claim alone proves nothing: its holder may give it back, and two contents would keep each other out for ever. So an
    event that only Redis finds in conflict is left; the sweeper sends it again, when nobody holds the other content any more.

    Args:
        run: the task's execution.
        conflicts: events, each with the digest that was seen to hold its key.

    Raises:
        StoreUnavailable, CommitUnknown, RedisUnavailable: a server is away.
    """
    if not conflicts:
        return
    keys = [entry.key for entry, _ in conflicts]
    failures = run.runtime.failures.of_keys(keys)
    ledger = run.runtime.ledger.find(keys)
    unproved: list[tuple[str, str]] = []
    unreadable: list[str] = []
    for entry, seen in conflicts:
        committed = ledger.get(entry.key)
        if (committed is not None and not committed.known) or any(not f.known for f in failures.get(entry.key, ())):
            unreadable.append(entry.key)
            continue
        found = failures.get(entry.key, [])
        other = ahead_of(found, entry.digest)
        waits = any(f.digest == entry.digest and f.state == "retrying" for f in found)
        ignore = run.runtime.policies.of(entry.type).ignores_conflicts
        if committed is not None and entry.digest in committed.digests:
            run.confirm([(entry.key, entry.digest)])
            run.tally.skip("done", committed.listener, entry.key)
        elif committed is not None and ignore and not committed.discarded:
            _ignore(run, entry, retrying=waits)
        elif committed is not None and not (committed.discarded and waits):
            _store_conflict(run, entry, committed.digest)
        elif other is None:
            unproved.append((entry.key, seen))
        elif not ignore or other.state == "dead":
            _store_conflict(run, entry, other.digest)
        run.release([entry.key])
    refuse(run, unreadable)
    _let_go(run, unproved)


def refuse(run: Run, keys: Sequence[str]) -> None:
    """Leave events of whose keys another version of this software has noted something: only it can tell what."""
    if keys:
        run.log.error("event.refused", events=len(keys), first=keys[0], known=MESSAGE_VERSION, reason="a record of another version")
        run.release(keys)


def _let_go(run: Run, unproved: Sequence[Pair]) -> None:
    """Of other content that MongoDB knows nothing of: forget marks that are refuted, and claims that nobody holds any more."""
    if not unproved:
        return
    keys, digests = [key for key, _ in unproved], [digest for _, digest in unproved]
    run.claims.forget_done(keys, digests)
    end_transactions(run.runtime.db, {found.session for found in run.claims.inspect(keys) if found is not None and not found.live})
    run.claims.forget_lapsed(keys, digests)


def _store_conflict(run: Run, entry: Entry, other_digest: str) -> None:
    more = {"reason": "same key, other content", "other_digest": other_digest}
    run.runtime.failures.record_final([(entry, run.origin(entry.key, 0), "conflict", more)])
    run.confirm([(entry.key, entry.digest)])
    run.tally.fail("conflict", entry.key)
    run.log.warning("event.conflict", key=entry.key, digest=entry.digest, other_digest=other_digest)


def _ignore(run: Run, entry: Entry, *, retrying: bool) -> None:
    """Skip the other content, and try it no more. Nothing is kept of it: however many contents come for a key, none costs a write."""
    if retrying:
        run.runtime.failures.remove([(entry.key, entry.digest)])
    run.confirm([(entry.key, entry.digest)])
    run.tally.skip("ignored", "conflict", entry.key)


def store_stale(run: Run, entries: Sequence[Entry]) -> None:
    """Store events that were accepted, or last retried by an operator, before their retention began: whether they were processed then, nobody can tell."""
    if not entries:
        return
    more = {"reason": "accepted before its type's retention began, and not in the ledger"}
    run.runtime.failures.record_final([(entry, run.origin(entry.key, 0), "stale", more) for entry in entries])
    run.confirm((entry.key, entry.digest) for entry in entries)
    for entry in entries:
        run.tally.fail("stale", entry.key)
        run.log.warning("event.stale", key=entry.key)
    run.release([entry.key for entry in entries])


def note_ended_starts(runtime: Runtime) -> None:
    """Take back the starts of solo runs that an outage ended: they are nobody's attempt. Several threads may take the same one back."""
    for start in list(runtime.unended):
        runtime.failures.end_start(*start)
        with contextlib.suppress(ValueError):  # another thread has, too
            runtime.unended.remove(start)


def start_was_interrupted(run: Run, work: Work) -> None:
    """An outage, or the end of its process on a signal, ended a solo run: take its start back now, or as soon as MongoDB answers."""
    run.runtime.unended.append((*work.pair, work.token))
    work.solo_noted = False
    try:
        note_ended_starts(run.runtime)
    except TransientError as error:
        run.log.warning("event.start_not_ended", key=work.entry.key, token=work.token, error=str(error))


def backoff_ms(policy: Policy, attempts: int) -> int:
    """Pause before the next attempt: the policy's longest, times 0.5 to 1.

    Source: "equal jitter", Marc Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    return int(policy.longest_pause_ms(attempts) * random.uniform(0.5, 1.0))


def _said(give: Callable[[], str]) -> str:
    """What an error says of itself, which is a user's object and may raise; without lone surrogates, which MongoDB does not take."""
    try:
        text = give()
    except Exception as other:  # noqa: BLE001
        text = f"({type(other).__name__} when it was asked what it says)"
    return text.encode("utf-8", "backslashreplace").decode()
