"""Step 1, claim: one round trip to Redis for a slice; and what a takeover owes before it goes on."""

from app.claims.store import Answer
from app.errors import RedisUnavailable
from app.messages import EventRef
from app.stores.mongo import end_transactions
from workers.run import Run
from workers.sessions import Sessions

Claimed = tuple[EventRef, Answer]


def claim(run: Run, events: list[EventRef], sessions: Sessions, *, lease_ms: int) -> tuple[list[Claimed], list[Claimed]]:
    """Claim a slice.

    Returns:
        The events that were won, and those that Redis holds with another digest; the rest is counted as skipped.

    Raises:
        RedisUnavailable: Redis is away.
    """
    try:
        with run.runtime.measures.timing("claim", run.delivery.deployment):
            answers = run.claims.claim(
                [key for key, _, _ in events],
                [digest for _, digest, _ in events],
                claim_id=run.claim_id,
                owner=run.listener,
                lease_ms=lease_ms,
                sessions=[sessions.id_for(key) for key, _, _ in events] if sessions.any else (),
            )
    except RedisUnavailable:
        run.held.update((key, digest) for key, digest, _ in events)  # some may be claimed: they are given back at the end
        raise
    won: list[Claimed] = []
    conflicting: list[Claimed] = []
    for event, answer in zip(events, answers, strict=True):
        if answer.outcome == "won":
            won.append((event, answer))
            run.held[event[0]] = event[1]
            if answer.taken_over:
                run.log.warning("claim.taken_over", key=event[0], token=answer.token, previous_owner=answer.owner)
        elif answer.outcome == "conflict":
            conflicting.append((event, answer))
        else:
            run.tally.skip(answer.outcome, answer.owner, event[0])
    if won:
        run.log.debug("claim.won", events=len(won))
    if taken_over := sum(answer.taken_over for _, answer in won):
        run.runtime.measures.took_over(run.delivery.deployment, taken_over)
    return won, conflicting


def end_open_transactions(run: Run, won: list[Claimed], own: Sessions) -> None:
    """End the open transactions of owners that were taken over: they would lock their keys for up to a minute.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    sessions = {answer.session for _, answer in won if answer.session}
    if sessions:
        end_transactions(run.runtime.db, sessions - {own.id_for(key) for (key, _, _), _ in won})  # the driver uses sessions again
