"""Accept → ledger, beside the usual way on the same servers.

From the first byte of the first request until the ledger holds every event, for which its number of documents is asked every 10 ms. Three
listeners, majority writes, pre-check, claims, task events on; no handler, so the event is stored. Each way has a system and an empty ledger of its own in
each run, after a warm-up of other events.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

from app.embedded.ports import free_port
from bench.foreign import FEED, Begin, serve_events
from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target, medians, with_spread
from bench.naive import COLLECTION, DATABASE, LISTENERS, queue_of, send
from bench.producers import over_http, over_socketio
from bench.rig import WARM_UP, Aside, BenchError, started, warm

TIMES_NAIVE = 40
NAIVE_WARM_UP = 200
MANY_CONNECTIONS = 16
HTTP, MANY, ONE, LISTS, SINGLES, FOREIGN, NAIVE = (
    "HTTP, requests of 500",
    f"HTTP, single events, {MANY_CONNECTIONS} at a time",
    "HTTP, single events, one after the other",
    "Socket.IO publish, lists of 500",
    "Socket.IO publish, single events",
    "foreign feed, single events",
    "naive: a task per event and listener",
)

CONNECTIONS = {HTTP: 4, MANY: MANY_CONNECTIONS, ONE: 1}
"""Of the ways over HTTP; each has one request under way."""


def run(options: Options) -> Result:
    """Run all ways in turn, as often as asked."""
    cases = {
        HTTP: options.pick(quick=5_000, default=200_000),
        MANY: options.pick(quick=1_000, default=10_000, full=50_000),
        ONE: options.pick(quick=500, default=3_000, full=10_000),
        LISTS: options.pick(quick=5_000, default=100_000, full=200_000),
        SINGLES: options.pick(quick=1_000, default=10_000, full=50_000),
        FOREIGN: options.pick(quick=1_000, default=30_000, full=100_000),
        NAIVE: options.pick(quick=300, default=3_000, full=10_000),
    }
    runs: list[list[Row]] = []
    for number in range(1, options.repeat(3) + 1):
        found: list[Row] = []
        for way, rate in _rates(options, cases):
            options.say(f"run {number}: {way}: {rate:,.0f} events/s")
            found.append({"way": way, "events": cases[way], "events_per_s": rate})
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
        charts=[
            Chart(
                kind="bars",
                x="way",
                y=("events_per_s",),
                label="events/s",
                line=TIMES_NAIVE * rows[-1]["events_per_s"],
                line_label=f"target: {TIMES_NAIVE} × naive",
            )
        ],
        runs=runs,
    )


def _target(rows: list[Row]) -> Target:
    times = rows[0]["times_naive"]
    return Target(
        text=f"HTTP at least {TIMES_NAIVE} × the naive baseline in the same run", found=f"{times:.1f} ×", met=times >= TIMES_NAIVE
    )


def _rates(options: Options, cases: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    """Each way with its events a second; for a quick look, ours share one system."""
    ours = {way: count for way, count in cases.items() if way != NAIVE}
    for ways in [ours] if options.mode == "quick" else [{way: count} for way, count in ours.items()]:
        yield from _rates_of_ours(options, ways)
    yield NAIVE, _naive_rate(options, cases[NAIVE])


def _rates_of_ours(options: Options, ways: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    starts = dict(zip(ways, accumulate(ways.values(), initial=0), strict=False))
    loads = {
        way: Load(events=count, start=starts[way], name=f"run-{starts[way]}", per_request=500 if way in (HTTP, LISTS) else 1)
        for way, count in ways.items()
    }
    with ExitStack() as stack:
        bridge: tuple[str, ...] = ()
        if FOREIGN in ways:
            port, begin = free_port(), Path(stack.enter_context(TemporaryDirectory(prefix="dedup-bench-feed-"))) / "begin"
            serving = stack.enter_context(Aside()).run(serve_events, port, loads[FOREIGN], begin)
            bridge = ("--from", f"http://127.0.0.1:{port}", *FEED)
        rig = stack.enter_context(started(options.say, bridge=bridge))
        aside = stack.enter_context(Aside())
        warm(rig, aside, Load(events=min(WARM_UP, *ways.values()), name="warm", type=SYNTHETIC))
        for way, load in loads.items():
            options.say(f"{way}, {load.events:,} events")
            if way == FOREIGN:
                Begin(rig.settings.mongo_url, rig.processed()).say(begin)
                seconds = rig.await_processed(rig.expect(load.events), serving) - serving.result()
            else:
                if way in CONNECTIONS:
                    sending = aside.run(over_http, rig.url, load, CONNECTIONS[way])
                else:
                    sending = aside.run(over_socketio, rig.url, load)
                seconds = rig.await_processed(rig.expect(load.events), sending) - sending.result().began
            rig.audit()
            yield way, load.events / seconds


def _naive_rate(options: Options, count: int) -> float:
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
