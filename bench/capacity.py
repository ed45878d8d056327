"""How many bytes does an event take, in each store and at each moment of its way?

Starts a system of its own in a temporary folder and feeds it real flights. Listeners are stopped (SIGSTOP) while the inbox and the queues are measured, then
go on; the ledger and the claims are measured when all is processed.

    python -m bench.capacity [--events 20000] [--json]

It touches no server that it did not start. Bytes of MongoDB on disk are after its compression, indexes included where they say so.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx

from app.naming import queue_of
from app.samples import flights
from bench.rig import ROOT, Rig

PER_REQUEST = 500


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Bytes per event in each store.")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Rig(listeners=3, policies=ROOT / "policies.toml") as rig:
        figures = _measured(rig, options.events)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<46} {value:,}")
    return 0


def _measured(rig: Rig, number: int) -> dict[str, Any]:
    bodies = [json.dumps(part, separators=(",", ":")).encode() for part in _parts(number)]
    memory = rig.valkey(0)
    before = memory.info("memory")["used_memory"]
    for name in rig.listeners:
        rig.processes[name].pause()

    began = time.monotonic()
    with httpx.Client(base_url=rig.url, timeout=60) as http:
        for body in bodies:
            http.post("/events", content=body, headers={"Content-Type": "application/json"}).raise_for_status()
    accepted_s = time.monotonic() - began
    inbox = _stored(rig, "inbox")
    queue = queue_of(rig.listeners[0])
    broker = rig.valkey(1)
    deliveries = int(broker.llen(queue))
    in_queue = int(broker.memory_usage(queue, samples=0) or 0)

    began = time.monotonic()
    for name in rig.listeners:
        rig.processes[name].resume()
    rig.await_empty_inbox()
    processed_s = time.monotonic() - began
    ledger = _stored(rig, "events")
    claims = memory.info("memory")["used_memory"] - before

    def each(size: float) -> float:
        return round(size / number, 1)

    return {
        "events": number,
        "JSON at the door, bytes an event": each(sum(map(len, bodies))),
        "inbox, BSON, bytes an event": each(inbox["size"]),
        "inbox on disk, bytes an event": each(inbox["storageSize"] + inbox["totalIndexSize"]),
        "a queue, bytes an event": round(in_queue / max(1, deliveries * PER_REQUEST), 1),
        "ledger, BSON, bytes an event": each(ledger["size"]),
        "ledger on disk, bytes an event": each(ledger["storageSize"]),
        "ledger's indexes on disk, bytes an event": each(ledger["totalIndexSize"]),
        "claims in Redis, bytes an event": each(claims),
        "accepted, events/s": round(number / accepted_s),
        "processed, events/s": round(number / processed_s),
    }


def _parts(number: int) -> Iterator[list[dict[str, Any]]]:
    found = flights(number)
    while part := list(islice(found, PER_REQUEST)):
        yield part


def _stored(rig: Rig, collection: str) -> dict[str, float]:
    """The collection's statistics, with all that is written on disk."""
    rig.db.client.admin.command("fsync")
    found: dict[str, float] = rig.db.command("collStats", collection)
    return found


if __name__ == "__main__":
    sys.exit(main())
