"""What moves now: how long events take, who commits how many, who holds claims, what waits at the broker, why events fail.

Guaranteed: each look is bounded, whatever the deployment holds: some newest documents, some oldest batches. Not guaranteed: that it
is about all there is; each answer says about how much it is.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from pymongo import DESCENDING
from pymongo.database import Database

from app.broker import Broker
from app.claims.store import ClaimStore
from app.leases import Lease
from app.naming import RECOVERY_QUEUE, queue_of
from app.redis_client import Client
from app.settings import Settings
from app.stores.inbox import Inbox
from app.stores.mongo import Document, server_now, translated

Facts = dict[str, Any]

NEWEST = 1_000
"""Documents of the ledger that latencies and rates are taken from."""
RATE_S = 60.0
"""Rates are over the last minute, or over the newest documents where these are younger."""
BATCHES = 20
"""Oldest batches whose claims are looked at."""
FAILURES = 10_000
"""Newest failures whose reasons are counted."""
REASONS = 5
_LONGEST_MS = 2_000
ACTING = ("bridge",)
"""Roles of which one process acts at a time."""


def recent(db: Database[Document]) -> Facts:
    """Latencies and rates out of the ledger's newest documents; what was processed again by an operator's wish is left out.

    Returns:
        ``latency``: ``events`` (how many it is about), ``p50_s, p95_s, p99_s``: seconds from a door's acceptance to the write into the
        ledger, handlers' own time not included, by the hosts' clocks; None where nothing is processed yet. ``per_s``: commits a second
        by listener; ``over_s``: over how many seconds.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    fields = {"_id": 0, "listener": 1, "accepted_at": 1, "processed_at": 1, "generation": 1}
    with translated("reading the newest of the ledger"):
        found = list(db["events"].find({}, fields).sort("$natural", DESCENDING).limit(NEWEST).max_time_ms(_LONGEST_MS))
    now = server_now(db)
    first_time = [d for d in found if not d.get("generation")]
    took_s = sorted(max(0.0, (d["processed_at"] - d["accepted_at"]).total_seconds()) for d in first_time)
    ages_s = [max(0.0, (now - d["processed_at"]).total_seconds()) for d in found]
    over_s = min(RATE_S, max(1.0, *ages_s)) if len(found) == NEWEST else RATE_S
    lately = Counter(str(d["listener"]) for d, age_s in zip(found, ages_s, strict=True) if age_s <= over_s)
    return {
        "latency": {"events": len(took_s)} | {f"p{share}_s": percentile(took_s, share) for share in (50, 95, 99)},
        "per_s": {name: round(commits / over_s, 1) for name, commits in sorted(lately.items())},
        "over_s": round(over_s, 1),
    }


def percentile(ascending: Sequence[float], share: int) -> float | None:
    """The smallest value that at least ``share`` per cent of the values do not exceed; None of none."""
    if not ascending:
        return None
    return round(ascending[max(0, -(-len(ascending) * share // 100) - 1)], 3)


def oldest_keys(db: Database[Document]) -> list[str]:
    """Keys of what waits longest: of the oldest batches, and of failures that were sent to be tried again.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    inbox = Inbox(db)
    entries = inbox.entries_of([head["_id"] for head in inbox.heads(BATCHES)])
    waiting = [key for events in entries.values() for key, _, _ in events]
    with translated("reading due failures"):
        sent = db["failures"].find({"state": "retrying", "sent_until": {"$gt": server_now(db)}}, {"key": 1}).limit(500)
        return list(dict.fromkeys([*waiting, *(str(d["key"]) for d in sent)]))


def held(client: Client, settings: Settings, deployment: str, keys: Sequence[str]) -> Facts:
    """Claims on some events.

    Returns:
        ``live``: running leases by listener; ``lapsed``: claims whose lease has run out; ``of``: how many events were looked at;
        ``acting``: who holds which role.

    Raises:
        RedisUnavailable: Redis is away.
    """
    claims = [claim for claim in ClaimStore.of(settings, client, deployment).inspect(keys) if claim and claim.state == "processing"]
    live = Counter(claim.owner for claim in claims if claim.live)
    holders = {role: Lease(client, deployment, role, owner="", life_ms=1).holder() for role in ACTING}
    return {"live": dict(sorted(live.items())), "lapsed": len(claims) - live.total(), "of": len(keys), "acting": holders}


def queues(settings: Settings, names: Sequence[str]) -> dict[str, int]:
    """Deliveries that wait for each listener, and, under ``recovery``, for any of them.

    Raises:
        BrokerUnavailable: the broker does not answer.
    """
    with closing(Broker.of(settings)) as broker:
        depths = broker.waiting(names)
    return {name: depths[queue_of(name)] for name in names} | {"recovery": depths[RECOVERY_QUEUE]}


def reasons(db: Database[Document]) -> list[Facts]:
    """The commonest reasons among the newest failures: ``{state, reason, n}``, the commonest first.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    pipeline: list[Document] = [
        {"$limit": FAILURES},
        {"$group": {"_id": {"state": "$state", "reason": {"$substrCP": [{"$ifNull": ["$reason", ""]}, 0, 100]}}, "n": {"$sum": 1}}},
        {"$sort": {"n": -1, "_id": 1}},
        {"$limit": REASONS},
    ]
    with translated("counting reasons of failures"):
        rows = db["failures"].aggregate(pipeline, hint={"$natural": DESCENDING}, maxTimeMS=_LONGEST_MS)
        return [{"state": row["_id"]["state"], "reason": row["_id"]["reason"], "n": row["n"]} for row in rows]
