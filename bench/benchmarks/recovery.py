"""How soon again: after SIGKILL of a winner, with a backlog, and from nothing.

*Takeover*: one batch of 50 events whose handler hangs; as soon as it says which listener it runs in, that listener's processes get SIGKILL. Counted from there until all
50 are in the ledger. Once with the handler outside a transaction, once inside an open one, whose locks MongoDB would keep.
*Backlog*: 100,000 events accepted while no listener runs; counted from the start of three listeners.
*Start*: each process alone, from its start until it is of use, one after the other.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from app.embedded.ports import free_port
from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target, medians, with_spread
from bench.producers import over_http
from bench.rig import Aside, BenchError, Rig, started, warm

_HELD = 50
_LOOK_EVERY_S = 0.01
KINDS = {"bench.stuck": "SIGKILL of the winner → its events processed", "bench.stuck.open": "the same in its open transaction"}


def run(options: Options) -> Result:
    """Everything in turn, as often as asked."""
    backlog = options.pick(quick=10_000, default=100_000)
    runs: list[list[Row]] = []
    limit_s = 0.0
    for number in range(1, options.repeat(2) + 1):
        found: list[Row] = []
        with started(options.say, system=False) as rig:
            found += _starts(rig)
        with started(options.say, listeners=0) as rig, Aside() as aside:
            found.insert(0, _backlog(rig, aside, backlog))
        with TemporaryDirectory(prefix="dedup-bench-stuck-") as folder:
            stuck = Path(folder) / "stuck"
            with started(options.say, handlers=("bench.handlers",), env={"DEDUP_BENCH_STUCK": str(stuck)}) as rig, Aside() as aside:
                limit_s = (rig.settings.lease_ms + rig.settings.grace_ms) / 1000 + 1
                found = [*_takeovers(rig, aside, stuck), *found]
        for row in found:
            options.say(f"run {number}: {row['what']}: {row['seconds']:.1f} s")
        runs.append(found)
    rows = with_spread(medians(runs, by=("what",)), runs, by=("what",), of="seconds")
    worst = max(row["seconds"] for rows_of_run in runs for row in rows_of_run if row["what"] in KINDS.values())
    return Result(
        name="recovery",
        title="Recovery: takeover, backlog, start",
        about=(
            f"Takeover: a batch of {_HELD} events, from SIGKILL of all processes of the listener that has it until the last is in the ledger; a lease is 10 s. "
            "Backlog: accepted while no listener ran, from the start of three. Start: each process alone, until it is of use."
        ),
        columns={"what": "", "seconds": "seconds", "spread": "over the runs"},
        rows=rows,
        targets=[
            Target(text=f"takeover within lease + grace + 1 s ({limit_s:g} s), in every run", found=f"{worst:.1f} s", met=worst <= limit_s)
        ],
        charts=[Chart(kind="bars", x="what", y=("seconds",), label="seconds", line=limit_s, line_label="target of takeovers")],
        runs=runs,
    )


def _takeovers(rig: Rig, aside: Aside, stuck: Path) -> Iterator[Row]:
    warm(rig, aside, Load(events=1_000, name="warm", type=SYNTHETIC))
    for kind, what in KINDS.items():
        stuck.unlink(missing_ok=True)
        aside.run(over_http, rig.url, Load(events=_HELD, name=kind, type=kind, per_request=_HELD)).result()
        winner = rig.processes[_entered(stuck)]
        winner.kill()
        killed_at = time.monotonic()
        rig.expect(_HELD)
        seconds = rig.await_count(partial(rig.db["events"].count_documents, {"type": kind}), _HELD) - killed_at
        rig.audit()
        rig.start_listener(winner.name)
        yield {"what": what, "seconds": seconds}


def _entered(stuck: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if stuck.exists() and (name := stuck.read_text()):
            return name
        time.sleep(_LOOK_EVERY_S)
    raise BenchError("no listener has begun with the batch within 20 s")


def _backlog(rig: Rig, aside: Aside, count: int) -> Row:
    aside.run(over_http, rig.url, Load(events=count, type=SYNTHETIC)).result()
    began = time.monotonic()
    for number in (1, 2, 3):
        rig.start_listener(f"listener-{number}", wait=False)
    done_at = rig.await_processed(rig.expect(count))
    rig.audit()
    return {"what": f"backlog of {count:,} → processed", "seconds": done_at - began}


def _starts(rig: Rig) -> Iterator[Row]:
    rig.start_broadcaster()
    rig.start_bridge()
    rig.start_listener("listener-1")
    port = free_port()
    flower = rig.spawn("flower", [rig.program("celery"), "-A", "app", "flower", "--address=127.0.0.1", f"--port={port}"])
    rig.await_ready(flower, lambda: _answers(f"http://127.0.0.1:{port}/healthcheck"))
    for name, seconds in rig.started_in.items():
        yield {"what": f"start: {'listener' if name == 'listener-1' else name}", "seconds": seconds}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.TransportError:
        return False
