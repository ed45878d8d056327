"""How often is an event delivered to a listener while a backlog of slow events is worked off?

Starts servers, a broadcaster, a bridge and listeners of its own in a temporary folder, accepts events faster than the listeners can
handle them, waits until all are processed, and counts what the listeners received. The figure to hold: at most 1.1 deliveries per key
and listener, so that the sweeper does not send again what only waits its turn.

    python bench/backlog.py [--events 200000] [--listeners 3] [--handler-ms 2] [--high-water 200] [--json]

It touches no server that it did not start. Exit code 0 when all is processed once and the figure holds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from app.audit import audit
from app.claims import store as claims
from app.embedded.ports import free_port
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.naming import RECOVERY_QUEUE, queue_of
from app.settings import Settings, load_settings
from app.stack import environment_of, placeholder_urls
from app.stores import mongo

ROOT = Path(__file__).resolve().parents[1]
MOST = 1.1
PER_REQUEST = 500


def main() -> int:
    """Measure, print, and say by the exit code whether the figure holds."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="dedup-backlog-") as folder, ExitStack() as stack:
        figures = _measured(options, Path(folder), stack)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<34} {value if isinstance(value, bool) else f'{value:,}'}")
    return 0 if figures["ok"] and figures["deliveries_per_key_and_listener"] <= MOST else 1


def _measured(options: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, Any]:
    servers = stack.enter_context(EmbeddedServers(folder / "servers", databases=4))
    settings = load_settings(
        {},
        folder=folder,
        **placeholder_urls()
        | {"redis_url": servers.valkey.url(0), "broker_url": servers.valkey.url(1), "mongo_url": servers.mongo.url("backlog")},
        port=free_port(),
        handlers=("bench.slow_handler",),
        queue_high_water=options.high_water,
    )
    received = folder / "received"
    received.mkdir()
    names = [f"listener-{number}" for number in range(1, options.listeners + 1)]
    _start(settings, folder, received, names, options.handler_ms, stack)

    began = time.monotonic()
    _feed(settings, options.events)
    accepted_s = time.monotonic() - began
    deepest, inbox_most = _wait(settings, names, deadline=began + options.limit_s)
    seconds = time.monotonic() - began

    db = mongo.connect(settings, role="bench")
    stack.callback(db.client.close)
    found = audit(db)
    lines = [line.split() for file in received.glob("*.txt") for line in file.read_text().splitlines()]
    delivered = sum(int(keys) for keys, _ in lines)
    return {
        "events": options.events,
        "listeners": options.listeners,
        "handler_ms": options.handler_ms,
        "high_water": options.high_water,
        "accepted_in_s": round(accepted_s, 1),
        "processed_in_s": round(seconds, 1),
        "events_per_s": round(options.events / seconds),
        "deliveries_per_key_and_listener": round(delivered / options.events / options.listeners, 4),
        "of_these_by_recovery": round(sum(int(keys) for keys, seq in lines if seq == "0") / max(1, delivered), 4),
        "deepest_queue": deepest,
        "most_batches_in_inbox": inbox_most,
        "processed": found.processed,
        "ok": found.ok and found.processed == options.events and found.failures == 0,
    }


def _start(settings: Settings, folder: Path, received: Path, names: list[str], handler_ms: float, stack: ExitStack) -> None:
    env = environment_of(replace(settings, broadcaster_url=f"http://127.0.0.1:{settings.port}"))
    env |= {"PYTHONPATH": str(ROOT), "DEDUP_BENCH_HANDLER_MS": str(handler_ms), "DEDUP_BENCH_RECEIVED": str(received)}
    celery = str(Path(sys.executable).with_name("celery"))
    commands = {"broadcaster": [sys.executable, "-m", "broadcaster"], "bridge": [sys.executable, "-m", "broadcaster.bridge"]}
    commands |= {name: [celery, "-A", "app", "worker", "-n", f"{name}@%h", "--without-mingle", "--without-gossip"] for name in names}
    for name, argv in commands.items():
        process = ManagedProcess(name, argv, log=folder / f"{name}.log", env=env, cwd=folder).start()
        stack.callback(process.kill)
    deadline = time.monotonic() + 60
    while len(_stats(settings).get("listeners", ())) < len(names):
        if time.monotonic() > deadline:
            raise SystemExit("the listeners did not start: " + (folder / f"{names[0]}.log").read_text()[-1000:])
        time.sleep(0.2)


def _feed(settings: Settings, number: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=60) as http:
        for body in _requests(number):
            while http.post("/events", content=body, headers={"Content-Type": "application/json"}).status_code == 503:
                time.sleep(0.5)


def _requests(number: int) -> Iterator[bytes]:
    for start in range(0, number, PER_REQUEST):
        numbers = range(start, min(start + PER_REQUEST, number))
        yield json.dumps([{"type": "bench.slow", "source": "bench", "id": str(n), "data": {"n": n}} for n in numbers]).encode()


def _wait(settings: Settings, names: list[str], *, deadline: float) -> tuple[int, int]:
    """Until the inbox is empty; the deepest queue and the fullest inbox seen, in batches."""
    db = mongo.connect(settings, role="bench")
    broker = claims.connect(replace(settings, redis_url=settings.broker_url))
    deepest = most = 0
    try:
        while waiting := db["inbox"].estimated_document_count():
            most = max(most, waiting)
            deepest = max(deepest, *(int(broker.llen(queue)) for queue in [*map(queue_of, names), RECOVERY_QUEUE]))
            if time.monotonic() > deadline:
                raise SystemExit(f"{waiting} batches are left when the time is over")
            time.sleep(0.5)
    finally:
        broker.close()
        db.client.close()
    return deepest, most


def _stats(settings: Settings) -> dict[str, Any]:
    try:
        found: dict[str, Any] = httpx.get(f"http://127.0.0.1:{settings.port}/stats", timeout=5).json()
    except (httpx.TransportError, ValueError):
        return {}
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Deliveries per key and listener in a backlog of slow events.")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--listeners", type=int, default=3)
    parser.add_argument("--handler-ms", type=float, default=2.0)
    parser.add_argument(
        "--high-water", type=int, default=200, help="DEDUP_QUEUE_HIGH_WATER; above the number of batches, all are fanned out"
    )
    parser.add_argument("--limit-s", type=float, default=1_500.0, help="give up after so many seconds")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    sys.exit(main())
