"""The state of a deployment at a glance, read from the stores themselves: nothing of ours needs to run for it.

Guaranteed: a store that is away costs its own part of the answer, which then says why. Not guaranteed: that the parts belong to
one instant; ``ledger.events`` comes from the collection's metadata, which may be off after a crash of MongoDB (an audit counts).
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import msgspec
from pymongo.database import Database

from app import glance, redis_client
from app.errors import DedupError, TransientError
from app.feeding import FeedStates
from app.presence import Beat, Listener, Presence, known_listeners
from app.redis_client import Client
from app.settings import Settings
from app.stores.capacity import measure, why_full
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import Document, server_now
from app.stores.pauses import Pauses
from app.stores.records import utc_now

Facts = dict[str, Any]


def overview(db: Database[Document], settings: Settings) -> Facts:
    """Everything at a glance.

    Returns:
        ``mongo``, ``redis``, ``broker``: ``{"ok": bool, "error"?, "ms"?}``: whether it answers, and in how many milliseconds; ``listeners``, ``feeds``: a list, or ``{"error"}``; ``inbox``: ``batches,
        oldest_age_s``; ``full``: why doors take no more, or empty; ``failures``: numbers by state; ``ledger``: ``events``; ``paused``: types; ``sweeper``: ``last_success_s``,
        seconds ago or None; ``reasons``, ``recent``, ``held``, ``queues``: see :mod:`app.glance`. A part whose store is away is ``{"error": …}``.
    """
    mongo: Facts = {"ok": True}
    _part(mongo, lambda: _timed(mongo, lambda: server_now(db)))
    inbox = _part(mongo, lambda: _inbox(db))
    failures = _part(mongo, lambda: dict(sorted(Failures(db).counts().items())))
    full = _part(mongo, lambda: why_full(measure(db), settings))
    ledger = _part(mongo, lambda: {"events": Ledger(db).size()})
    paused = _part(mongo, lambda: sorted(Pauses(db).paused()))
    reasons = _part(mongo, lambda: glance.reasons(db))
    recent = _part(mongo, lambda: glance.recent(db))
    keys = _part(mongo, lambda: glance.oldest_keys(db))
    deployment = _part(mongo, lambda: deployment_id(db))
    redis: Facts = {"ok": True}
    with closing(redis_client.connect(settings)) as client:
        _part(redis, lambda: _timed(redis, lambda: redis_client.ping(client)))
        listeners = sweeper = feeds = held = deployment  # without MongoDB nobody knows under which name Redis keeps them
        if isinstance(deployment, str):
            presence = Presence(client, deployment)
            listeners = _part(redis, lambda: _listeners(db, presence, settings))
            sweeper = _part(redis, lambda: sweeper_of(presence))
            feeds = _part(redis, lambda: feeds_of(client, deployment))
            held = _part(redis, lambda: glance.held(client, settings, deployment, keys)) if isinstance(keys, list) else keys
    broker: Facts = {"ok": True}
    names = [one["name"] for one in listeners] if isinstance(listeners, list) else []
    queues = _part(broker, lambda: _timed(broker, lambda: glance.queues(settings, names)))
    return {
        "mongo": mongo,
        "redis": redis,
        "broker": broker,
        "listeners": listeners,
        "inbox": inbox,
        "full": full,
        "failures": failures,
        "ledger": ledger,
        "paused": paused,
        "sweeper": sweeper,
        "feeds": feeds,
        "reasons": reasons,
        "recent": recent,
        "held": held,
        "queues": queues,
    }


def feeds_of(client: Client, deployment: str) -> list[Facts]:
    """The foreign feeds that bridges listen to now.

    Raises:
        RedisUnavailable: Redis is away.
    """
    return [msgspec.structs.asdict(state) for state in FeedStates(client, deployment).all()]


def sweeper_of(presence: Presence) -> Facts:
    """``last_success_s``: how many seconds ago a sweep last succeeded; None when Redis knows of none.

    Raises:
        RedisUnavailable: Redis is away.
    """
    before_ms = presence.swept_before_ms()
    return {"last_success_s": None if before_ms is None else round(before_ms / 1000, 1)}


def _part(store: Facts, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; or why it could not, noted with the store, which then is not asked again."""
    if store["ok"]:
        try:
            return read()
        except TransientError as error:
            store |= {"ok": False, "error": str(error)}
    return {"error": store["error"]}


def _timed(store: Facts, call: Callable[[], Any]) -> Any:
    """What ``call`` returns; how long it took is noted with the store."""
    began = time.monotonic()
    answer = call()
    store["ms"] = round((time.monotonic() - began) * 1000, 1)
    return answer


def _inbox(db: Database[Document]) -> Facts:
    inbox = Inbox(db)
    oldest_at = inbox.oldest_at()
    age_s = None if oldest_at is None else round(max(0.0, (utc_now() - oldest_at).total_seconds()), 3)
    return {"batches": inbox.size(), "oldest_age_s": age_s}


def _listeners(db: Database[Document], presence: Presence, settings: Settings) -> list[Facts]:
    """Every listener that Redis or MongoDB knows, by name."""
    heard = {found.name: found for found in presence.listeners(within_ms=settings.listener_retire_s * 1000)}
    try:
        known = {name: int((utc_now() - seen_at).total_seconds() * 1000) for name, seen_at in known_listeners(db)}
    except DedupError:  # MongoDB went away meanwhile: its part of the answer says so
        known = {}
    return [_listener(name, heard.get(name), known.get(name, 0), settings) for name in sorted(heard.keys() | known.keys())]


def _listener(name: str, heard: Listener | None, known_before_ms: int, settings: Settings) -> Facts:
    silent_ms = heard.silent_ms if heard else max(0, known_before_ms)
    nodes = _living(heard, settings.listener_grace_s * 1000) if heard else []
    return {
        "name": name,
        "alive": heard is not None and silent_ms <= settings.listener_grace_s * 1000,
        "silent_ms": silent_ms,
        "won": sum(node.won for node in nodes),
        "skipped": sum(node.skipped for node in nodes),
        "failed": sum(node.failed for node in nodes),
        "nodes": [msgspec.structs.asdict(node) for node in nodes],
    }


def _living(heard: Listener, grace_ms: int) -> list[Beat]:
    """The nodes of a listener that live; where none does, the one heard of last: an ended process is not counted beside its successor."""
    now_ms = max(node.at_ms for node in heard.nodes) + heard.silent_ms
    last = max(heard.nodes, key=lambda node: node.at_ms)
    return [node for node in heard.nodes if now_ms - node.at_ms <= grace_ms] or [last]
