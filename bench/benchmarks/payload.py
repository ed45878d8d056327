"""Throughput with events of 0.3, 8, 64 and 256 KiB; their data is a text of departures, so it compresses as real data do."""

from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target, medians, with_spread
from bench.producers import over_http
from bench.rig import WARM_UP, Aside, started, warm

KIB = 1024
SIZES = {0.3: 60_000, 8: 15_000, 64: 2_000, 256: 500}
"""KiB of an event as JSON, and how many events are sent by default."""
_REQUEST_BYTES = 4 * KIB * KIB
HALF = 0.5


def run(options: Options) -> Result:
    """All sizes in turn on one system per run, as often as asked."""
    runs: list[list[Row]] = []
    for number in range(1, options.repeat(3) + 1):
        found: list[Row] = []
        with started(options.say) as rig, Aside() as aside:
            warm(rig, aside, Load(events=WARM_UP, name="warm", type=SYNTHETIC))
            for size, usual in SIZES.items():
                count = options.pick(quick=usual // 20, default=usual, full=usual * 4)
                per_request = max(1, min(500, int(_REQUEST_BYTES / (size * KIB))))
                load = Load(events=count, name=f"kib-{size}", type=SYNTHETIC, per_request=per_request, payload_bytes=int(size * KIB))
                sending = aside.run(over_http, rig.url, load)
                done_at = rig.await_processed(rig.expect(count), sending)
                rig.await_empty_inbox()
                rate = count / (done_at - sending.result().began)
                found.append(
                    {"kib": size, "events": count, "per_request": per_request, "events_per_s": rate, "mib_per_s": rate * size / KIB}
                )
                options.say(f"run {number}: {size} KiB: {rate:,.0f} events/s, {rate * size / KIB:.1f} MiB/s")
            rig.audit()
        runs.append(found)
    rows = with_spread(medians(runs, by=("kib", "per_request")), runs, by=("kib",), of="events_per_s")
    share = rows[1]["events_per_s"] / rows[0]["events_per_s"]
    return Result(
        name="payload",
        title="Payload: larger events",
        about="Three listeners, no handler; requests of at most 500 events and 4 MiB. An event's size is that of its JSON; its data is one text, of departures.",
        columns={
            "kib": "KiB",
            "events": "events",
            "per_request": "per request",
            "events_per_s": "events/s",
            "spread": "over the runs",
            "mib_per_s": "MiB/s",
        },
        rows=rows,
        targets=[Target(text="8 KiB at least half the events/s of 0.3 KiB", found=f"{100 * share:.0f} %", met=share >= HALF)],
        charts=[Chart(kind="lines", x="kib", y=("events_per_s",), label="events/s", log="xy")],
        runs=runs,
    )
