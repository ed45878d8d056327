"""The whole system as real processes, for tests that kill, pause and cut: what producers were told is kept, and audited."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient
from redis import Redis

from app.claims.store import ClaimStore
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.redis_client import connect
from app.settings import Settings, database_of
from app.stores.meta import deployment_id
from tests.support.broadcasters import ready_url
from tests.support.waiting import eventually

QUICK: dict[str, Any] = {
    "lease_ms": 2_000,
    "grace_ms": 500,
    "sweep_ms": 200,
    "heartbeat_ms": 300,
    "listener_grace_s": 3,
    "max_handler_s": 4.0,
    "backoff_ms": 50,
    "backoff_max_ms": 500,
    "max_attempts": 3,
    "handlers": ("tests.support.fault_handlers",),
}
"""Settings that make takeovers quick enough for tests."""

ROOT = Path(__file__).resolve().parents[2]
Spawn = Callable[..., ManagedProcess]


@dataclass
class System:
    """Broadcaster, bridge and listeners on given servers.

    Attributes:
        told: keys that a door answered 202 for, with their data.
        servers: the servers, where the test may do with them what it likes.
    """

    settings: Settings
    spawn: Spawn
    folder: Path
    url: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    processes: dict[str, ManagedProcess] = field(default_factory=dict)
    servers: EmbeddedServers | None = None

    def __post_init__(self) -> None:
        self.client: MongoClient[dict[str, Any]] = MongoClient(self.settings.mongo_url, serverSelectionTimeoutMS=20_000, tz_aware=True)
        self.db = self.client[database_of(self.settings.mongo_url)]
        self.redis = Redis.from_url(self.settings.redis_url, decode_responses=True)
        (self.folder / "gates").mkdir(exist_ok=True)

    def with_settings(self, **overrides: Any) -> "System":
        """This system, not yet started, with other settings."""
        self.settings = replace(self.settings, **overrides)
        return self

    def close(self) -> None:
        """Close this object's clients; the processes are ended by ``spawn``."""
        self.client.close()
        self.redis.close()

    # ------------------------------------------------------------------------------------------------------- processes

    def up(self, listeners: int = 3) -> "System":
        """Start everything and wait until the listeners are known."""
        self.start_broadcaster()
        self.start_bridge()
        for number in range(1, listeners + 1):
            self.start_listener(f"listener-{number}")
        self.await_listeners(listeners)
        return self

    def start_broadcaster(self, name: str = "broadcaster", *, env: Mapping[str, str] | None = None) -> ManagedProcess:
        """Start a broadcaster; its URL becomes the one that events are sent to."""
        process = self.start_process(name, ["python", "-m", "broadcaster"], env)
        self.url = eventually(lambda: ready_url(process), 20, process.log_tail)
        return process

    def start_bridge(self, name: str = "bridge", *, env: Mapping[str, str] | None = None) -> ManagedProcess:
        """Start a bridge."""
        return self.start_process(name, ["python", "-m", "broadcaster.bridge"], env)

    def start_listener(self, name: str, *options: str, node: str = "%h", env: Mapping[str, str] | None = None) -> ManagedProcess:
        """Start a listener as a user does; ``options`` are Celery's."""
        argv = ["celery", "-A", "app", "worker", "-n", f"{name}@{node}", "--without-mingle", "--without-gossip", *options]
        return self.start_process(f"{name}-{node.strip('%')}", argv, env)

    def start_process(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> ManagedProcess:
        """Start any of this project's processes, with this system's settings."""
        ours = {"PYTHONPATH": str(ROOT), "DEDUP_TEST_GATES": str(self.folder / "gates")}
        process = self.spawn(name, argv, settings=self.settings, env=ours | dict(env or {}))
        self.processes[name] = process
        return process

    def listener(self, name: str) -> ManagedProcess:
        """The process of a listener."""
        return self.processes[f"{name}-h"]

    def restart_listener(self, name: str) -> ManagedProcess:
        """Start a listener again that was killed."""
        (self.folder / f"{name}-h.log").rename(self.folder / f"{name}-h-{os.urandom(3).hex()}.log")
        return self.start_listener(name)

    def await_listeners(self, number: int) -> None:
        """Wait until at least so many listeners are alive."""
        eventually(lambda: len(self.stats()["listeners"]) >= number, 30, lambda: f"{number} listeners: {self.stats()}")

    def await_fan_out(self, *names: str) -> None:
        """Wait until the bridge knows these listeners, too, and sends them copies of what is accepted."""

        def reached() -> bool:
            self.accept(events(1))
            logs = {name: "".join(log.read_text() for log in self.folder.glob(f"{name}-*.log")) for name in names}
            return all(f"/{name}] received" in log for name, log in logs.items())

        eventually(reached, 20, "copies for each listener", every_s=0.2)
        self.await_finished()

    # ---------------------------------------------------------------------------------------------------------- events

    def accept(self, events: Iterable[dict[str, Any]], *, per_request: int = 250) -> list[str]:
        """Send events; the keys that the door answered with."""
        waiting = list(events)
        keys: list[str] = []
        with httpx.Client(timeout=20) as http:
            for at in range(0, len(waiting), per_request):
                part = waiting[at : at + per_request]
                keys += self._send(http, part)
        return keys

    def _send(self, http: httpx.Client, part: list[dict[str, Any]]) -> list[str]:
        def answered() -> httpx.Response | None:
            try:
                response = http.post(f"{self.url}/events", json=part)
            except httpx.TransportError:
                return None
            return None if response.status_code == 503 else response

        response = eventually(answered, 60, "an answer of the door")
        assert response.status_code == 202, response.text
        keys: list[str] = response.json()["keys"]
        self.told.update(zip(keys, part, strict=True))
        return keys

    def stats(self) -> dict[str, Any]:
        """What the broadcaster says."""
        found: dict[str, Any] = httpx.get(f"{self.url}/stats", timeout=10).raise_for_status().json()
        return found

    # ------------------------------------------------------------------------------------------------------ amid the work

    def in_hand(self, listener: str | None = None) -> list[str]:
        """Accepted events that this listener, or any, has claimed and not ended."""
        keys = list(self.told)
        with connect(self.settings) as client:
            found = ClaimStore.of(self.settings, client, self._deployment).inspect(keys)
        claims = [(key, claim) for key, claim in zip(keys, found, strict=True) if claim is not None and claim.state == "processing"]
        return [key for key, claim in claims if listener in (None, claim.owner)]

    @cached_property
    def _deployment(self) -> str:
        return deployment_id(self.db)

    def unfinished(self) -> int:
        """How many accepted events are not in the ledger."""
        return len(self.told) - self.db.events.count_documents({"_id": {"$in": list(self.told)}})

    def await_amid(self, listener: str | None = None) -> None:
        """Wait for the moment to strike: this listener, or any, has events in hand, and some slow ones are committed, not all.

        Slow events must have been accepted; what was in hand then is so for as long as they take.
        """

        def amid() -> bool:
            committed = self.db.events.count_documents({"type": "fault.slow"})
            return committed > 0 and self.unfinished() > 0 and bool(self.in_hand(listener))

        eventually(amid, 20, lambda: f"work of {listener or 'any listener'}: {self.unfinished()} unfinished, in hand {self.in_hand()}")

    # ----------------------------------------------------------------------------------------------------------- audit

    def await_finished(self, timeout_s: float = 40.0) -> None:
        """Wait until the inbox is empty and no failure is to be tried again."""

        def finished() -> bool:
            return self.db.inbox.count_documents({}) == 0 and self.db.failures.count_documents({"state": "retrying"}) == 0

        eventually(finished, timeout_s, self.state, every_s=0.1)

    def state(self) -> str:
        """The inbox and the failures, in short."""
        inbox = list(self.db.inbox.find({}, {"events": 0}).limit(3))
        failures = list(self.db.failures.find({}, {"body": 0, "error": 0}).limit(3))
        return f"inbox {self.db.inbox.count_documents({})} {inbox}, failures {failures}"

    def audit(self, *, failed: int = 0, effects: bool = True) -> None:
        """Every event that a door took is in the ledger once, with its effect once; or, ``failed`` of them, in failures."""
        keys = set(self.told)
        processed = {d["_id"] for d in self.db.events.find({}, {"_id": 1})}
        in_failures = {d["key"] for d in self.db.failures.find({}, {"key": 1})}
        lost = keys - processed - in_failures
        assert not lost, f"G1: {len(lost)} events lost, such as {sorted(lost)[:3]}"
        assert len(keys - processed) == failed, f"{len(keys - processed)} events failed, {failed} were to"
        if effects:
            counted = {d["_id"]: d["n"] for d in self.db.effects.find()}
            wrong = {key: counted.get(key, 0) for key in processed if counted.get(key, 0) != 1}
            assert not wrong, f"G2: effects not exactly once: {dict(list(wrong.items())[:3])} of {len(wrong)}"
            assert set(counted) <= processed, "G2: effects of events that are not committed"

    def entered(self, listener: str | None = None, timeout_s: float = 15.0) -> str:
        """Wait until a listener's handler stands at the gate; the listener's name."""

        def found() -> str:
            names = [p.name.removeprefix("entered-") for p in (self.folder / "gates").glob("entered-*")]
            return next((name for name in names if listener in (None, name)), "")

        return eventually(found, timeout_s, "a handler at the gate")

    def open_gate(self) -> None:
        """Let handlers at the gate go on, now and later."""
        (self.folder / "gates" / "open").touch()


def events(count: int, kind: str = "fault.count", **data: Any) -> list[dict[str, Any]]:
    """``count`` events with ids of their own."""
    run = os.urandom(4).hex()
    return [{"type": kind, "source": "test", "id": f"{run}-{n}", "data": {"n": n} | data} for n in range(count)]


def system_on(settings: Settings, spawn: Spawn, folder: Path, **overrides: Any) -> System:
    """A system with quick settings, and ``overrides``."""
    return System(replace(settings, **(QUICK | overrides)), spawn, folder)
