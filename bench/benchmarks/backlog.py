"""How often is an event delivered to a listener while a backlog of slow events is worked off?

While listeners are slow, batches wait in their queues for long. The sweeper must tell "waits its turn" from "in no hands": each mistake is a delivery that is
skipped. 400 batches are accepted at once; a handler takes 2 ms; the listeners count what they receive. Once with the default high-water mark of their queues, once with one
that lets everything be fanned out.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from app.naming import RECOVERY_QUEUE, queue_of
from bench.load import Load
from bench.measures import Chart, Options, Result, Row, Target, medians
from bench.producers import over_http
from bench.rig import Aside, Rig, started

MOST = 1.1
HANDLER_MS = 2
HIGH_WATERS = (200, 1_000)
_BATCHES = 400
_QUEUES_EVERY_S = 0.25


def run(options: Options) -> Result:
    """Both high-water marks in turn, as often as asked."""
    count = options.pick(quick=2_000, default=20_000, full=200_000)
    runs: list[list[Row]] = []
    for number in range(1, options.repeat(1) + 1):
        runs.append(rows := [_row(options, count, mark) for mark in HIGH_WATERS])
        options.say(f"run {number}: " + ", ".join(f"mark {row['mark']:,}: {row['deliveries']:.2f} deliveries" for row in rows))
    found = medians(runs, by=("mark",))
    worst = max(row["deliveries"] for row in found)
    return Result(
        name="backlog",
        title="Deliveries in a backlog",
        about=(
            f"{count:,} events in {_BATCHES} batches, three listeners, a handler of {HANDLER_MS} ms. Below 1, some batches did not go to every listener: with the default mark "
            "queues fill, the rest waits in the inbox, and the sweeper hands it out as single copies when there is room."
        ),
        columns={
            "mark": "high-water mark",
            "deliveries": "deliveries per key and listener",
            "by_recovery": "of these by recovery, %",
            "deepest": "deepest queue",
            "inbox": "most batches in the inbox",
            "accepted_s": "accepted in, s",
            "processed_s": "processed in, s",
        },
        rows=found,
        targets=[Target(text=f"at most {MOST} deliveries per key and listener", found=f"{worst:.2f}", met=worst <= MOST)],
        charts=[Chart(kind="bars", x="mark", y=("deliveries",), label="deliveries per key and listener", line=MOST)],
        runs=runs,
    )


def _row(options: Options, count: int, mark: int) -> Row:
    kind = f"bench.plain.{HANDLER_MS}"
    with Received() as received, Aside() as aside:
        env = {"DEDUP_BENCH_RECEIVED": str(received.folder)}
        with started(options.say, handlers=("bench.handlers",), env=env, queue_high_water=mark) as rig:
            queues = Queues(rig)
            sending = aside.run(over_http, rig.url, Load(events=count, type=kind, per_request=max(1, count // _BATCHES)))
            rig.await_processed(rig.expect(count), sending, look=queues.look, every_s=0.05)
            done_at = rig.await_committed(rig.expect(0))
            rig.audit()
        sent = sending.result()
        delivered, recovered = received.keys()
    return {
        "mark": mark,
        "deliveries": delivered / count / len(rig.listeners),
        "by_recovery": 100 * recovered / delivered,
        "deepest": queues.deepest,
        "inbox": queues.inbox,
        "accepted_s": sent.ended - sent.began,
        "processed_s": done_at - sent.began,
    }


class Received:
    """A folder in which listeners count what they receive. Also a context manager that removes it."""

    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="dedup-bench-received-")
        self.folder = Path(self._temporary.name)

    def keys(self) -> tuple[int, int]:
        """Keys that were delivered, and those of them that the recovery queue brought."""
        lines = [line.split() for file in self.folder.glob("*.txt") for line in file.read_text().splitlines()]
        return sum(int(keys) for keys, _ in lines), sum(int(keys) for keys, seq in lines if seq == "0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()


class Queues:
    """The deepest queue and the fullest inbox seen."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._broker = rig.valkey(1)
        self._names = [*map(queue_of, rig.listeners), RECOVERY_QUEUE]
        self._at = 0.0
        self.deepest = self.inbox = 0

    def look(self, _processed: int) -> None:
        """Called often."""
        if time.monotonic() - self._at >= _QUEUES_EVERY_S:
            self._at = time.monotonic()
            self.deepest = max(self.deepest, *(int(self._broker.llen(name)) for name in self._names))
            self.inbox = max(self.inbox, self._rig.in_inbox())
