"""Processing an event again that a wrong handler has processed: an operator's decision, and the one way to a second commit of a key.

Handlers' effects are applied again, and that is what is asked for: the former ones were wrong, or are missing. Nothing undoes them;
a handler that counts has counted twice, and ``dedup audit`` expects so, because the ledger says how often it was committed
(``recommits``). "Once" (G2) holds for each decision: one decision, one more commit.

| step | ledger | failure (with the body) | delivery |
|---|---|---|---|
| reopen | ``reopened: true``, ``generation`` + 1; what the former commit said joins ``reprocessed``. The ``_id`` stays | made: ``retrying``, due now, of this generation | |
| process | | | the sweeper sends the failure; a done mark in Redis is refuted by the reopened document |
| commit | a compare-and-set on ``reopened`` and ``generation`` takes the insert's place | removed | |
| withdraw (*discard*) | ``reopened`` is taken back, the former commit stands | removed | |

Guarantees:
* Reopening is one transaction of two writes: the event is reopened with its body in ``failures``, or not at all. Of two at once one wins.
* The key never leaves the ledger. So a listener that looked before it was reopened fails at the unique ``_id``, as any late duplicate does;
  whoever looks afterwards commits by compare-and-set, and of several one stands.
* Digests that operators superseded or rejected stay so.

Not guaranteed: what ``at_least_once`` handlers do may happen more often, as ever. MongoDB must be a replica set.
"""

import os
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pymongo
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.errors import PermanentError
from app.naming import MESSAGE_VERSION
from app.stores.failures import failure_id
from app.stores.ledger import OF_ONE_RUN
from app.stores.mongo import RAW, TRANSACTION, Document, in_transaction, server_now, translated

MAX_REASON = 500
"""Characters of a reason."""
KEPT = 50
"""So many reopenings of a key are kept, the latest."""
_LONGEST_S = 10.0
_NO_TRANSACTIONS = 20


class ReprocessingRefused(PermanentError):
    """The event cannot be processed again now; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """The processing that an event had."""

    key: str
    digest: str
    type: str
    listener: str
    processed_at: datetime
    attempt: int


def reprocess(db: Database[Document], key: str, *, by: str, reason: str) -> Former:
    """Reopen a processed event, so that it is processed once more.

    Args:
        db: the deployment's database.
        key: of the event.
        by: who decides.
        reason: why; kept in the event's story.

    Returns:
        The processing that it had.

    Raises:
        ReprocessingRefused: it is not processed, is being processed again, was discarded, or MongoDB has no transactions.
        StoreUnavailable, CommitUnknown: MongoDB is away. Repeated, the command says whether it was done; but where the event has been processed
            again by then, it is a decision of its own: the event's story tells.
    """
    inside = in_transaction(db)

    def reopen(session: ClientSession) -> Former:
        found = inside["events"].with_options(codec_options=RAW).find_one({"_id": key}, session=session)
        former = _former(key, found)
        _reopen(inside, found, session, by=by, reason=reason[:MAX_REASON], at=at)
        return former

    with translated("reopening an event"), pymongo.timeout(_LONGEST_S), db.client.start_session() as session:
        at = server_now(db)
        try:
            return session.with_transaction(reopen, **TRANSACTION)
        except OperationFailure as error:
            if error.code == _NO_TRANSACTIONS:
                raise ReprocessingRefused(
                    "processing again needs transactions: MongoDB must be a replica set, and this one is standalone"
                ) from error
            raise


def look(db: Database[Document], key: str) -> Former:
    """What :func:`reprocess` would reopen.

    Raises:
        ReprocessingRefused, StoreUnavailable: as there.
    """
    with translated("reading the ledger"):
        return _former(key, db["events"].find_one({"_id": key}))


def withdraw(db: Database[Document], key: str, generation: int, decision: Document) -> bool:
    """Let the former processing of a reopened event stand; False when it was committed again meanwhile."""
    with translated("withdrawing a decision"):
        done = db["events"].update_one(
            {"_id": key, "generation": generation, "reopened": True},
            {
                "$unset": {"reopened": ""},
                "$push": {"decisions": decision},
                "$set": {"reprocessed.$[it].withdrawn": {"at": decision["at"], "by": decision["by"]}},
            },
            array_filters=[{"it.generation": generation}],
        )
    return done.matched_count == 1


def operator() -> str:
    """Who runs this process: ``user@host``."""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # not a POSIX system; or a container's user without a name
        user = os.environ.get("USERNAME") or f"uid {os.getuid() if hasattr(os, 'getuid') else '?'}"
    return f"{user}@{socket.gethostname()}"


def _former(key: str, found: Any) -> Former:
    if found is None:
        raise ReprocessingRefused(
            f"{key} is not processed: 'dedup inspect' tells where it is, 'dedup failures retry' tries a failed one again"
        )
    if found.get("v") != MESSAGE_VERSION:
        raise ReprocessingRefused(
            f"{key} was committed by another version of this software, which this one does not know: upgrade it first"
        )
    if found.get("reopened"):
        last = found["reprocessed"][-1]
        raise ReprocessingRefused(
            f"{key} is being processed again already, since {last['at']:%Y-%m-%d %H:%M:%S} (UTC) by {last['by']}: {last['reason']}"
        )
    if found.get("discarded"):
        raise ReprocessingRefused(f"{key} was discarded, not processed: publish the event again under another id")
    return Former(
        key=key,
        digest=found["digest"],
        type=found["type"],
        listener=found["listener"],
        processed_at=found["processed_at"],
        attempt=found["attempt"],
    )


def _reopen(db: Database[Document], found: Any, session: ClientSession, *, by: str, reason: str, at: datetime) -> None:
    generation = found.get("generation", 0) + 1
    former = {name: found[name] for name in OF_ONE_RUN if name in found}
    noted = {"generation": generation, "at": at, "by": by, "reason": reason, "former": former}
    db["events"].update_one(
        {"_id": found["_id"], "digest": found["digest"], "claim_id": found["claim_id"], "reopened": {"$exists": False}},
        {
            "$set": {"reopened": True, "generation": generation},
            "$push": {"reprocessed": {"$each": [noted], "$slice": -KEPT}},
        },
        session=session,
    )
    failure: Document = {
        "v": MESSAGE_VERSION,
        "key": found["_id"],
        "digest": found["digest"],
        "type": found["type"],
        "body": found["body"],
        "batch": found.get("batch"),
        "door": found.get("door"),
        "accepted_at": found["accepted_at"],
        "first_failed_at": at,
        "state": "retrying",
        "attempts": 0,
        "starts": 0,
        "due_at": at,
        "sent_until": None,
        "updated_at": at,
        "token": found["token"],
        "listener": by,
        "reason": f"to be processed again: {reason}",
        "generation": generation,
    }
    me = {"_id": failure_id(found["_id"], found["digest"])}
    there = db["failures"].find_one(me, {"v": 1}, session=session)
    if there is not None and there.get("v") != MESSAGE_VERSION:
        raise ReprocessingRefused(
            f"{found['_id']} failed under another version of this software, which this one does not know: upgrade it first"
        )
    db["failures"].replace_one(me, failure, upsert=True, session=session)
