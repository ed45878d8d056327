"""Where nodes run: as processes of this machine, or as containers of the project's image. One fixture, ``ground``, chooses.

A ground starts nodes without waiting for them, knows how they find each other, and ends what it started.
"""

import contextlib
import os
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import docker
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pytest_docker_tools.utils import tests_inside_container

from app.embedded import tether
from app.embedded.binaries import valkey_binary
from app.embedded.ports import free_port
from app.embedded.servers import EmbeddedServers
from tests.celery.local_nodes import HOST, LocalProcess
from tests.celery.nodes import (
    DOOR_PORT,
    VALKEY_PORT,
    ListenerContainer,
    LocalListener,
    LocalService,
    LocalValkey,
    Raw,
    ServiceContainer,
    ValkeyContainer,
)
from tests.support.docker import MONGO_IMAGE, ROOT, VALKEY_IMAGE, own_name, project_image
from tests.support.waiting import eventually

BROADCASTER = ("python", "-m", "broadcaster")
BRIDGE = ("python", "-m", "broadcaster.bridge")


class Ground(ABC):
    """What a test's nodes stand on. Its methods start one node each."""

    def __init__(self) -> None:
        self.started: list[Raw] = []

    @abstractmethod
    def valkey(self, folder: Path, *databases: str) -> list[ValkeyContainer]:
        """A Valkey server of the test's own, seen as several of its databases."""

    @abstractmethod
    def mongo_url(self, database: str, *, for_test: bool) -> str:
        """MongoDB, as nodes or as the test reach it."""

    @abstractmethod
    def listener(self, name: str, folder: Path, env: Mapping[str, str]) -> ListenerContainer:
        """A listener."""

    @abstractmethod
    def service(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str], *, ready_prompt: str) -> ServiceContainer:
        """Broadcaster or bridge."""

    @abstractmethod
    def door_url(self, broadcaster: ServiceContainer) -> str:
        """Where other nodes find a broadcaster."""

    def end_all(self) -> None:
        """End what was started since the last call."""
        while self.started:
            self.started.pop().remove(force=True, v=True)


class Processes(Ground):
    """Local processes, on the run's embedded MongoDB."""

    def __init__(self, servers: EmbeddedServers) -> None:
        super().__init__()
        self._servers = servers

    def valkey(self, folder: Path, *databases: str) -> list[ValkeyContainer]:
        port = free_port()
        command = [str(valkey_binary()), *LocalValkey.command("--bind", HOST, "--port", str(port), "--dir", str(folder))[1:]]
        process = self._start("valkey", command, folder, os.environ, {VALKEY_PORT: port})
        return [LocalValkey(process, database) for database in databases]

    def mongo_url(self, database: str, *, for_test: bool) -> str:
        return self._servers.mongo.url(database)

    def listener(self, name: str, folder: Path, env: Mapping[str, str]) -> ListenerContainer:
        command = ListenerContainer.command_of(name)
        command[0] = str(Path(sys.executable).with_name(command[0]))
        return LocalListener(self._start(name, command, folder, self._env(env)), name)

    def service(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str], *, ready_prompt: str) -> ServiceContainer:
        variables = self._env(env)
        ports = {}
        if command == BROADCASTER:
            ports[DOOR_PORT] = free_port()
            variables["DEDUP_PORT"] = str(ports[DOOR_PORT])
        return LocalService(self._start(name, [sys.executable, *command[1:]], folder, variables, ports), ready_prompt)

    def door_url(self, broadcaster: ServiceContainer) -> str:
        return "http://{}:{}".format(*broadcaster.get_addr(f"{DOOR_PORT}/tcp"))

    def _env(self, env: Mapping[str, str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("DEDUP_")}
        return own | {"PYTHONPATH": str(ROOT)} | dict(env)

    def _start(
        self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str], ports: Mapping[int, int] | None = None
    ) -> LocalProcess:
        tied = [sys.executable, "-I", "-S", tether.__file__, "9", str(os.getpid()), *command]  # ends with this process, however that ends
        process = LocalProcess(name, tied, log=folder / f"{name}.log", env=env, cwd=folder, ports=ports)
        self.started.append(process)
        return process.start()


class Containers(Ground):
    """Containers of the project's image, and of Valkey's and MongoDB's, on a network of this run."""

    def __init__(self, client: docker.DockerClient) -> None:
        super().__init__()
        self._client = client
        self._run = own_name()
        self._network = client.networks.create(self._run)
        self._mongo: Raw | None = None

    def close(self) -> None:
        """Remove what is left."""
        self.end_all()
        if self._mongo:
            self._mongo.remove(force=True, v=True)
        self._network.remove()

    def valkey(self, folder: Path, *databases: str) -> list[ValkeyContainer]:
        raw = self._start("valkey", VALKEY_IMAGE, ValkeyContainer.command("--bind", "0.0.0.0"), folder, {}, port=VALKEY_PORT)
        return [ValkeyContainer(raw, database) for database in databases]

    def mongo_url(self, database: str, *, for_test: bool) -> str:
        if self._mongo is None:
            self._mongo = self._start_mongo()
        if for_test:
            return f"mongodb://{self._address(self._mongo, 27017)}/{database}?directConnection=true"
        return f"mongodb://{self._mongo.name}:27017/{database}?replicaSet=rs0"

    def listener(self, name: str, folder: Path, env: Mapping[str, str]) -> ListenerContainer:
        return ListenerContainer(self._start(name, project_image(), ListenerContainer.command_of(name), folder, env), name)

    def service(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str], *, ready_prompt: str) -> ServiceContainer:
        port = DOOR_PORT if command == BROADCASTER else None
        return ServiceContainer(self._start(name, project_image(), list(command), folder, env, port=port), ready_prompt)

    def door_url(self, broadcaster: ServiceContainer) -> str:
        return f"http://{broadcaster.attrs['Config']['Hostname']}:{DOOR_PORT}"

    def _start(
        self, name: str, image: str, command: Sequence[str], folder: Path, env: Mapping[str, str], *, port: int | None = None
    ) -> Raw:
        gates = env.get("DEDUP_TEST_GATES")
        raw = self._client.containers.run(
            image,
            list(command),
            detach=True,
            name=f"{self._run}-{name}-{secrets.token_hex(2)}",
            network=self._run,
            environment=dict(env),
            volumes={str(ROOT / "tests"): {"bind": "/srv/dedup/tests", "mode": "ro"}, gates: {"bind": gates, "mode": "rw"}}
            if gates
            else {},
            ports={f"{port}/tcp": (HOST, free_port())} if port else {},
            init=True,
        )
        self.started.append(raw)
        raw.reload()
        return raw

    def _start_mongo(self) -> Raw:
        command = ["mongod", "--bind_ip_all", "--replSet", "rs0", "--setParameter", "transactionLifetimeLimitSeconds=10"]
        raw = self._start("mongo", MONGO_IMAGE, command, Path(), {}, port=27017)
        self.started.remove(raw)  # it stays for all tests
        url = f"mongodb://{self._address(raw, 27017)}/?directConnection=true"
        with MongoClient(url, serverSelectionTimeoutMS=500) as client:

            def initiated() -> bool:
                with contextlib.suppress(PyMongoError):
                    client.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": f"{raw.name}:27017"}]})
                with contextlib.suppress(PyMongoError):
                    return bool(client.admin.command("hello")["isWritablePrimary"])
                return False

            eventually(initiated, 60, lambda: raw.logs(tail=20).decode(), every_s=0.3)
        return raw

    def _address(self, raw: Raw, port: int) -> str:
        if tests_inside_container():
            return f"{raw.attrs['NetworkSettings']['Networks'][self._run]['IPAddress']}:{port}"
        return f"{HOST}:{raw.attrs['NetworkSettings']['Ports'][f'{port}/tcp'][0]['HostPort']}"
