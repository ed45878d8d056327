"""Memory: of each process while 1,000,000 events pass, of Redis per finished key, and of the inbox.

RSS as the system says it, at every twentieth of the way; a forked child's includes pages that it shares with its parent. Redis: what ``used_memory`` grew by from
a twentieth of the way to the end, after the inbox is empty, over the keys that were added; so tables that grow by doubling are in it as they fall.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from bench.load import SYNTHETIC, Load
from bench.measures import Chart, Options, Result, Row, Target
from bench.producers import over_http
from bench.rig import Aside, Rig, started

MIB = 1024 * 1024
MOST_PER_KEY = 150
MOST_MIB = 150.0
MOST_GROWTH = 5.0
SERVERS = ("valkey", "mongod")
_SAMPLES = 20
_INBOX_EVERY_S = 0.1


def run(options: Options) -> Result:
    """One pass on one system."""
    count = options.pick(quick=20_000, default=1_000_000)
    with started(options.say) as rig, Aside() as aside:
        return _measured(options, rig, aside, count)


def _measured(options: Options, rig: Rig, aside: Aside, count: int) -> Result:
    first = count // 10 if options.mode != "quick" else count // 2
    watch = Watch(rig, step=count // _SAMPLES)
    valkey = rig.valkey()
    keys_before = bytes_before = 0
    for at, part in ((0, first), (first, count - first)):
        sending = aside.run(over_http, rig.url, Load(events=part, start=at, name=f"run-{at}", type=SYNTHETIC))
        rig.await_processed(rig.expect(part), sending, look=watch.look, every_s=0.05)
        rig.await_empty_inbox()
        watch.sample(at + part)
        options.say(f"{at + part:,} events; most batches in the inbox {watch.inbox_most:,}")
        if not at:
            keys_before, bytes_before = valkey.dbsize(), valkey.info("memory")["used_memory"]
    rig.audit()
    per_key = (valkey.info("memory")["used_memory"] - bytes_before) / max(1, valkey.dbsize() - keys_before)
    rows = list(_rows(watch, first, count))
    ours = [row for row in rows if row["process"].startswith("listener")]
    drawn = [sample for sample in watch.samples if sample["process"] not in SERVERS]
    growth, most = max(row["growth"] for row in ours), max(row["most"] for row in rows if row["process"] not in SERVERS)
    return Result(
        name="memory",
        title=f"Memory over {count:,} events",
        about=(
            f"Three listeners, no handler. RSS at {first:,} and at {count:,} events with nothing left to do, and the most while running; a child shares pages with its parent. "
            f"Redis held {per_key:.0f} bytes per finished key. The inbox held {watch.inbox_mean:,.0f} batches on average and {watch.inbox_most:,} at most."
        ),
        columns={
            "process": "process",
            "early": f"MiB at {first:,}",
            "late": f"MiB at {count:,}",
            "growth": "growth, %",
            "most": "most, MiB",
        },
        rows=rows,
        targets=[
            Target(text=f"Redis per finished key at most {MOST_PER_KEY} bytes", found=f"{per_key:.0f} bytes", met=per_key <= MOST_PER_KEY),
            Target(text=f"a listener's RSS grows by at most {MOST_GROWTH:g} %", found=f"{growth:.1f} %", met=growth <= MOST_GROWTH),
            Target(text=f"at most {MOST_MIB:g} MiB in each process of ours", found=f"{most:.0f} MiB", met=most <= MOST_MIB),
        ],
        charts=[Chart(kind="lines", x="events", y=("mib",), series="process", label="RSS, MiB", rows=drawn)],
        parameters={
            "redis_bytes_per_key": per_key,
            "inbox_batches_mean": watch.inbox_mean,
            "inbox_batches_most": watch.inbox_most,
            "events": count,
        },
    )


def _rows(watch: "Watch", early: int, late: int) -> Iterator[Row]:
    for process in dict.fromkeys(sample["process"] for sample in watch.samples):
        mib = [(sample["events"], sample["mib"]) for sample in watch.samples if sample["process"] == process]
        at = {events: found for events, found in mib if events in (early, late)}
        growth = 100 * (at[late] / at[early] - 1)
        yield {"process": process, "early": at[early], "late": at[late], "growth": growth, "most": max(found for _, found in mib)}


@dataclass
class Watch:
    """Takes samples while events pass."""

    rig: Rig
    step: int
    samples: list[Row] = field(default_factory=list)
    inbox_most: int = 0
    _inbox_sum: int = 0
    _inbox_looks: int = 0
    _next: int = 0
    _inbox_at: float = 0.0

    @property
    def inbox_mean(self) -> float:
        """Batches in the inbox, averaged over the looks."""
        return self._inbox_sum / max(1, self._inbox_looks)

    def look(self, processed: int) -> None:
        """Called often, with the number of processed events."""
        if time.monotonic() - self._inbox_at >= _INBOX_EVERY_S:
            self._inbox_at = time.monotonic()
            waiting = self.rig.in_inbox()
            self.inbox_most = max(self.inbox_most, waiting)
            self._inbox_sum += waiting
            self._inbox_looks += 1
        if processed >= self._next:
            self._next = processed + self.step
            self.sample(processed)

    def sample(self, processed: int) -> None:
        """Note the RSS of every process."""
        for name, process in _processes(self.rig):
            self.samples.append({"events": processed, "process": name, "mib": process.memory_info().rss / MIB})


def _processes(rig: Rig) -> Iterator[tuple[str, Any]]:
    for name, managed in rig.processes.items():
        process = psutil.Process(managed.pid)
        yield name, process
        for number, child in enumerate(sorted(process.children(recursive=True), key=lambda child: child.pid), 1):
            yield f"{name}, child {number}", child
    yield "valkey", psutil.Process(rig.servers.valkey.child().pid)
    yield "mongod", psutil.Process(rig.servers.mongo.nodes[0].child().pid)
