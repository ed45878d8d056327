"""Slow handlers, against the ideal: listeners × concurrency ÷ time.

The concurrency of plain handlers is one per listener (a child process by default), that of ``async def`` handlers ``DEDUP_ASYNC_LIMIT`` per listener: 64 by default, and
once 8. Handlers are transactional, as by default, but use no MongoDB (``bench handlers`` has such); ``async def`` ones are measured as ``at_least_once``, too. Enough events
for about five seconds in the ideal, but at most 12,000, in requests of 100 (plain) and 500.

Beside the ideal there are two figures that say how much of it can be had here. *Own*: how long such a handler takes in an empty loop of its own, measured beforehand on the
idle machine, since a sleep of 1 ms takes longer than that. *Without*: what the same listeners carry in the same run with no handler at all. The targets are held against the ideal as it is.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target, medians
from bench.producers import over_http
from bench.rig import Aside, Rig, started, warm
from workers.loop import LoopThread

MILLISECONDS = (1, 10, 100)
LISTENERS = (1, 2, 3)
ENOUGH = 0.8
FEW = 8
_MOST_EVENTS = 12_000
_KNOWN_PACE = 32
"""Events per listener by which it has learned how slow the type is."""
_OWN_ROUNDS = {1: 200, 10: 50, 100: 5}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of handlers, and how many of them a listener runs at once."""

    name: str
    type: str
    at_once: int = 64
    milliseconds: Sequence[int] = MILLISECONDS


KINDS = (Kind("plain", "plain", 1), Kind("async def", "async"), Kind("async def, at_least_once", "outside"))
KINDS_OF_FEW = (
    Kind(f"async def, {FEW} at once", "async", FEW, (10,)),
    Kind(f"async def, at_least_once, {FEW} at once", "outside", FEW, (10,)),
)


def run(options: Options) -> Result:
    """Every combination, on one system per number of listeners and limit."""
    own = {(at_once, ms): _own_ms(at_once, ms) for at_once in (1, FEW, 64) for ms in MILLISECONDS}
    numbers = range(1, options.repeat(1) + 1)
    runs = [
        [row | {"own": own[row["at_once"], row["ms"]]} for listeners in LISTENERS for row in _of_listeners(options, listeners, number)]
        for number in numbers
    ]
    every = medians(runs, by=("kind", "ms", "listeners"))
    for row in every:
        row["case"] = f"{row['kind']}, {row['ms']} ms"
    rows = [_by_listeners([row for row in every if row["case"] == case]) for case in sorted({row["case"] for row in every}, key=_order)]
    of = {number: f"{number} listener{'s' * (number > 1)}" for number in LISTENERS}
    return Result(
        name="slow",
        title="Slow handlers, against the ideal",
        about=(
            "Handlers that sleep and use no MongoDB, transactional but for those that say otherwise; one to three listeners with the default of one child process each, and up to 64 "
            "`async def` handlers at once in each, or 8. The ideal is listeners × concurrency ÷ time. *Own* is what the handler takes in an empty loop; *without* is what the same "
            "listeners carried in the same run without any handler: the ideal of quick `async def` handlers is more than that, so the last columns are of the smaller of the two."
        ),
        columns={"kind": "handler", "ms": "ms", "own": "own, ms", "ideal": "ideal with 1 listener, events/s"}
        | {f"rate_{number}": f"{name}, events/s" for number, name in of.items()}
        | {f"share_{number}": f"{name}, %" for number, name in of.items()}
        | {f"without_{number}": f"{name} without handler, events/s" for number, name in of.items()}
        | {f"reach_{number}": f"{name}, % of the smaller of ideal and without" for number, name in of.items()},
        rows=rows,
        targets=[_target(row) for row in rows],
        charts=[Chart(kind="lines", x="listeners", y=("share",), series="case", label="% of the ideal", line=100 * ENOUGH, rows=every)],
        runs=runs,
    )


def _own_ms(at_once: int, ms: int) -> float:
    """How long one round of handlers takes where nothing else is done."""
    rounds = _OWN_ROUNDS[ms]
    if at_once == 1:
        began = time.monotonic()
        for _ in range(rounds):
            time.sleep(ms / 1000)
        return (time.monotonic() - began) / rounds * 1000
    loop = LoopThread()
    try:
        return loop.run(_own_rounds(at_once, ms, rounds))
    finally:
        loop.close()


async def _own_rounds(at_once: int, ms: int, rounds: int) -> float:
    began = time.monotonic()
    for _ in range(rounds):
        await asyncio.gather(*(asyncio.sleep(ms / 1000) for _ in range(at_once)))
    return (time.monotonic() - began) / rounds * 1000


def _order(case: str) -> tuple[int, float]:
    kind, _, rest = case.rpartition(", ")
    return [one.name for one in (*KINDS, *KINDS_OF_FEW)].index(kind), float(rest.split()[0])


def _by_listeners(rows: list[Row]) -> Row:
    """One row for a case, whatever the number of listeners."""
    first: Row = {name: rows[0][name] for name in ("kind", "ms", "own")}
    figures = {"rate": "events_per_s", "share": "share", "without": "without", "reach": "reach"}
    each = {f"{short}_{row['listeners']}": row[name] for short, name in figures.items() for row in rows}
    return first | {"ideal": rows[0]["ideal"] / rows[0]["listeners"]} | each


def _target(row: Row) -> Target:
    least = min(row[f"share_{number}"] for number in LISTENERS)
    text = f"{row['kind']}, {row['ms']} ms: at least {ENOUGH:.0%} of the ideal with 1, 2 and 3 listeners"
    return Target(text=text, found=f"{least:.0f} %", met=least >= 100 * ENOUGH)


def _of_listeners(options: Options, listeners: int, number: int) -> Iterator[Row]:
    yield from _rows(options, listeners, number, KINDS)
    yield from _rows(options, listeners, number, KINDS_OF_FEW, async_limit=FEW)


def _rows(options: Options, listeners: int, number: int, kinds: Sequence[Kind], **settings: int) -> Iterator[Row]:
    with started(options.say, listeners=listeners, handlers=("bench.handlers",), **settings) as rig, Aside() as aside:
        without = _rate(options, rig, aside, SYNTHETIC, ideal=float("inf"))
        options.say(f"run {number}: no handler, {listeners} listeners: {without:,.0f} events/s")
        for kind in kinds:
            for ms in kind.milliseconds:
                ideal = listeners * kind.at_once / (ms / 1000)
                rate = _rate(options, rig, aside, f"bench.{kind.type}.{ms}", ideal)
                row: Row = {
                    "kind": kind.name,
                    "ms": ms,
                    "listeners": listeners,
                    "at_once": kind.at_once,
                    "ideal": ideal,
                    "events_per_s": rate,
                    "share": 100 * rate / ideal,
                    "without": without,
                    "reach": 100 * rate / min(ideal, without),
                }
                options.say(
                    f"run {number}: {kind.name} {ms} ms, {listeners} listeners: {rate:,.0f} of {ideal:,.0f} events/s, {row['share']:.0f} %"
                    f"; {row['reach']:.0f} % of what there can be"
                )
                yield row
        rig.audit()


def _rate(options: Options, rig: Rig, aside: Aside, kind: str, ideal: float) -> float:
    warm(rig, aside, Load(events=_KNOWN_PACE * len(rig.listeners), name=f"warm-{kind}", type=kind, per_request=_KNOWN_PACE))
    count = int(min(options.pick(quick=400, default=_MOST_EVENTS), ideal * options.pick(quick=1, default=5, full=20)))
    sending = aside.run(
        over_http, rig.url, Load(events=count, name=f"run-{kind}", type=kind, per_request=100 if ".plain." in kind else 500)
    )
    done_at = rig.await_committed(rig.expect(count), sending)
    rig.await_empty_inbox()
    return count / (done_at - sending.result().began)
