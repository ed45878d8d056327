"""Slow handlers, against the ideal: listeners × concurrency ÷ time.

The concurrency of plain handlers is one per listener (a child process by default), that of ``async def`` handlers ``DEDUP_ASYNC_LIMIT`` (64) per listener. Handlers
are transactional, as by default; ``async def`` ones each have a transaction of their own, so they are measured as ``at_least_once``, too. Enough events for about
five seconds in the ideal, but at most 4,000, in requests of 100 (plain) and 500.
"""

from collections.abc import Iterator

from bench.load import Load
from bench.measures import Chart, Options, Result, Row, Target, medians
from bench.producers import over_http
from bench.rig import Aside, Rig, started, warm

MILLISECONDS = (1, 10, 100)
KINDS = {"plain": "plain", "async": "async def", "outside": "async def, at_least_once"}
LISTENERS = (1, 2, 3)
ENOUGH = 0.8
_MOST_EVENTS = 4_000
_KNOWN_PACE = 32
"""Events per listener by which it has learned how slow the type is."""


def run(options: Options) -> Result:
    """Every combination, on one system per number of listeners."""
    numbers = range(1, options.repeat(1) + 1)
    runs = [[row for listeners in LISTENERS for row in _rows(options, listeners, number)] for number in numbers]
    every = medians(runs, by=("kind", "ms", "listeners"))
    for row in every:
        row["case"] = f"{row['kind']}, {row['ms']} ms"
    rows = [_by_listeners([row for row in every if row["case"] == case]) for case in sorted({row["case"] for row in every}, key=_order)]
    return Result(
        name="slow",
        title="Slow handlers, against the ideal",
        about=(
            "Handlers that sleep, transactional but for the last kind; one to three listeners with the default of one child process each, and up to 64 "
            "`async def` handlers at once in each. The ideal is listeners × concurrency ÷ time; that of quick `async def` handlers is more than two cores can carry."
        ),
        columns={"kind": "handler", "ms": "ms", "ideal": "ideal with 1 listener, events/s"}
        | {f"rate_{number}": f"{number} listener{'s' * (number > 1)}, events/s" for number in LISTENERS}
        | {f"share_{number}": f"{number} listener{'s' * (number > 1)}, %" for number in LISTENERS},
        rows=rows,
        targets=[_target(row) for row in rows],
        charts=[Chart(kind="lines", x="listeners", y=("share",), series="case", label="% of the ideal", line=100 * ENOUGH, rows=every)],
        runs=runs,
    )


def _order(case: str) -> tuple[int, float]:
    kind, _, rest = case.rpartition(", ")
    return list(KINDS.values()).index(kind), float(rest.split()[0])


def _by_listeners(rows: list[Row]) -> Row:
    """One row for a case, whatever the number of listeners."""
    rates = {f"rate_{row['listeners']}": row["events_per_s"] for row in rows}
    shares = {f"share_{row['listeners']}": row["share"] for row in rows}
    return {"kind": rows[0]["kind"], "ms": rows[0]["ms"], "ideal": rows[0]["ideal"] / rows[0]["listeners"]} | rates | shares


def _target(row: Row) -> Target:
    least = min(row[f"share_{number}"] for number in LISTENERS)
    text = f"{row['kind']}, {row['ms']} ms: at least {ENOUGH:.0%} of the ideal with 1, 2 and 3 listeners"
    return Target(text=text, found=f"{least:.0f} %", met=least >= 100 * ENOUGH)


def _rows(options: Options, listeners: int, number: int) -> Iterator[Row]:
    with started(options.say, listeners=listeners, handlers=("bench.handlers",)) as rig, Aside() as aside:
        for kind, name in KINDS.items():
            for ms in MILLISECONDS:
                ideal = listeners * (1 if kind == "plain" else rig.settings.async_limit) / (ms / 1000)
                rate = _rate(options, rig, aside, f"bench.{kind}.{ms}", ideal)
                row: Row = {
                    "kind": name,
                    "ms": ms,
                    "listeners": listeners,
                    "ideal": ideal,
                    "events_per_s": rate,
                    "share": 100 * rate / ideal,
                }
                options.say(
                    f"run {number}: {name} {ms} ms, {listeners} listeners: {rate:,.0f} of {ideal:,.0f} events/s, {row['share']:.0f} %"
                )
                yield row
        rig.audit()


def _rate(options: Options, rig: Rig, aside: Aside, kind: str, ideal: float) -> float:
    warm(rig, aside, Load(events=_KNOWN_PACE * len(rig.listeners), name=f"warm-{kind}", type=kind, per_request=_KNOWN_PACE))
    count = min(options.pick(quick=400, default=_MOST_EVENTS), int(ideal * options.pick(quick=1, default=5, full=20)))
    sending = aside.run(
        over_http, rig.url, Load(events=count, name=f"run-{kind}", type=kind, per_request=100 if ".plain." in kind else 500)
    )
    done_at = rig.await_committed(rig.expect(count), sending)
    rig.await_empty_inbox()
    return count / (done_at - sending.result().began)
