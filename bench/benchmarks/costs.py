"""Where the time of an event goes: CPU by process in the running system, and by step, one after the other.

The first table is read from the kernel's accounts of each process (user and system time, 10 ms apart) before and after many events through
HTTP: departures as they are, and events of 8 KiB. The second runs the same code in one process, a step for all batches before the next one begins, so that the servers' accounts can be
told apart by step. CPU time, unlike throughput, depends little on what else the machine does.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from app.events.parsing import EventParser
from app.events.policies import Policies
from app.messages import Delivery, announcement, delivery, read_delivery
from app.stores.inbox import Inbox
from app.stores.records import inbox_document, new_batch_id, utc_now
from app.stores.submission import Submission, prepare
from bench.load import FLIGHT, SYNTHETIC, Load, bodies
from bench.measures import Chart, Options, Result, Row, medians
from bench.producers import over_http
from bench.rig import Aside, Rig, started
from workers.checking import check, fetch
from workers.claiming import claim
from workers.handlers import Registry
from workers.pipeline import process
from workers.run import Run
from workers.runtime import Runtime
from workers.sessions import sessions_of
from workers.storing import store

WARM_UP = 5_000
PER_BATCH = 500
KIB = 1024
LARGE_KIB = 8
SIZES = {0: 100_000, LARGE_KIB: 20_000}
"""KiB of an event as JSON (0: a departure as it is), and how many events go through the system by default."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def run(options: Options) -> Result:
    """Both tables; of several runs the medians."""
    system: list[list[Row]] = []
    steps: list[list[Row]] = []
    for number in range(1, options.repeat(3) + 1):
        system.append([])
        steps.append([])
        for kib, usual in SIZES.items():
            count = options.pick(quick=usual // 10, default=usual)
            options.say(f"run {number}: {count:,} events of {_size(kib)} through the system")
            system[-1] += [row | {"size": _size(kib)} for row in _by_process(options, count, kib)]
            options.say(f"run {number}: step by step")
            number_of_batches = options.pick(quick=10, default=20 if kib else 60)
            steps[-1] += [row | {"size": _size(kib)} for row in _by_step(options, number_of_batches, kib)]
    rows = medians(system, by=("size", "what")) + medians(steps, by=("size", "what"))
    rows.sort(key=lambda row: row["size"] != _size(0))
    return Result(
        name="costs",
        title="Where the time of an event goes",
        about=(
            "Microseconds of CPU per event, for departures as they are (0.45 KiB) and for events of 8 KiB. First what each process of the running "
            "system used for many events through HTTP, both servers and three listeners included; then the steps alone, in one process, with what "
            "they cost in the servers."
        ),
        columns={
            "size": "size",
            "what": "",
            "python_us": "Python, µs",
            "mongod_us": "mongod, µs",
            "valkey_us": "Valkey, µs",
            "cpu_us": "together, µs",
        },
        rows=rows,
        charts=[
            Chart(
                kind="bars",
                x="what",
                y=("cpu_us",),
                label="µs of CPU per event of 0.45 KiB",
                rows=[row for row in rows if row["size"] == _size(0)],
            )
        ],
        runs=[*system, *steps],
        parameters={"per_batch": PER_BATCH},
    )


# ------------------------------------------------------------------------------------------------------------ by process


def _size(kib: int) -> str:
    return f"{kib} KiB" if kib else "0.45 KiB"


def _load(events: int, kib: int, name: str = "run") -> Load:
    return Load(events=events, name=name, type=SYNTHETIC if kib else FLIGHT, payload_bytes=kib * KIB)


def _by_process(options: Options, count: int, kib: int) -> list[Row]:
    with started(options.say) as rig, Aside() as aside:
        aside.run(over_http, rig.url, Load(events=WARM_UP, name="warm", type=SYNTHETIC)).result()
        rig.await_processed(rig.expect(WARM_UP))
        rig.await_empty_inbox()
        before = _accounts(rig)
        sending = aside.run(over_http, rig.url, _load(count, kib))
        rig.await_processed(rig.expect(count), sending)
        rig.await_empty_inbox()
        after = _accounts(rig)
        rig.audit()
    used = {name: (after[name] - before[name]) / count * 1e6 for name in after}
    rows = [{"what": f"process: {name}", "cpu_us": used[name]} for name in sorted(used, key=lambda name: -used[name])]
    return [*rows, {"what": "all processes", "cpu_us": sum(used.values())}]


def _accounts(rig: Rig) -> dict[str, float]:
    """CPU seconds by process, children included."""
    pids = {name: process.pid for name, process in rig.processes.items()} | _servers(rig)
    return {name: sum(map(cpu_of, _family(pid))) for name, pid in pids.items()}


def _servers(rig: Rig) -> dict[str, int]:
    return {"valkey": rig.servers.valkey.child().pid, "mongod": rig.servers.mongo.nodes[0].child().pid}


def cpu_of(pid: int) -> float:
    """User and system time that a living process has used, in seconds; proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _family(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in _family(child))]


# --------------------------------------------------------------------------------------------------------------- by step


@dataclass(slots=True)
class _Batch:
    """A batch on its way: what each step leaves for the next."""

    body: bytes
    submission: Submission | None = None
    id: str = ""
    message: dict[str, Any] | None = None
    run: Run | None = None
    won: Any = None
    works: Any = None

    @property
    def delivery(self) -> Delivery:
        """As a listener reads it."""
        return read_delivery(self.message)


def _by_step(options: Options, number: int, kib: int) -> list[Row]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # as listeners log: app/telemetry.py
    batches = [_Batch(body) for body in bodies(_load(number * PER_BATCH, kib))]
    with started(options.say, system=False) as rig:
        winner = Runtime.build(rig.settings, "listener-1", handlers=Registry())
        loser = Runtime.build(rig.settings, "listener-2", handlers=Registry())
        try:
            return [_timed(rig, what, batches, step) for what, step in _steps(rig, winner, loser)]
        finally:
            winner.close()
            loser.close()


def _timed(rig: Rig, what: str, batches: Sequence[_Batch], step: Callable[[_Batch], None]) -> Row:
    pids = _servers(rig)
    before = {name: cpu_of(pid) for name, pid in pids.items()}
    python = time.process_time()
    for batch in batches:
        step(batch)
    events = len(batches) * PER_BATCH
    python_us = (time.process_time() - python) / events * 1e6
    used = {name: (cpu_of(pid) - before[name]) / events * 1e6 for name, pid in pids.items()}
    row: Row = {"what": f"step: {what}", "python_us": python_us, "mongod_us": used["mongod"], "valkey_us": used["valkey"]}
    return row | {"cpu_us": python_us + used["mongod"] + used["valkey"]}


def _steps(rig: Rig, winner: Runtime, loser: Runtime) -> list[tuple[str, Callable[[_Batch], None]]]:
    parser = EventParser(Policies.load(None, rig.settings), rig.settings)
    inbox = Inbox(rig.db)

    def read(batch: _Batch) -> None:
        batch.submission = prepare(parser.request(batch.body))

    def accept(batch: _Batch) -> None:
        assert batch.submission is not None
        entries, now = batch.submission.entries, utc_now()
        batch.id = new_batch_id()
        inbox.write([inbox_document(batch.id, entries, door="bench", accepted_at=now)])
        announced = announcement(batch.id, [(e.key, e.digest, e.type) for e in entries], now)
        batch.message = delivery([announced], deployment="bench", seq=1, forwards=1)

    def win(batch: _Batch) -> None:
        batch.run = Run(winner, batch.delivery, winner.claims_of("bench"))
        events = batch.run.delivery.events
        with sessions_of(winner, events) as sessions:
            batch.won, _ = claim(batch.run, events, sessions, lease_ms=60_000)

    def look(batch: _Batch) -> None:
        assert batch.run is not None
        entries = fetch(batch.run, [event for event, _ in batch.won])
        assert entries is not None
        batch.works = [(entries[key, digest], answer) for (key, digest, _), answer in batch.won]

    def examine(batch: _Batch) -> None:
        assert batch.run is not None
        batch.works = check(batch.run, batch.works)

    def commit(batch: _Batch) -> None:
        assert batch.run is not None
        store(batch.run, batch.works)

    def remove(batch: _Batch) -> None:
        inbox.remove([batch.id])

    def lose(batch: _Batch) -> None:
        process(loser, batch.delivery)

    return [
        ("door: read a request, make keys and digests", read),
        ("door: write the inbox", accept),
        ("winner: claim", win),
        ("winner: fetch", look),
        ("winner: check failures and ledger", examine),
        ("winner: commit, and mark done", commit),
        ("winner: remove the batch", remove),
        ("each loser: all", lose),
    ]
