"""Random faults, from a seed, against servers that this process started itself, while events come in through every door.

What it does is printed, one line each, so that a run can be read, and repeated with its seed (its order of faults; not the
machine's timing).
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from app.embedded.process import ManagedProcess
from tests.chaos.doors import HOOK_SECRET, Doors
from tests.support.system import ROOT, System
from tests.support.waiting import eventually

LISTENERS = 3
BRIDGES = ("bridge-1", "bridge-2")


@dataclass
class Monkey:
    """Starts a system, feeds it and breaks it.

    Attributes:
        system: on private servers, not started: it gets two broadcasters, two bridges that listen to a foreign feed, three listeners.
        doors: its producers.
        did: how often each fault was made.
    """

    system: System
    seed: int
    doors: Doors
    say: Callable[[str], None] = print
    did: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """Start everything, and wait until all know each other."""
        self._start_foreign()
        for name in self.doors.urls:
            self._start_broadcaster(name)
        for name in BRIDGES:
            self._start_bridge(name)
        for number in range(1, LISTENERS + 1):
            self.system.start_listener(f"listener-{number}")
        self.system.await_listeners(LISTENERS)
        self.await_feed()

    def run(self, seconds: float) -> None:
        """Feed and break for a while; in the end everything runs again."""
        started = time.monotonic()
        with self.doors.feeding():
            self._break(seconds, random.Random(self.seed), started)
        self.say(f"{time.monotonic() - started:7.1f} s  quiet; {len(self.system.told)} keys were promised")

    def await_feed(self) -> None:
        """Wait until every bridge is connected to the foreign server."""
        eventually(lambda: httpx.get(f"{self.doors.feed_url}/clients").json() == len(BRIDGES), 40, "bridges at the foreign server")

    # -------------------------------------------------------------------------------------------------------- processes

    def _start_broadcaster(self, name: str) -> None:
        port = self.doors.urls[name].rpartition(":")[2]
        self.system.start_broadcaster(name, env={"DEDUP_PORT": port, "CHAOS_HOOK_SECRET": HOOK_SECRET})

    def _start_bridge(self, name: str) -> None:
        self.system.start_process(name, ["dedup", "bridge", "--from", "foreign"])

    def _start_foreign(self) -> None:
        port = self.doors.feed_url.rpartition(":")[2]
        argv = ["python", "-m", "tests.support.foreign_server", port]
        process: ManagedProcess = self.system.spawn("foreign", argv, cwd=ROOT)
        self.system.processes["foreign"] = process
        eventually(lambda: _answers(f"{self.doors.feed_url}/clients"), 20, process.log_tail)

    # ----------------------------------------------------------------------------------------------------------- faults

    def _break(self, seconds: float, chance: random.Random, started: float) -> None:
        faults: list[tuple[str, Callable[[random.Random], None]]] = [
            ("kill a listener", self._kill_listener),
            ("pause a listener", self._pause_listener),
            ("kill a bridge", self._kill_bridge),
            ("kill a broadcaster", self._kill_broadcaster),
            ("kill the foreign server", self._kill_foreign),
            ("flush Redis", self._flush),
            ("pause Redis", self._pause_redis),
            ("kill Redis", self._kill_redis),
            ("kill MongoDB's primary", self._kill_primary),
            ("step MongoDB's primary down", self._step_down),
        ]
        while time.monotonic() - started < seconds:
            name, fault = chance.choice(faults)
            self.say(f"{time.monotonic() - started:7.1f} s  {name}")
            fault(chance)
            self.did[name] += 1
            time.sleep(chance.uniform(0.3, 2.0))

    def _kill_listener(self, chance: random.Random) -> None:
        name = f"listener-{chance.randint(1, LISTENERS)}"
        self.system.listener(name).kill()
        time.sleep(chance.choice([0, 1, 4]))
        self.system.restart_listener(name)

    def _pause_listener(self, chance: random.Random) -> None:
        process = self.system.listener(f"listener-{chance.randint(1, LISTENERS)}")
        process.pause()
        time.sleep(chance.uniform(0.5, 5.0))
        process.resume()

    def _kill_bridge(self, chance: random.Random) -> None:
        name = chance.choice(BRIDGES)
        self.system.processes[name].kill()
        time.sleep(chance.choice([0, 2]))
        self._start_bridge(name)

    def _kill_broadcaster(self, chance: random.Random) -> None:
        name = chance.choice(list(self.doors.urls))
        self.system.processes[name].kill()
        (self.system.folder / f"{name}.log").write_text("")
        self._start_broadcaster(name)

    def _kill_foreign(self, _: random.Random) -> None:
        self.system.processes["foreign"].kill()
        self._start_foreign()

    def _flush(self, _: random.Random) -> None:
        self.system.redis.flushall()

    def _pause_redis(self, chance: random.Random) -> None:
        assert self.system.servers is not None
        self.system.servers.valkey.pause()
        time.sleep(chance.uniform(0.2, 4.0))
        self.system.servers.valkey.resume()

    def _kill_redis(self, chance: random.Random) -> None:
        assert self.system.servers is not None
        self.system.servers.valkey.kill()
        time.sleep(chance.uniform(0, 2.0))
        self.system.servers.valkey.start()

    def _kill_primary(self, chance: random.Random) -> None:
        assert self.system.servers is not None
        primary = self.system.servers.mongo.primary()
        if primary is None:
            return
        primary.kill()
        time.sleep(chance.uniform(0, 3.0))
        primary.start()

    def _step_down(self, _: random.Random) -> None:
        assert self.system.servers is not None
        primary = self.system.servers.mongo.primary()
        if primary is not None:
            with primary.client() as client:
                client.admin.command("replSetStepDown", 5, force=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
