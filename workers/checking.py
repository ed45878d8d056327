"""Steps 2 and 3, fetch and check: what MongoDB says about events that were won, read by majority.

The order of the reads is the order in which an event moves: inbox, failures, ledger. So an event seen in none of the last
two was unfinished when it was seen in the first.
"""

from datetime import datetime, timedelta

from app.claims.store import Answer
from app.messages import EventRef
from app.stores.failures import Failure, ahead_of
from app.stores.progress import Pair
from app.stores.records import Entry, utc_now
from workers.failing import quarantine, refuse, store_stale
from workers.run import SUSPECT_FORWARDS, Run, Work, counted_from


def fetch(run: Run, events: list[EventRef]) -> dict[Pair, Entry] | None:
    """The bodies, from the inbox, or from ``failures`` for a delivery without a batch.

    Returns:
        Entries by (key, digest), without those that are not there any more; None when all batches are gone, which is
        no proof of anything: what was claimed is given back.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    if run.delivery.batch is None:
        found = run.runtime.failures.fetch((key, digest) for key, digest, _ in events)
        run.errors.update({(entry.key, entry.digest): failure.error for entry, failure in found.values() if failure.error is not None})
        return {(entry.key, entry.digest): entry for entry, _ in found.values()}
    if not run.batches:
        run.batches = run.runtime.inbox.fetch([part.batch for part in run.delivery.batches if part.batch is not None])
        run.entries = {(entry.key, entry.digest): entry for batch in run.batches.values() for entry in batch.entries}
    return run.entries if run.batches else None


def check(run: Run, won: list[tuple[Entry, Answer]]) -> list[Work]:
    """Sort out what is finished, in conflict, not due, too old, or noted by another version; the rest is to be handled.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    if not won:
        return []
    keys = [entry.key for entry, _ in won]
    failures = run.runtime.failures.of_keys(keys)
    ledger = run.runtime.ledger.look(keys)
    works: list[Work] = []
    done: list[Entry] = []
    marked: list[str] = []
    stale: list[Entry] = []
    unreadable: list[str] = []
    conflicts: list[tuple[Entry, str]] = []
    back: list[str] = []
    now = run.runtime.failures.now() if any(f.due_at is not None for found in failures.values() for f in found) else None
    for entry, answer in won:
        committed = ledger.get(entry.key)
        found = failures.get(entry.key, [])
        own = next((f for f in found if f.digest == entry.digest), None)
        if committed is not None and committed.known:
            if entry.digest in committed.digests:
                done.append(entry)
                (back if committed.discarded else marked).append(entry.key)  # a mark would keep out what may take a tombstone's place
                run.tally.skip("done", committed.listener, entry.key)
                continue
            if entry.digest != committed.digest and not (committed.discarded and own is not None):
                conflicts.append((entry, committed.digest))
                continue
        holds = committed is not None and not committed.discarded
        if (committed is not None and not committed.known) or any(not f.known for f in found):
            unreadable.append(entry.key)
        elif not holds and (other := ahead_of(found, entry.digest)) is not None:  # what is reopened holds its key already
            conflicts.append((entry, other.digest))
        elif own is not None and (why := _why_not_now(own, now)):
            run.confirm([(entry.key, entry.digest)])
            run.tally.skip("in failures:", why, entry.key)
            back.append(entry.key)
        elif not holds and _is_stale(run, entry, own):
            stale.append(entry)
        elif (token := _token(run, answer, own)) is None:
            back.append(entry.key)
        else:
            works.append(_work(run, entry, answer, token, own, generation=committed.place if committed is not None else 0))
    run.confirm((entry.key, entry.digest) for entry in done)
    run.complete(marked)
    run.release(back)
    quarantine(run, conflicts)
    store_stale(run, stale)
    refuse(run, unreadable)
    return works


def _why_not_now(failure: Failure, now: datetime | None) -> str:
    """Why a failed event is not to be handled now; empty: it is."""
    if failure.state != "retrying":
        return failure.state
    return "not due" if now is not None and failure.due_at is not None and failure.due_at > now else ""


def _token(run: Run, answer: Answer, failure: Failure | None) -> int | None:
    """The token to work under, which no earlier writer of the failure had; None when the claim is another's by now.

    A failure with a higher token was written by a later winner, or before the clock of Redis went back. In the second case the
    claim is still ours, and goes on above that token; or else its attempts would never be counted.
    """
    if failure is None or failure.token <= answer.token:
        return answer.token
    [found] = run.claims.inspect([failure.key])
    return failure.token + 1 if found is not None and found.claim_id == run.claim_id else None


def _work(run: Run, entry: Entry, answer: Answer, token: int, failure: Failure | None, *, generation: int) -> Work:
    handlers = run.runtime.handlers.for_type(entry.type)
    suspect = answer.taken_over or run.delivery.forwards >= SUSPECT_FORWARDS or (failure is not None and failure.starts > 0)
    return Work(
        entry=entry,
        token=token,
        handlers=handlers,
        policy=run.runtime.policies.of(entry.type),
        failure=failure,
        suspect=bool(handlers) and suspect,
        previous_owner=answer.owner,
        found=failure,
        generation=generation,
    )


def _is_stale(run: Run, entry: Entry, failure: Failure | None) -> bool:
    retention_s = run.runtime.policies.of(entry.type).retention_s
    since = counted_from(run.delivery.part_of(entry.key).accepted_at, failure)
    return bool(retention_s) and since < utc_now() - timedelta(seconds=retention_s)
