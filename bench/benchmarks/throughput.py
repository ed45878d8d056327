"""Accept → ledger, beside the usual way on the same servers.

From the first byte of the first request until the ledger holds every event, for which its number of documents is asked every 10 ms. Three
listeners, majority writes, pre-check, claims, task events on; no handler, so the event is stored. Each way has a system and an empty ledger of its own in
each run, after a warm-up of other events.
"""

import time

from app.embedded.ports import free_port
from bench.foreign import FEED, serve_events
from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target, medians, with_spread
from bench.naive import COLLECTION, DATABASE, LISTENERS, queue_of, send
from bench.producers import over_http, over_socketio
from bench.rig import Aside, BenchError, Rig, started

TIMES_NAIVE = 40
WARM_UP = 5_000
NAIVE_WARM_UP = 200
HTTP, LISTS, SINGLES, FOREIGN, NAIVE = (
    "HTTP, requests of 500",
    "Socket.IO publish, lists of 500",
    "Socket.IO publish, single events",
    "foreign feed, single events",
    "naive: a task per event and listener",
)


def run(options: Options) -> Result:
    """Run all ways in turn, as often as asked."""
    cases = {
        HTTP: options.pick(quick=5_000, default=200_000),
        LISTS: options.pick(quick=5_000, default=100_000, full=200_000),
        SINGLES: options.pick(quick=1_000, default=20_000, full=50_000),
        FOREIGN: options.pick(quick=1_000, default=30_000, full=100_000),
        NAIVE: options.pick(quick=300, default=4_000, full=10_000),
    }
    runs: list[list[Row]] = []
    for number in range(1, options.repeat(3) + 1):
        found: list[Row] = []
        for way, count in cases.items():
            options.say(f"run {number}: {way}, {count:,} events")
            rate = naive_rate(options, count) if way == NAIVE else rate_of(options, way, count)
            options.say(f"run {number}: {way}: {rate:,.0f} events/s")
            found.append({"way": way, "events": count, "events_per_s": rate})
        runs.append([row | {"times_naive": row["events_per_s"] / found[-1]["events_per_s"]} for row in found])
    rows = with_spread(medians(runs, by=("way",)), runs, by=("way",), of="events_per_s")
    return Result(
        name="throughput",
        title="Throughput: accept → ledger",
        about=(
            "Three listeners, no handler, task events on; all processes, both servers and the sender share the machine. The naive way is written out in "
            "`bench/naive.py`. A foreign feed has at most 8,000 events under way, since a bridge gives up what exceeds its buffer."
        ),
        columns={"way": "", "events": "events", "events_per_s": "events/s", "spread": "over the runs", "times_naive": "× naive"},
        rows=rows,
        targets=[_target(rows)],
        charts=[Chart(kind="bars", x="way", y=("events_per_s",), label="events/s", line=TIMES_NAIVE * rows[-1]["events_per_s"])],
        runs=runs,
    )


def _target(rows: list[Row]) -> Target:
    times = rows[0]["times_naive"]
    return Target(
        text=f"HTTP at least {TIMES_NAIVE} × the naive baseline in the same run", found=f"{times:.1f} ×", met=times >= TIMES_NAIVE
    )


def rate_of(options: Options, way: str, count: int) -> float:
    """Events a second through one of our doors."""
    warm_up = Load(events=min(WARM_UP, count), name="warm", type=SYNTHETIC)
    load = Load(events=count, per_request=500 if way in (HTTP, LISTS) else 1)
    if way == FOREIGN:
        return _foreign_rate(options, warm_up, load)
    with started(options.say) as rig, Aside() as aside:
        warm(rig, aside, warm_up)
        sent = aside.run(over_http if way == HTTP else over_socketio, rig.url, load)
        done_at = rig.await_processed(rig.expect(count), sent)
        rig.audit()
        return count / (done_at - sent.result().began)


def warm(rig: Rig, aside: Aside, load: Load) -> None:
    """Send a load by HTTP, and wait until nothing of it is left."""
    aside.run(over_http, rig.url, load).result()
    rig.await_processed(rig.expect(load.events))
    rig.await_empty_inbox()


def _foreign_rate(options: Options, warm_up: Load, load: Load) -> float:
    port = free_port()
    with started(options.say, bridge=("--from", f"http://127.0.0.1:{port}", *FEED)) as rig, Aside() as aside:
        warm(rig, aside, warm_up)
        serving = aside.run(serve_events, port, load, rig.settings.mongo_url, warm_up.events)
        done_at = rig.await_processed(rig.expect(load.events), serving)
        rig.audit()
        return load.events / (done_at - serving.result())


def naive_rate(options: Options, count: int) -> float:
    """Events a second of the usual way, from the first ``apply_async`` until all are in its collection.

    Raises:
        BenchError: it has processed an event twice, or one not at all.
    """
    with started(options.say, system=False) as rig, Aside() as aside:
        broker = rig.servers.valkey.url(1)
        env = {"NAIVE_BROKER_URL": broker, "NAIVE_REDIS_URL": rig.servers.valkey.url(0), "NAIVE_MONGO_URL": rig.servers.mongo.url(DATABASE)}
        for number in range(1, LISTENERS + 1):
            options_of = ["-E", "-Q", queue_of(number), "-n", f"naive-{number}@%h"]
            rig.spawn(f"naive-{number}", [rig.program("celery"), "-A", "bench.naive", "worker", *options_of], env)
        collection = rig.db.client[DATABASE][COLLECTION]
        warm_up = Load(events=NAIVE_WARM_UP, name="warm")
        aside.run(send, broker, warm_up).result()
        rig.await_count(collection.estimated_document_count, NAIVE_WARM_UP)
        queues = rig.valkey(1)
        while any(queues.llen(queue_of(number)) for number in range(1, LISTENERS + 1)):
            time.sleep(0.1)
        sending = aside.run(send, broker, Load(events=count))
        done_at = rig.await_count(collection.estimated_document_count, NAIVE_WARM_UP + count, sending)
        found = len(collection.distinct("id"))
        if found != NAIVE_WARM_UP + count:
            raise BenchError(f"the naive way has processed {found:,} different events of {NAIVE_WARM_UP + count:,}")
        return count / (done_at - sending.result())
