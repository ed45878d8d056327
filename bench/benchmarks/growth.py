"""The same work on an empty ledger and on one of 1,000,000 documents.

Ids are hashes, so that the index is met at random places, new keys between old ones: the hard case. Both systems are new in each run; the full ledger is filled
directly, by documents of the same shape.
"""

from bench.filling import fill
from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target, medians, with_spread
from bench.producers import over_http
from bench.rig import WARM_UP, Aside, started, warm

ENOUGH = 0.8
_FILLERS = 2


def run(options: Options) -> Result:
    """Empty and full in turn, as often as asked."""
    count = options.pick(quick=5_000, default=60_000, full=200_000)
    past = options.pick(quick=20_000, default=1_000_000)
    runs: list[list[Row]] = []
    for number in range(1, options.repeat(2) + 1):
        found: list[Row] = [{"ledger": held, "events": count, "events_per_s": _rate(options, held, count)} for held in (0, past)]
        options.say(f"run {number}: " + ", ".join(f"on {row['ledger']:,} documents {row['events_per_s']:,.0f} events/s" for row in found))
        runs.append(found)
    rows = with_spread(medians(runs, by=("ledger",)), runs, by=("ledger",), of="events_per_s")
    share = rows[1]["events_per_s"] / rows[0]["events_per_s"]
    return Result(
        name="growth",
        title="Growth: an empty and a full ledger",
        about="Three listeners, no handler, ids in no order. Documents of the same shape were put into the ledger before; MongoDB's cache is 0.5 GiB.",
        columns={"ledger": "documents before", "events": "events", "events_per_s": "events/s", "spread": "over the runs"},
        rows=rows,
        targets=[
            Target(
                text=f"on {past:,} documents at least {ENOUGH:.0%} of an empty ledger", found=f"{100 * share:.0f} %", met=share >= ENOUGH
            )
        ],
        charts=[Chart(kind="bars", x="ledger", y=("events_per_s",), label="events/s", line=ENOUGH * rows[0]["events_per_s"])],
        runs=runs,
    )


def _rate(options: Options, held: int, count: int) -> float:
    with started(options.say) as rig, Aside(_FILLERS) as aside:
        if held:
            share = held // _FILLERS
            filling = [
                aside.run(
                    fill, rig.settings.mongo_url, Load(events=share, start=at * share, name=f"past-{at}", type=SYNTHETIC, scattered=True)
                )
                for at in range(_FILLERS)
            ]
            for part in filling:
                part.result()
            rig.await_processed(rig.expect(share * _FILLERS))
            options.say(f"the ledger holds {held:,} documents")
        warm(rig, aside, Load(events=min(WARM_UP, count), name="warm", type=SYNTHETIC, scattered=True))
        sending = aside.run(over_http, rig.url, Load(events=count, type=SYNTHETIC, scattered=True))
        done_at = rig.await_processed(rig.expect(count), sending)
        rig.audit()
        return count / (done_at - sending.result().began)
