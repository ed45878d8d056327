"""The story of one event: where it is, who has it, what became of it. Read only; MongoDB for the truth, Redis for the moment.

Guaranteed: what MongoDB holds of a key is found, as long as it holds it. Not guaranteed: steps that left no document (a claim
that was released, a delivery that was skipped); the logs have those.
"""

from typing import Any

import msgspec
from pymongo.database import Database

from app.claims import store as claims
from app.claims.store import ClaimStore
from app.errors import TransientError
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document


def story_of(db: Database[Document], settings: Settings, key: str) -> dict[str, Any] | None:
    """All that is known of a key, or None when nothing is.

    Returns:
        ``key``; ``state``: ``processed``, ``waiting``, or that of the last failure; then in the order of what happened ``inbox``
        (the batches in which it waits), ``claim`` (or None, or ``{"error": …}`` when Redis is away), ``failures``, ``ledger``
        (the document, or None).

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    ledger = Ledger(db)
    inbox = Inbox(db).find_event(key)
    failures = Failures(db).of_key(key)
    committed = ledger.get(key)
    claim = claim_of(db, settings, key)
    if committed:
        state = "processed"
    elif inbox and not failures:
        state = "waiting"
    elif failures:
        state = str(failures[-1]["state"])
    else:
        return None
    return {"key": key, "state": state, "inbox": inbox, "claim": claim, "failures": failures, "ledger": committed}


def claim_of(db: Database[Document], settings: Settings, key: str) -> dict[str, Any] | None:
    """Who has a key now, as Redis knows it: the claim, None, or ``{"error": …}`` when Redis is away.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    client = claims.connect(settings)
    try:
        found = ClaimStore.of(settings, client, deployment_id(db)).inspect([key])[0]
    except TransientError as error:
        return {"error": str(error)}
    finally:
        client.close()
    return None if found is None else msgspec.structs.asdict(found)
