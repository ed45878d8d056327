"""Throughput with 1, 2, 3 and 6 listeners: what each further copy of every event costs on one machine."""

from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, medians, with_spread
from bench.producers import over_http
from bench.rig import WARM_UP, Aside, started, warm

NUMBERS = (1, 2, 3, 6)


def run(options: Options) -> Result:
    """One system per number, in turn, as often as asked."""
    count = options.pick(quick=5_000, default=50_000, full=200_000)
    runs: list[list[Row]] = []
    for number in range(1, options.repeat(2) + 1):
        found: list[Row] = []
        for listeners in NUMBERS:
            with started(options.say, listeners=listeners) as rig, Aside() as aside:
                warm(rig, aside, Load(events=min(WARM_UP, count), name="warm", type=SYNTHETIC))
                sending = aside.run(over_http, rig.url, Load(events=count))
                done_at = rig.await_processed(rig.expect(count), sending)
                emptied_at = rig.await_empty_inbox()
                rig.audit()
                began = sending.result().began
            found.append(
                {"listeners": listeners, "events": count, "events_per_s": count / (done_at - began), "emptied_s": emptied_at - began}
            )
            options.say(f"run {number}: {listeners} listeners: {found[-1]['events_per_s']:,.0f} events/s")
        runs.append(found)
    rows = with_spread(medians(runs, by=("listeners",)), runs, by=("listeners",), of="events_per_s")
    return Result(
        name="listeners",
        title="Listeners: what each copy costs",
        about="Each listener gets every event, and all of them share the machine with everything else. No handler.",
        columns={"listeners": "listeners", "events": "events", "events_per_s": "events/s", "spread": "over the runs"},
        rows=rows,
        charts=[Chart(kind="lines", x="listeners", y=("events_per_s",), label="events/s")],
        runs=runs,
    )
