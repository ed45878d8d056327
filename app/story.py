"""The story of one event: where it is, who has it, what became of it. Read only; MongoDB for the truth, Redis for the moment.

Guaranteed: what MongoDB holds of a key is found, as long as it holds it. Not guaranteed: steps that left no document (a claim
that was released, a delivery that was skipped); the logs have those. Nothing is written for the story's sake alone: what a
listener knows when it commits goes into the document that it writes anyhow.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from pymongo.database import Database

from app import redis_client
from app.claims.store import ClaimStore
from app.errors import TransientError
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document
from app.telling import steps_of


def story_of(db: Database[Document], settings: Settings, key: str) -> dict[str, Any] | None:
    """All that is known of a key, or None when nothing is.

    Returns:
        ``key``; ``state``: ``processed``, ``waiting``, or that of the last failure (of an event that is to be processed again, too);
        ``steps``: what happened, in order, see :mod:`app.telling`; and what they are told from: ``inbox`` (the batches in which it
        waits), ``claim`` (or None, or ``{"error": …}`` when Redis is away), ``failures``, ``ledger`` (the document, or None).

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    ledger = Ledger(db)
    inbox = Inbox(db).find_event(key)
    failures = Failures(db).of_key(key)
    committed = ledger.get(key)
    claim = claim_of(db, settings, key)
    state = state_of(committed, failures, inbox)
    if state is None:
        return None
    steps = steps_of(inbox=inbox, failures=failures, ledger=committed, claim=claim)
    return {"key": key, "state": state, "steps": steps, "inbox": inbox, "claim": claim, "failures": failures, "ledger": committed}


def state_of(committed: Document | None, failures: Sequence[Document], inbox: Sequence[Document]) -> str | None:
    """In one word where an event is; None when it is nowhere."""
    if committed and not ((committed.get("reopened") or committed.get("discarded")) and failures):
        return "processed"
    if failures:
        return str(failures[-1]["state"])
    return "waiting" if inbox else None


def claim_of(db: Database[Document], settings: Settings, key: str) -> dict[str, Any] | None:
    """Who has a key now, as Redis knows it: the claim, None, or ``{"error": …}`` when Redis is away.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    client = redis_client.connect(settings)
    try:
        found = ClaimStore.of(settings, client, deployment_id(db)).inspect([key])[0]
    except TransientError as error:
        return {"error": str(error)}
    finally:
        client.close()
    return None if found is None else msgspec.structs.asdict(found)
