"""What flows, as the stores and the broker have it: deployment, listeners and their clocks, queues, sweeper, inbox, failures."""

import re
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from pymongo.database import Database
from redis.exceptions import RedisError

from app import redis_client
from app.broker import Broker, is_redis
from app.doctor import redis_server
from app.doctor.findings import Findings, skew
from app.errors import BrokerUnavailable
from app.health import SWEPT_WITHIN_MS
from app.naming import RECOVERY_QUEUE, queue_of
from app.presence import Listener, Presence, known_listeners
from app.settings import Settings
from app.stores.capacity import Held, measure, why_full
from app.stores.mongo import Document, translated
from app.stores.records import utc_now

NEAR = 0.8
"""Above this share of a limit it is nearly reached."""
_NAMED = 3
"""So many are named of what may be many."""
STUCK_S = 60.0
"""Batches are normally gone within a second."""
_DEPLOYMENT = re.compile(rb"dedup:\{([^}]+)\}:=nodes")


def examine_mongo(findings: Findings, db: Database[Document], settings: Settings) -> str | None:
    """Check what MongoDB alone knows; returns the deployment's id, or None where no process has started yet.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    with translated("reading the deployment's id"):
        found = db["meta"].find_one({"_id": "deployment"})
    held = measure(db)
    full = why_full(held, settings)
    oldest_s = (utc_now() - held.oldest_at).total_seconds() if held.oldest_at else 0.0
    if full:
        findings.problem("capacity", full, "producers get 503 until it is mended: do listeners live, and does the sweeper work?")
    elif near := _near(held, settings, oldest_s):
        findings.warn("capacity", f"nearly at a limit, beyond which producers get 503: {near}", "see why events wait, or raise the limit")
    elif oldest_s > STUCK_S:
        findings.warn(
            "capacity",
            f"the oldest of {held.batches:,} batches waits for {oldest_s:.0f} s",
            "is its type paused, are listeners overloaded or away?",
        )
    else:
        findings.ok("capacity", f"{held.batches:,} batches wait, {held.failures:,} failures are kept")
    return str(found["id"]) if found else None


def _near(held: Held, settings: Settings, oldest_s: float) -> str:
    shares = {
        "batches of the inbox": held.batches / settings.inbox_max_batches,
        "bytes of the inbox": held.bytes / settings.inbox_max_bytes,
        "age of the inbox": oldest_s / settings.inbox_max_age_s,
        "failures": held.failures / settings.failures_max,
        "bytes of failures": held.failure_bytes / settings.failures_max_bytes,
    }
    return ", ".join(f"{share:.0%} of the {name}" for name, share in shares.items() if share > NEAR)


def examine_deployment(findings: Findings, deployment: str | None, settings: Settings) -> None:
    """Check whether Redis and MongoDB belong together."""
    client = redis_server.connect(settings.redis_url, settings)
    with closing(client):
        scanned = redis_server.scan(client, "dedup:{*}:=nodes")
        if scanned is None:
            findings.hidden(
                "deployment", "SCAN", f"that all processes use the same MongoDB database; its deployment is {deployment or 'not made yet'}"
            )
            return
        found, complete = scanned
        ids = {match[1].decode(errors="replace") for key in found if (match := _DEPLOYMENT.fullmatch(key))}
        if deployment and client.exists(f"dedup:{{{deployment}}}:=nodes"):
            ids.add(deployment)
        alive = [other for other in sorted(ids) if other != deployment and _alive(client, other, settings)]
    if alive:
        seen = f"MongoDB is deployment {deployment or '(not made yet)'}; in this Redis listeners live that work for {', '.join(alive)}"
        remedy = "right, if two systems share this Redis. Else processes use different databases, or the database was dropped under them: compare DEDUP_MONGO_URL"
        if deployment in ids:
            findings.warn("deployment", seen, remedy)
        else:
            findings.problem("deployment", seen, remedy)
    elif deployment is None:
        findings.ok("deployment", "not made yet: no process has used this database")
    else:
        where = " and Redis" if deployment in ids else "; no listener has been heard of in Redis"
        partly = "" if complete else "; whether others share this Redis is not known, for it holds too many keys to look at"
        findings.ok("deployment", f"{deployment}, in MongoDB{where}{partly}")


def _alive(client: Any, deployment: str, settings: Settings) -> bool:
    return bool(Presence(client, deployment).listeners(within_ms=settings.listener_grace_s * 1000))


def examine_listeners(findings: Findings, db: Database[Document], deployment: str | None, settings: Settings) -> None:
    """Check listeners, their clocks, the sweeper, and the queues at the broker.

    Raises:
        TransientError: MongoDB or Redis is away.
    """
    grace_ms = settings.listener_grace_s * 1000
    heard: list[Listener] = []
    if deployment is not None:
        with closing(redis_client.connect(settings)) as client:
            presence = Presence(client, deployment)
            heard = presence.listeners(within_ms=settings.listener_retire_s * 1000)
            swept_ms = presence.swept_before_ms()
        _sweeper(findings, swept_ms)
    alive = {listener.name: listener for listener in heard if listener.silent_ms <= grace_ms}
    if alive:
        findings.ok("listeners", f"{len(alive)} live: {', '.join(alive)}")
    else:
        findings.problem("listeners", "none lives: events wait in the inbox", "start one: celery -A app worker -n listener-1@%h")
    _clocks(findings, alive.values())
    _handlers(findings, alive.values())
    known = {name: (utc_now() - seen_at).total_seconds() for name, seen_at in known_listeners(db)}
    silent_s = {listener.name: listener.silent_ms / 1000 for listener in heard}
    _queues(findings, settings, set(alive), known | silent_s)


def _sweeper(findings: Findings, swept_ms: int | None) -> None:
    remedy = "is a bridge running (dedup bridge), and do MongoDB, Redis and the broker answer it? What is lost on its way is not sent again without"
    if swept_ms is None:
        findings.problem("sweeper", "no sweep has succeeded yet", remedy)
    elif swept_ms > SWEPT_WITHIN_MS:
        findings.problem("sweeper", f"its last success was {swept_ms / 1000:.0f} s ago", remedy)
    else:
        findings.ok("sweeper", f"its last success was {swept_ms / 1000:.1f} s ago")


def _handlers(findings: Findings, alive: Iterable[Listener]) -> None:
    """Whoever wins an event runs the handlers that it has: a listener without one takes the event's effects away."""
    told = {node.node: set(node.handlers) for listener in alive for node in listener.nodes if node.handlers is not None}
    every = set().union(*told.values())
    lacking = {name: sorted(every - theirs) for name, theirs in told.items() if theirs != every}
    if lacking:
        seen = "; ".join(f"{name} has not {', '.join(handlers[:_NAMED])}" for name, handlers in sorted(lacking.items())[:_NAMED])
        findings.problem(
            "listeners.handlers",
            f"listeners have different handlers, and run only their own for what they win: {seen}",
            "start all with the same code and the same DEDUP_HANDLERS; 'dedup reprocess' runs the handlers of events that were won without",
        )
    elif told:
        findings.ok("listeners.handlers", f"the same in all processes: {len(every)}")


def _clocks(findings: Findings, alive: Iterable[Listener]) -> None:
    """By their heartbeats, which carry their host's clock beside Redis' own."""
    skews = [(node.node, (node.clock_ms - node.at_ms) / 1000) for listener in alive for node in listener.nodes if node.clock_ms]
    if skews:
        node, worst = max(skews, key=lambda found: abs(found[1]))
        skew(findings, "listeners.clock", f"the clock of {node}", worst, uncertain_s=0.1, other="Redis'")


def _queues(findings: Findings, settings: Settings, alive: set[str], silent_s: dict[str, float]) -> None:
    """Queues that nobody takes from, and how much waits in which."""
    names = alive | set(silent_s)
    try:
        with closing(Broker.of(settings)) as broker:
            names |= {queue.removeprefix("events.") for queue in _at_broker(broker, settings)}
            found = broker.waiting(names)
    except BrokerUnavailable as error:
        findings.problem("broker", str(error), "start it, or correct DEDUP_BROKER_URL: until then the bridge waits, and events with it")
        return
    recovery = found.pop(RECOVERY_QUEUE)
    depths = {name: found[queue_of(name)] for name in names}
    left = sorted(name for name, waiting in depths.items() if name not in alive and waiting)
    for name in left:
        since = f"silent for {silent_s[name]:.0f} s" if name in silent_s else "of whom nobody has heard"
        findings.warn(
            "queues",
            f"{depths[name]:,} deliveries wait in {queue_of(name)} for a listener {since}",
            f"start {name} again, or 'dedup listeners forget {name}'; after {settings.listener_retire_s} s of silence a bridge removes it. "
            "No event depends on it: others have had their copies",
        )
    high = sorted(name for name in alive if depths[name] >= settings.queue_high_water)
    if high:
        findings.warn(
            "queues",
            f"full, and so left out for now: {', '.join(map(queue_of, high))}",
            "these listeners are slower than events come in: more of them, or quicker handlers",
        )
    if recovery >= settings.queue_high_water:
        findings.warn(
            "queues",
            f"{recovery:,} deliveries wait in {RECOVERY_QUEUE}",
            "listeners died or lost deliveries; it drains by itself once they live",
        )
    if not (left or high or recovery >= settings.queue_high_water):
        findings.ok("queues", f"{sum(depths.values()) + recovery:,} deliveries wait, all for listeners that live")


def _at_broker(broker: Broker, settings: Settings) -> set[str]:
    """Queues at the broker, where it is Redis and lets one look; others are known by the names of listeners."""
    if not is_redis(settings.broker_url):
        return set()
    with broker.channel() as channel:
        try:
            scanned = redis_server.scan(channel.client, "events.*")
            keys = [key for key in scanned[0] if channel.client.type(key) == b"list"] if scanned else []
        except RedisError:
            return set()
    return {key.decode(errors="replace").partition("\x06")[0] for key in keys} - {RECOVERY_QUEUE}
