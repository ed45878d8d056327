"""The way of a delivery through a listener: claim, fetch, check, commit, complete; and at the end remove its batches.

Guarantees, whatever fails between any two steps:
* an event is committed at most once: the ledger's unique key decides, not the claim (G2, G3);
* nothing is removed from the inbox but what a majority of MongoDB shows to be finished (G1);
* what was claimed and not finished is given back, or its lease runs out.

Events of paused types are *left* in the inbox, unclaimed, and so are slices that have not begun when the listener is told to end.
An outage of MongoDB or Redis ends the run: what is unfinished is left too, nobody's attempt is counted, and the sweeper sends it
again.
"""

import time
from datetime import timedelta

from app.errors import TransientError
from app.messages import Delivery, EventRef
from app.stores.progress import finished
from app.stores.records import utc_now
from workers.checking import check, fetch
from workers.claiming import claim, end_open_transactions
from workers.committing import commit
from workers.failing import note_ended_starts, quarantine
from workers.pace import rotated, slices
from workers.run import Run
from workers.runtime import Runtime
from workers.sessions import sessions_of
from workers.tally import Tally


def process(runtime: Runtime, delivery: Delivery) -> Tally:
    """Run one delivery to its end.

    Returns:
        What became of its events.
    """
    run = Run(runtime, delivery, runtime.claims_of(delivery.deployment))
    run.tally.sample = runtime.outcomes.sample(delivery)
    events = delivery.events
    run.tally.several_types = len(delivery.types) > 1
    if any(runtime.handlers.for_type(kind) for kind in delivery.types):
        events = rotated(events, runtime.listener)
    waited = timedelta(0)
    if all(_at_once(runtime, kind) > 1 for kind in delivery.types):  # a slice is of all types that follow its first event
        waited = utc_now() - delivery.batches[0].accepted_at
    try:
        note_ended_starts(runtime)
        paused = runtime.pauses.paused()
        for part in slices([event for event in events if event[2] not in paused], lambda event: _slice_size(runtime, event[2], waited)):
            if runtime.ending():
                run.log.info("delivery.given_back", events=len(events))
                break
            _process_slice(run, part)
        _remove_finished(run)
        _tell_result(run)
    except TransientError as error:
        run.log.warning("delivery.left", error=str(error))
    finally:
        run.release(list(run.held))
    run.tally.left = len(events) - run.tally.won - run.tally.skipped - run.tally.failed
    runtime.outcomes.tell(delivery.deployment, run.tally)
    runtime.measures.count(delivery, run.tally)
    return run.tally


def _process_slice(run: Run, events: list[EventRef]) -> None:
    policies = run.runtime.policies
    with sessions_of(run.runtime, events) as sessions:
        try:
            lease_ms = max(policies.of(kind).lease_ms for kind in {kind for _, _, kind in events})
            won, conflicting = claim(run, events, sessions, lease_ms=lease_ms)
            if not won and not conflicting:
                return
            end_open_transactions(run, won, sessions)
            with run.renewing(won, lease_ms, sessions.id_for):
                entries = fetch(run, [event for event, _ in won] + [event for event, _ in conflicting])
                if entries is None:
                    return
                quarantine(run, [(entries[k, d], a.digest) for (k, d, _), a in conflicting if (k, d) in entries])
                works = check(run, [(entries[k, d], a) for (k, d, _), a in won if (k, d) in entries])
                started = time.monotonic()
                if works:
                    with run.runtime.measures.timing("commit", run.delivery.deployment):
                        commit(run, works, sessions)
                _note_pace(run, events, len(works), started)
        finally:
            run.release(list(run.held))


def _slice_size(runtime: Runtime, kind: str, waited: timedelta) -> int:
    handlers = runtime.handlers.for_type(kind)
    if not handlers:
        return runtime.settings.max_batch_events
    return runtime.pace.events_per_slice(kind, at_once=_at_once(runtime, kind), waited_ms=waited.total_seconds() * 1000)


def _at_once(runtime: Runtime, kind: str) -> int:
    return runtime.settings.async_limit if any(h.is_async for h in runtime.handlers.for_type(kind)) else 1


def _note_pace(run: Run, events: list[EventRef], works: int, started: float) -> None:
    if works:
        ms = (time.monotonic() - started) * 1000
        for kind in {kind for _, _, kind in events}:
            run.runtime.pace.note(kind, ms, events=works, at_once=_at_once(run.runtime, kind))


def _tell_result(run: Run) -> None:
    """A single event that is done: say what its handler returned then."""
    if len(run.delivery.keys) == 1 and run.tally.skipped and run.runtime.handlers.for_type(run.delivery.types[0]):
        committed = run.runtime.ledger.find(run.delivery.keys).get(run.delivery.keys[0])
        run.tally.result = committed.result if committed is not None else None


def _remove_finished(run: Run) -> None:
    """Remove batches all of whose events are finished: normally whoever finishes the last one does."""
    rest = {batch.id: {(e.key, e.digest) for e in batch.entries} - run.confirmed for batch in run.batches.values()}
    touched = [name for name, pairs in rest.items() if len(pairs) < len(run.batches[name].entries)]
    if not touched:
        return
    if doubtful := {pair for name in touched for pair in rest[name]}:
        policies = run.runtime.policies
        ignored = {pair for pair in doubtful if policies.of(run.entries[pair].type).ignores_conflicts}
        doubtful -= finished(doubtful, ledger=run.runtime.ledger, failures=run.runtime.failures, ignored=ignored)
    if over := [name for name in touched if rest[name].isdisjoint(doubtful)]:
        run.runtime.inbox.remove(over)
        run.log.debug("batch.finished", batches=len(over), events=sum(len(run.batches[name].entries) for name in over))
