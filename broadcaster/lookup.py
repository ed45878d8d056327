"""Where an event is: in the ledger, in ``failures``, or waiting in the inbox.

An event moves from the inbox to the ledger or to ``failures``, never back, so what was seen nowhere is looked for once more in the
ledger before it is called unknown.
"""

from dataclasses import replace
from typing import Any

from pymongo.database import Database

from app.settings import Settings
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.mongo import Document
from app.story import claim_of, state_of
from app.telling import steps_of
from broadcaster.answers import event_view

REDIS_WAIT_MS = 500


def find_event(db: Database[Document], settings: Settings, key: str) -> dict[str, Any] | None:
    """The story of a key as ``GET /events/{key}`` tells it, or None; blocks.

    Returns:
        ``key``; ``state``: ``processed``, ``waiting``, or a state of ``failures``; ``steps``: what happened, in order, see
        :mod:`app.telling`; ``event``: the ledger's document or None;
        ``failures``: oldest first; ``inbox``: the batches where it waits; ``claim``: who has it now, or None, or ``{"error": …}``; a
        processed event is not asked about.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    ledger = Ledger(db)
    committed = ledger.get(key)
    failures = Failures(db).of_key(key)
    # Searching the inbox reads all of it: only for what is nowhere else.
    waiting = [] if committed or failures else Inbox(db).find_event(key)
    if not (committed or failures or waiting):
        committed = ledger.get(key)
    state = state_of(committed, failures, waiting)
    if state is None:
        return None
    quick = replace(settings, redis_timeout_ms=min(REDIS_WAIT_MS, settings.redis_timeout_ms))
    claim = None if state == "processed" else claim_of(db, quick, key)
    return {
        "key": key,
        "state": state,
        "steps": steps_of(inbox=waiting, failures=failures, ledger=committed, claim=claim),
        "event": event_view(committed) if committed else None,
        "failures": [event_view(f) for f in failures],
        "inbox": waiting,
        "claim": claim,
    }


def recent_events(
    db: Database[Document], *, type: str | None, listener: str | None, limit: int, bodies: bool = True
) -> list[dict[str, Any]]:
    """The newest events of the ledger, newest first; blocks.

    Raises:
        StoreUnavailable: MongoDB is away, or a rare type was not found in time.
    """
    return [event_view(document) for document in Ledger(db).recent(type=type, listener=listener, limit=limit, bodies=bodies)]
