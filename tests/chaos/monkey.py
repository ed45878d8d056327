"""Random faults, from a seed, against servers that this process started itself, while events come in through every door.

What it does is printed, one line each, so that a run can be read, and repeated with its seed (its order of faults; not the
machine's timing).
"""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import socketio
import socketio.exceptions

from tests.support.system import System

LISTENERS = 3
KINDS = ("fault.count", "fault.count", "fault.slow", "fault.mixed", "fault.wait", "plain")


@dataclass
class Monkey:
    """Feeds a system and breaks it.

    Attributes:
        system: two broadcasters, two bridges, three listeners, on private servers.
        urls: where the broadcasters are.
        did: how often each fault was made.
        refused: answers of doors that were no promise: 503, or none at all.
    """

    system: System
    seed: int
    urls: dict[str, str]
    say: Callable[[str], None] = print
    did: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)
    _number: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seconds: float) -> None:
        """Feed and break for a while; then put everything right again and wait until all is finished."""
        started = time.monotonic()
        feeders = [threading.Thread(target=feed, args=(random.Random(self.seed + n),)) for n, feed in enumerate((self._http, self._socket))]
        for feeder in feeders:
            feeder.start()
        try:
            self._break(seconds, random.Random(self.seed), started)
        finally:
            self.stop.set()
            for feeder in feeders:
                feeder.join(timeout=60)
        self.say(f"{time.monotonic() - started:7.1f} s  quiet; {len(self.system.told)} keys were promised")

    # ------------------------------------------------------------------------------------------------------------ doors

    def _events(self, chance: random.Random) -> list[dict[str, Any]]:
        """A few new events, and sometimes old ones again."""
        made = []
        for _ in range(chance.choice([1, 1, 5, 40])):
            with self._lock:
                self._number += 1
                number = self._number
            kind = chance.choice(KINDS)
            data: dict[str, Any] = {"n": number}
            if kind in ("fault.slow", "fault.wait"):
                data["ms"] = chance.choice([5, 50])
            if kind == "fault.mixed" and chance.random() < 0.3:
                data |= {"do": "raise", "times": 1}
            made.append({"type": kind, "source": "chaos", "id": str(number), "data": data})
        told = list(self.system.told.values())[-2_000:] if chance.random() < 0.2 else []
        return made + chance.sample(told, min(len(told), 10))

    def _http(self, chance: random.Random) -> None:
        with httpx.Client(timeout=15) as http:
            while not self.stop.wait(0.05):
                part = self._events(chance)
                try:
                    answer = http.post(f"{chance.choice(list(self.urls.values()))}/events", json=part)
                except httpx.TransportError:
                    self.refused["http: no answer"] += 1
                    continue
                if answer.status_code == 202:
                    self._promise(part, answer.json()["keys"])
                else:
                    self.refused[f"http: {answer.status_code}"] += 1

    def _socket(self, chance: random.Random) -> None:
        while not self.stop.wait(0.2):
            place = urlsplit(chance.choice(list(self.urls.values())))
            try:
                # The client leaves its connection open where the server dies amid the handshake: so the connection is ours.
                with socket.create_connection((place.hostname or "", place.port or 0), timeout=15) as connection:
                    self._publish(f"http://{place.netloc}", connection, chance)
            except (OSError, socketio.exceptions.SocketIOError):
                self.refused["socket: no answer"] += 1

    def _publish(self, url: str, connection: socket.socket, chance: random.Random) -> None:
        with socketio.SimpleClient(reconnection=False, websocket_extra_options={"socket": connection}) as client:
            client.connect(url, transports=["websocket"], wait_timeout=5)
            for _ in range(50):
                if self.stop.wait(0.05):
                    break
                part = self._events(chance)
                answer = client.call("publish", part, timeout=15)
                if "keys" in answer:
                    self._promise(part, answer["keys"])
                else:
                    self.refused[f"socket: {answer['error']['status']}"] += 1

    def _promise(self, part: list[dict[str, Any]], keys: list[str]) -> None:
        distinct = {event["id"]: event for event in part}
        assert len(keys) == len(distinct), "one key for each distinct event"
        self.system.told.update(zip(keys, distinct.values(), strict=True))

    # ----------------------------------------------------------------------------------------------------------- faults

    def _break(self, seconds: float, chance: random.Random, started: float) -> None:
        faults: list[tuple[str, Callable[[random.Random], None]]] = [
            ("kill a listener", self._kill_listener),
            ("pause a listener", self._pause_listener),
            ("kill a bridge", self._kill_bridge),
            ("kill a broadcaster", self._kill_broadcaster),
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
        name = chance.choice(["bridge-1", "bridge-2"])
        self.system.processes[name].kill()
        time.sleep(chance.choice([0, 2]))
        self.system.start_bridge(name)

    def _kill_broadcaster(self, chance: random.Random) -> None:
        name = chance.choice(list(self.urls))
        self.system.processes[name].kill()
        port = self.urls[name].rpartition(":")[2]
        (self.system.folder / f"{name}.log").write_text("")
        self.system.start_broadcaster(name, env={"DEDUP_PORT": port})

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
