"""The numbers in Prometheus' words: names, help texts, labels.

A store that is away leaves its metrics without samples, their names stay; so a gap is seen as one, and no old number as a new one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from app import __version__
from app.naming import FAILURE_STATES
from app.settings import Settings
from app.totals import BOUNDS_S, Counted, Histogram
from broadcaster.answers import age_s
from broadcaster.metrics import requests
from broadcaster.metrics.deployment import Deployment, InMongo, InRedis

Samples = Mapping[Any, float]
"""By the values of the labels, a tuple."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """This process at one moment.

    Attributes:
        accepting: whether its doors are open; without MongoDB they take nothing all the same.
        accepted_events, accepted_batches: since it started.
        requests: by (door, method, status).
        durations: of requests that bring events, by door.
        refused: by door and reason.
        clients: of Socket.IO, by namespace.
        sent, dropped: messages to them.
    """

    accepting: bool
    accepted_events: int
    accepted_batches: int
    requests: dict[tuple[str, str, int], int]
    durations: dict[str, Histogram]
    refused: dict[str, dict[str, int]]
    clients: dict[str, int]
    sent: int
    dropped: int


def of_deployment(found: Deployment, settings: Settings, now: datetime) -> Iterator[Metric]:
    """What every broadcaster of the deployment says alike."""
    up: dict[tuple[str, ...], float] = {("mongodb",): found.in_mongo.value is not None, ("redis",): found.redis.value is True}
    if found.queues is not None:
        up["broker",] = found.queues.value is not None
    yield _gauge("dedup_up", "Whether this broadcaster is served by a server.", ["server"], up)
    yield from _of_inbox(found.in_mongo.value, settings, now)
    yield from _of_mongo(found.in_mongo.value, settings)
    yield from _of_listeners(found.in_redis.value, found.in_mongo.value)
    queues = found.queues.value if found.queues is not None else None
    depths = {(queue,): depth for queue, depth in (queues or {}).items()}
    yield _gauge("dedup_queue_messages", "Deliveries that wait in a queue of the broker.", ["queue"], depths)
    yield _gauge("dedup_queue_high_water", "Deliveries at which a queue gets no more.", [], {(): settings.queue_high_water})
    yield from _of_counts(found.in_redis.value.counted if found.in_redis.value is not None else Counted())
    yield from _of_feeds(found.in_redis.value)


def of_here(here: Here, *, mongo_up: bool) -> Iterator[Metric]:
    """What this broadcaster says of itself alone."""
    yield _gauge("dedup_build_info", "Version of this broadcaster.", ["version"], {(__version__,): 1})
    yield _gauge("dedup_accepting", "Whether this broadcaster's doors take events.", [], {(): here.accepting and mongo_up})
    yield _counter("dedup_accepted_events", "Events that this broadcaster accepted.", [], {(): here.accepted_events})
    yield _counter("dedup_accepted_batches", "Batches in which it wrote them.", [], {(): here.accepted_batches})
    asked = {(door, method, str(status)): number for (door, method, status), number in here.requests.items()}
    yield _counter("dedup_door_requests", "HTTP requests that were answered.", ["door", "method", "status"], asked)
    took = "Duration of HTTP requests that bring events, from the head to the end of the answer."
    by_door = {(door,): histogram for door, histogram in here.durations.items()}
    yield _histogram("dedup_door_request_duration_seconds", took, ["door"], requests.BOUNDS_S, by_door)
    refused = {(door, kind): number for door, kinds in here.refused.items() for kind, number in kinds.items()}
    yield _counter("dedup_door_refused", "Requests and messages that were refused, by status or kind.", ["door", "reason"], refused)
    clients = {(namespace,): number for namespace, number in here.clients.items()}
    yield _gauge("dedup_socketio_clients", "Connected Socket.IO clients.", ["namespace"], clients)
    yield _counter("dedup_socketio_sent", "Socket.IO messages sent to clients.", [], {(): here.sent})
    yield _counter("dedup_socketio_dropped", "Socket.IO messages and batches for which there was no room.", [], {(): here.dropped})


def _of_inbox(found: InMongo | None, settings: Settings, now: datetime) -> Iterator[Metric]:
    here: dict[str, float] = {}
    if found is not None:
        oldest_s = 0.0 if found.held.oldest_at is None else age_s(found.held.oldest_at, now)
        here = {"batches": found.held.batches, "bytes": found.held.bytes, "oldest_age_seconds": oldest_s}
    limits = {"batches": settings.inbox_max_batches, "bytes": settings.inbox_max_bytes, "oldest_age_seconds": settings.inbox_max_age_s}
    texts = {
        "batches": "Accepted batches that are not finished",
        "bytes": "Their bytes before compression",
        "oldest_age_seconds": "Age of the oldest of them, 0 when there is none",
    }
    for what, text in texts.items():
        yield _gauge(f"dedup_inbox_{what}", f"{text}.", [], {(): here[what]} if here else {})
        yield _gauge(f"dedup_inbox_limit_{what}", f"{text}: beyond this, producers get 503.", [], {(): limits[what]})


def _of_mongo(found: InMongo | None, settings: Settings) -> Iterator[Metric]:
    counts = dict.fromkeys(FAILURE_STATES, 0) | found.failures if found else {}  # a rule sees 0 where there are none
    yield _gauge("dedup_failures", "Events in failures, by state.", ["state"], {(state,): number for state, number in counts.items()})
    size = "Bytes of failures before compression"
    yield _gauge("dedup_failures_bytes", f"{size}.", [], {(): found.held.failure_bytes} if found else {})
    yield _gauge("dedup_failures_limit", "Events in failures: beyond this, producers get 503.", [], {(): settings.failures_max})
    yield _gauge("dedup_failures_limit_bytes", f"{size}: beyond this, producers get 503.", [], {(): settings.failures_max_bytes})
    events = "Processed events in the ledger, by the collection's metadata."
    yield _gauge("dedup_ledger_events", events, [], {(): found.ledger_events} if found else {})
    yield _gauge("dedup_paused_types", "Event types that are paused.", [], {(): found.paused_types} if found else {})


def _of_listeners(in_redis: InRedis | None, in_mongo: InMongo | None) -> Iterator[Metric]:
    alive: dict[tuple[str, ...], float] = {}
    nodes: dict[tuple[str, ...], float] = {}
    if in_redis is not None:
        alive = {(name,): 0 for name in (in_mongo.listeners if in_mongo is not None else ())}
        alive |= {(listener.name,): 1 for listener in in_redis.listeners}
        nodes = {(listener.name,): len(listener.nodes) for listener in in_redis.listeners}
    number: Samples = {(): sum(alive.values())} if in_redis is not None else {}
    yield _gauge("dedup_listeners_alive", "Listeners heard of within listener_grace_s.", [], number)
    yield _gauge("dedup_listener_alive", "Whether a listener that is not forgotten is alive.", ["listener"], alive)
    yield _gauge("dedup_listener_nodes", "Worker nodes of a living listener.", ["listener"], nodes)
    swept_at_ms = in_redis.swept_at_ms if in_redis is not None else None
    swept: Samples = {(): swept_at_ms / 1000} if swept_at_ms is not None else {}
    yield _gauge("dedup_sweeper_last_success_timestamp_seconds", "Unix time at which a sweep last succeeded.", [], swept)


def _of_counts(counted: Counted) -> Iterator[Metric]:
    outcomes = {(listener, kind, outcome): events for (listener, outcome, kind), events in counted.outcomes.items()}
    text = "Events of deliveries, by what the listener did with them."
    yield _counter("dedup_outcomes", text, ["listener", "type", "outcome"], outcomes)
    for duration, name, text in (
        ("ledger", "dedup_accept_to_ledger_seconds", "From a door's acceptance of an event to its commit."),
        ("claim", "dedup_claim_duration_seconds", "One claim call to Redis, for a slice of a delivery."),
        ("commit", "dedup_commit_duration_seconds", "Handlers and commit of a slice."),
    ):
        found = {(listener,): histogram for (what, listener), histogram in counted.durations.items() if what == duration}
        yield _histogram(name, text, ["listener"], BOUNDS_S[duration], found)
    takeovers = {(listener,): number for listener, number in counted.takeovers.items()}
    yield _counter("dedup_takeovers", "Claims won from an owner whose lease had run out.", ["listener"], takeovers)
    lost = {(listener,): number for listener, number in counted.lost.items()}
    yield _counter("dedup_lost_leases", "Own claims that another listener was seen to hold.", ["listener"], lost)


def _of_feeds(in_redis: InRedis | None) -> Iterator[Metric]:
    feeds = in_redis.feeds if in_redis is not None else []
    connected = {(feed.name, feed.node): feed.connected for feed in feeds}
    yield _gauge("dedup_feed_connected", "Whether a bridge is connected to a foreign feed.", ["feed", "node"], connected)
    events = {}
    for feed in feeds:
        for outcome, number in (("accepted", feed.accepted), ("malformed", feed.malformed), ("lost", feed.unaccepted)):
            events[feed.name, feed.node, outcome] = number
    text = "Payloads of a foreign feed, by what became of them."
    yield _counter("dedup_feed_payloads", text, ["feed", "node", "outcome"], events)


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, float(number))
    return family


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, float(number))
    return family


def _histogram(name: str, text: str, labels: Sequence[str], bounds_s: Sequence[float], samples: Mapping[Any, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in samples.items():
        total = 0.0
        buckets = []
        for bound, number in zip((*map(str, bounds_s), "+Inf"), histogram.buckets, strict=True):
            total += number
            buckets.append((bound, total))
        family.add_metric(values, buckets, histogram.seconds)
    return family
