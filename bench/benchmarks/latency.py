"""From the receipt of 202 until the event is seen in the ledger, at fixed rates of arrival.

Open loop: each request is sent when it is due, whatever has become of those before. The sender notes when it received the 202, in a process of its own; this
process sees the event come into the ledger by a change stream, so by majority. Both read the machine's monotonic clock. "Sent" counts from when the
request was due, so that a broadcaster which lets senders wait cannot hide it.
"""

from app.events.keys import id_key
from app.samples import SOURCE
from bench.arrivals import Arrivals
from bench.load import SYNTHETIC, Load, id_of
from bench.measures import Chart, Options, Result, Row, Target, medians, quantile, shown
from bench.producers import at_a_pace
from bench.rig import WARM_UP, Aside, Rig, started, warm

RATES = {1: 1, 50: 1, 500: 1, 5_000: 10}
"""Events a second, and how many of them a request holds."""


def run(options: Options) -> Result:
    """All rates in turn on one system, as often as asked."""
    runs: list[list[Row]] = []
    with started(options.say) as rig, Aside() as aside:
        warm(rig, aside, Load(events=WARM_UP, name="warm", type=SYNTHETIC))
        warm(rig, aside, Load(events=200, name="single", type=SYNTHETIC, per_request=1))
        for number in range(1, options.repeat(3) + 1):
            rows = [_row(options, rig, aside, number, rate, per_request) for rate, per_request in RATES.items()]
            runs.append(rows)
        rig.audit()
    rows = medians(runs, by=("rate", "per_request"))
    return Result(
        name="latency",
        title="Latency: accepted (202) → in the ledger",
        about=(
            "Open loop, single events over HTTP (at 5,000/s in requests of 10), three listeners, no handler. Counted from the sender's receipt of 202 until a "
            "change stream on the ledger, which shows what a majority holds, delivers the event: the stream's own delay is in the figures, and so is its share of the "
            "machine. “From sending” counts from when the request was due."
        ),
        columns={
            "rate": "events/s",
            "per_request": "per request",
            "events": "events",
            "p50_ms": "p50, ms",
            "p95_ms": "p95, ms",
            "p99_ms": "p99, ms",
            "max_ms": "max, ms",
            "sent_p50_ms": "from sending: p50, ms",
            "sent_p99_ms": "p99, ms",
        },
        rows=rows,
        targets=[_target(rows, 50, "p50_ms", 20), _target(rows, 50, "p99_ms", 80), _target(rows, 500, "p99_ms", 200)],
        charts=[Chart(kind="lines", x="rate", y=("p50_ms", "p95_ms", "p99_ms", "max_ms"), label="accepted → in the ledger, ms", log="xy")],
        runs=runs,
    )


def _target(rows: list[Row], rate: int, figure: str, most_ms: float) -> Target:
    found = next(row[figure] for row in rows if row["rate"] == rate)
    return Target(text=f"{figure[:3]} at {rate}/s at most {most_ms:g} ms", found=f"{shown(found)} ms", met=found <= most_ms)


def _row(options: Options, rig: Rig, aside: Aside, number: int, rate: int, per_request: int) -> Row:
    seconds = options.pick(quick=2, default=20 if rate == 1 else 8, full=60)
    count = max(per_request, rate * seconds)
    load = Load(events=count, name=f"at-{rate}-{number}", type=SYNTHETIC, per_request=per_request)
    with Arrivals(rig.settings.mongo_url) as arrivals:
        sending = aside.run(at_a_pace, rig.url, load, rate / per_request)
        rig.await_processed(rig.expect(count), sending, every_s=0.1)
        rig.await_count(lambda: len(arrivals), count)
        rig.await_empty_inbox()
    sent = sending.result()
    keys = [id_key(SOURCE, id_of(load, at)) for at in range(count)]
    accepted = sorted((arrivals.at[key] - sent.accepted[at // per_request]) * 1000 for at, key in enumerate(keys))
    due = sorted((arrivals.at[key] - sent.due[at // per_request]) * 1000 for at, key in enumerate(keys))
    row: Row = {"rate": rate, "per_request": per_request, "events": count}
    row |= {f"p{part}_ms": quantile(accepted, part / 100) for part in (50, 95, 99)} | {"max_ms": accepted[-1], "min_ms": accepted[0]}
    row |= {f"sent_p{part}_ms": quantile(due, part / 100) for part in (50, 95, 99)} | {"sent_max_ms": due[-1]}
    options.say(f"run {number}: {rate}/s: p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms; smallest {row['min_ms']:.1f} ms")
    return row
