"""Every event sent 1, 3 and 10 times: what a repeated delivery costs.

The repetitions come after 20 requests, so some meet their event in the inbox and some in the ledger. Rates count until everything is accepted and every
different event is in the ledger; what repeats an event that was just in somebody's hands may wait in the inbox for the sweeper after that.
"""

from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, medians, with_spread
from bench.producers import over_http
from bench.rig import WARM_UP, Aside, started, warm

TIMES = (1, 3, 10)


def run(options: Options) -> Result:
    """All numbers in turn on one system, as often as asked."""
    sent = options.pick(quick=10_000, default=60_000, full=200_000)
    runs: list[list[Row]] = []
    with started(options.say) as rig, Aside() as aside:
        warm(rig, aside, Load(events=WARM_UP, name="warm", type=SYNTHETIC))
        for number in range(1, options.repeat(3) + 1):
            found: list[Row] = []
            for times in TIMES:
                load = Load(events=sent // times, name=f"run-{number}-{times}", type=SYNTHETIC, times=times)
                sending = aside.run(over_http, rig.url, load)
                done_at = rig.await_processed(rig.expect(load.events), sending)
                sent_ones = sending.result()
                emptied_s = rig.await_empty_inbox() - sent_ones.began
                seconds = max(done_at, sent_ones.ended) - sent_ones.began
                row: Row = {"times": times, "different": load.events, "sent": load.events * times, "emptied_s": emptied_s}
                row |= {"sent_per_s": row["sent"] / seconds, "different_per_s": load.events / seconds}
                found.append(row)
                options.say(f"run {number}: {times} ×: {row['sent_per_s']:,.0f} sent/s, {row['different_per_s']:,.0f} processed/s")
            runs.append(found)
        rig.audit()
    rows = with_spread(medians(runs, by=("times",)), runs, by=("times",), of="sent_per_s")
    return Result(
        name="duplicates",
        title="Duplicates: every event several times",
        about="Three listeners, no handler, requests of 500; each request is repeated after 20 others. Rates until all is accepted and processed; the last column until the inbox is empty.",
        columns={
            "times": "times",
            "sent": "sent",
            "different": "different",
            "sent_per_s": "sent/s",
            "spread": "over the runs",
            "different_per_s": "processed/s",
            "emptied_s": "inbox empty after, s",
        },
        rows=rows,
        charts=[Chart(kind="bars", x="times", y=("sent_per_s", "different_per_s"), label="events/s")],
        runs=runs,
    )
