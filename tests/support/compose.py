"""docker-compose.yml brought up for tests: under a project name, passwords and ports of its own, removed with its volumes."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.embedded.ports import free_port
from app.samples import flights
from tests.support.docker import (
    MONGO_IMAGE,
    PYTHON_IMAGE,
    ROOT,
    VALKEY_IMAGE,
    compose_program,
    logs_of,
    own_name,
    project_image,
    require_engine,
)
from tests.support.system import events
from tests.support.waiting import eventually

LISTENERS = ("listener-1", "listener-2", "listener-3")
SERVICES = ("valkey", "mongo", "broadcaster", "bridge", *LISTENERS, "flower")
SECOND = ("broadcaster-2", "bridge-2")
LEASE_MS = 3_000

_GATES = "/gates"
_OVERRIDE = """
services:
{services}
"""
_LISTENER = """
  {name}:
    environment: {{DEDUP_TEST_GATES: {inside}}}
    volumes: ["{tests}:/srv/dedup/tests:ro", "{gates}:{inside}"]
"""
_EFFECTS = """
import json
from app.settings import load_settings
from app.stores import mongo
print(json.dumps({d["_id"]: d["n"] for d in mongo.connect(load_settings(), role="test")["effects"].find()}))
"""


class Stack:
    """The containers of docker-compose.yml, with the fault tests' handlers mounted as a user mounts handlers.

    Attributes:
        told: keys that a door answered 202 for.
        fed: how many of the sample flights were sent.
        secrets: what stands in the file of variables.
    """

    def __init__(self, folder: Path, *, redundant: bool) -> None:
        """Nothing is started yet.

        Args:
            folder: for the file of variables and the gates.
            redundant: whether the second broadcaster and bridge belong to it.
        """
        self.services = SERVICES + (SECOND if redundant else ())
        self.project = own_name()
        self.told: list[str] = []
        self.secrets = {name: secrets.token_hex(16) for name in ("DEDUP_TOKEN", "VALKEY_PASSWORD", "MONGO_PASSWORD", "MONGO_ROOT_PASSWORD")}
        self.secrets["DEDUP_FLOWER_AUTH"] = f"flower:{secrets.token_hex(16)}"
        self._docker = require_engine()
        self._ports = {name: free_port() for name in ("DEDUP_PORT", "DEDUP_PORT_2", "DEDUP_FLOWER_PORT")}
        self._gates = folder / "gates"
        self._gates.mkdir()
        self._gates.chmod(0o777)  # containers run as somebody else
        self.fed = 0
        variables = self.secrets | {name: str(port) for name, port in self._ports.items()}
        variables |= {"DEDUP_IMAGE": project_image(), "DEDUP_FLIGHTS_IMAGE": project_image("flights"), "DEDUP_LEASE_MS": str(LEASE_MS)}
        variables |= {"PYTHON_IMAGE": PYTHON_IMAGE, "VALKEY_IMAGE": VALKEY_IMAGE, "MONGO_IMAGE": MONGO_IMAGE}
        variables["DEDUP_HANDLERS"] = "workers.examples.departures,tests.support.fault_handlers"
        env_file, override = folder / "env", folder / "override.yml"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        parts = (_LISTENER.format(name=name, inside=_GATES, tests=ROOT / "tests", gates=self._gates) for name in LISTENERS)
        override.write_text(_OVERRIDE.format(services="".join(parts)))
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("DEDUP_", "MONGO_", "VALKEY_", "COMPOSE_"))}
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(override))
        profile = ("--profile", "redundant") if redundant else ()
        self._compose = (*compose_program(), "--env-file", str(env_file), "-p", self.project, *files, *profile)

    # --------------------------------------------------------------------------------------------------- up and down

    def up(self) -> None:
        """Start what does not run, and wait until all of it is healthy."""
        self.compose("up", "-d", "--no-build")
        self.await_healthy()

    def down(self, *, volumes: bool) -> None:
        """Remove containers and network; with ``volumes``, the data too."""
        self.compose("down", "--remove-orphans", *(["--volumes"] if volumes else []))

    def close(self) -> None:
        """Remove everything."""
        self.down(volumes=True)
        self._docker.close()

    def compose(self, *arguments: str, stdin: str | None = None) -> str:
        """Run docker compose; its standard output.

        Raises:
            AssertionError: it failed; with what it wrote.
        """
        done = subprocess.run(
            [*self._compose, *arguments], input=stdin, capture_output=True, text=True, timeout=300, env=self._env, cwd=ROOT, check=False
        )
        assert done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def container(self, service: str) -> Any:
        """The container of a service, with its present state."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        (found,) = self._docker.containers.list(all=True, filters={"label": labels})
        return found

    def health(self) -> dict[str, str]:
        """By service: ``healthy``, ``unhealthy``, ``starting``, or the state of a container that does not run."""
        states = {service: self.container(service).attrs["State"] for service in self.services}
        return {service: state["Health"]["Status"] if state["Running"] else state["Status"] for service, state in states.items()}

    def await_healthy(self, timeout_s: float = 120) -> None:
        """Wait until every container says that it is of use."""
        eventually(lambda: set(self.health().values()) == {"healthy"}, timeout_s, self.story, every_s=0.5)

    def healthy(self, service: str, role: str) -> bool:
        """What the health check of a running container says now."""
        code, _ = self.container(service).exec_run(["python", "-m", "app.health", role])
        return bool(code == 0)

    def story(self) -> str:
        """The containers' health, and the end of the logs of those that are not well."""
        health = self.health()
        logs = [f"--- {service}\n{logs_of(self.container(service), 15)}" for service, state in health.items() if state != "healthy"]
        return "\n".join([str(health), *logs])

    @contextmanager
    def cut_off(self, service: str) -> Iterator[None]:
        """Take a container off the network while the block runs."""
        (network,) = self._docker.networks.list(names=[f"{self.project}_default"])
        container = self.container(service)
        network.disconnect(container)
        try:
            yield
        finally:
            network.connect(container)

    # ---------------------------------------------------------------------------------------------------------- events

    def url(self, service: str) -> str:
        """Where a broadcaster, or Flower, is published."""
        name = {"broadcaster": "DEDUP_PORT", "broadcaster-2": "DEDUP_PORT_2", "flower": "DEDUP_FLOWER_PORT"}[service]
        return f"http://127.0.0.1:{self._ports[name]}"

    def client(self, service: str = "broadcaster") -> httpx.Client:
        """A client of a broadcaster's doors."""
        token = self.secrets["DEDUP_TOKEN"]
        return httpx.Client(base_url=self.url(service), timeout=20, headers={"Authorization": f"Bearer {token}"})

    def feed(self, count: int, *, doors: tuple[str, ...] = ("broadcaster",)) -> None:
        """Send flights that were not sent before, each request to the next door that takes it."""
        self.send(flights(count, self.fed), doors=doors)
        self.fed += count

    def send(self, sending: Iterable[dict[str, Any]], *, doors: tuple[str, ...] = ("broadcaster",)) -> None:
        """Send events, in requests of 100; a door that does not take one is passed over, and asked again."""
        waiting = list(sending)
        clients = [self.client(door) for door in doors]
        try:
            for turn, at in enumerate(range(0, len(waiting), 100)):
                part = waiting[at : at + 100]
                order = clients[turn % len(clients) :] + clients[: turn % len(clients)]
                response = eventually(lambda part=part, order=order: _taken(order, part), 90, "a door that takes events", every_s=0.2)
                assert response.status_code == 202, response.text
                self.told += response.json()["keys"]
        finally:
            for client in clients:
                client.close()

    @contextmanager
    def feeding(self, count: int, *, doors: tuple[str, ...] = ("broadcaster",)) -> Iterator[None]:
        """Feed flights beside the block; at its end all of them are accepted."""
        with ThreadPoolExecutor(1) as pool:
            fed = pool.submit(self.feed, count, doors=doors)
            yield
            fed.result()

    def gate(self, count: int) -> str:
        """Events whose handler waits in its transaction; the listener that stands there."""
        for left in self._gates.iterdir():
            left.unlink()
        self.send(events(count, "fault.gate"))
        return eventually(lambda: next((path.name.removeprefix("entered-") for path in self._gates.glob("entered-*")), ""), 30, self.story)

    def open_gate(self) -> None:
        """Let handlers at the gate go on."""
        (self._gates / "open").touch()

    def listeners(self) -> dict[str, dict[str, Any]]:
        """The live listeners by name, as a broadcaster hears them."""
        with self.client() as client:
            return {found["name"]: found for found in client.get("/stats").raise_for_status().json()["listeners"]}

    # ----------------------------------------------------------------------------------------------------------- audit

    def audit(self, *, door: str = "broadcaster", wait_s: float = 60) -> dict[str, Any]:
        """The balance as the command line draws it, of all that was told; asserted to hold."""
        argv = ("dedup", "audit", "--json", "--departures", "--wait", f"{wait_s:g}", "--expect", "-")
        began = time.monotonic()
        found = json.loads(self.compose("exec", "-T", door, *argv, stdin="\n".join(self.told)).splitlines()[-1])
        assert found["ok"], found
        assert (found["lost"], found["twice"], found["unfinished"], found["failures"]) == (0, 0, 0, 0), found
        assert found["processed"] == found["expected"] == len(self.told), (found, len(self.told), time.monotonic() - began)
        return dict(found)

    def effects(self) -> dict[str, int]:
        """How often the fault tests' handlers had their effect, by key."""
        return dict(json.loads(self.compose("exec", "-T", "broadcaster", "python", "-c", _EFFECTS)))


def _taken(clients: list[httpx.Client], part: list[dict[str, Any]]) -> httpx.Response | None:
    for client in clients:
        try:
            response = client.post("/events", json=part)
        except httpx.TransportError:
            continue
        if response.status_code != 503:
            return response
    return None
