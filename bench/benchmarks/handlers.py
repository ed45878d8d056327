"""Transactional handlers: on documents that few others want, as ``async def`` too, and on three that all listeners want; beside storing alone.

The handlers' own writes are counted at the end: as many as events, or there is no result.
"""

from bench.handlers import COUNTS
from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, medians, with_spread
from bench.producers import over_http
from bench.rig import WARM_UP, Aside, BenchError, Rig, started, warm

CASES = {
    "no handler": (SYNTHETIC, 1),
    "10,000 documents": ("bench.spread", 1),
    "3 documents": ("bench.hot", 1),
    "10,000 documents, async def": ("bench.spread.async", 10),
}
"""Type, and by how much fewer events there are than in the other cases: a transaction each takes its time."""


def run(options: Options) -> Result:
    """All cases in turn on one system, as often as asked."""
    count = options.pick(quick=2_000, default=20_000, full=100_000)
    runs: list[list[Row]] = []
    with started(options.say, handlers=("bench.handlers",)) as rig, Aside() as aside:
        for kind, fewer in CASES.values():
            warm(rig, aside, Load(events=min(WARM_UP, count) // fewer, name=f"warm-{kind}", type=kind))
        for number in range(1, options.repeat(3) + 1):
            found: list[Row] = []
            for name, (kind, fewer) in CASES.items():
                events = count // fewer
                sending = aside.run(over_http, rig.url, Load(events=events, name=f"run-{number}-{kind}", type=kind))
                done_at = rig.await_committed(rig.expect(events), sending)
                rig.await_empty_inbox()
                rate = events / (done_at - sending.result().began)
                options.say(f"run {number}: {name}: {rate:,.0f} events/s")
                found.append({"writes": name, "events": events, "events_per_s": rate})
            runs.append([row | {"share": 100 * row["events_per_s"] / found[0]["events_per_s"]} for row in found])
        rig.audit()
        _count_effects(rig)
    rows = with_spread(medians(runs, by=("writes",)), runs, by=("writes",), of="events_per_s")
    return Result(
        name="handlers",
        title="Transactional handlers",
        about=(
            "Three listeners; each event adds one to a counter in the transaction that commits it: plain handlers' events share one for a slice, `async def` ones have one each. "
            "The counters are added up at the end."
        ),
        columns={
            "writes": "handlers write to",
            "events": "events",
            "events_per_s": "events/s",
            "spread": "over the runs",
            "share": "% of no handler",
        },
        rows=rows,
        charts=[Chart(kind="bars", x="writes", y=("events_per_s",), label="events/s")],
        runs=runs,
    )


def _count_effects(rig: Rig) -> None:
    counted = sum(int(document["count"]) for document in rig.db[COUNTS].find())
    handled = rig.db["events"].count_documents({"type": {"$in": [kind for kind, _ in CASES.values() if kind != SYNTHETIC]}})
    if counted != handled:
        raise BenchError(f"the handlers have counted {counted:,} events, and {handled:,} are in the ledger")
