"""The whole system on one machine: servers, broadcaster, bridge, listeners, Flower, as child processes of this one.

Guaranteed: listeners are started as a user starts them (``celery -A app worker -n listener-1@%h``); a child that ends is said, and
started again within a limit (``app.service``); ``stop`` ends listeners first (warm: what they have in hand is finished) and
Flower, then bridge and broadcaster, then the servers; whatever way this process ends, SIGKILL included, no child stays (Linux, see
``app.embedded.tether``). Not guaranteed: redundancy; there is one broadcaster and one bridge.
"""

import http.client
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from app.embedded.ports import is_free
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.errors import ServerStartError, TransientError
from app.service import Service, cut_off
from app.settings import PREFIX, Settings

if TYPE_CHECKING:
    from app.presence import Presence

_SAID = re.compile(r"^dedup: (.+)$", re.MULTILINE)
"""How our processes say in one sentence why they do not start."""
_TRIED_PORTS = 100


class Stack:
    """All processes of the system. Also a context manager that starts and stops them.

    Attributes:
        settings: of all processes; its server URLs are right once the servers run.
        servers: the embedded servers, or None where the settings name others.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        embedded: bool,
        listeners: int,
        cwd: Path,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            settings: of all processes. With embedded servers, its three server URLs are replaced.
            embedded: whether to start embedded servers in ``settings.home``.
            listeners: how many.
            cwd: working folder of the processes.
            report: told what happens, in one line each.
        """
        self.settings = settings
        self.servers = EmbeddedServers(settings.home, transaction_lifetime_s=settings.transaction_lifetime_s) if embedded else None
        self.listeners = tuple(f"listener-{number}" for number in range(1, listeners + 1))
        self.logs = settings.home / "logs"
        self._cwd = cwd
        self._report = report
        self._presence: Presence | None = None
        self._services: dict[str, Service] = {}
        self._started_at = 0.0

    # -------------------------------------------------------------------------------------------------------- where it is

    @property
    def broadcaster_url(self) -> str:
        """Where the broadcaster is."""
        return f"http://{_reachable(self.settings.host)}:{self.settings.port}"

    @property
    def flower_url(self) -> str:
        """Where Flower is."""
        return f"http://{_reachable(self.settings.host)}:{self.settings.flower_port}"

    @property
    def given_up(self) -> list[str]:
        """Names of the processes that ended too often to be started again."""
        return [name for name, service in self._services.items() if service.given_up]

    # ------------------------------------------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Start everything, and wait until all of it is of use.

        Raises:
            ServerStartError: something cannot start; then nothing is left running.
        """
        self._started_at = time.monotonic()
        try:
            if self.servers:
                self._report("starting Valkey and MongoDB")
                info = self.servers.start()
                self.settings = replace(self.settings, redis_url=info.redis_url, broker_url=info.broker_url, mongo_url=info.mongo_url)
            self._services = {service.name: service for service in self._made()}
            self._report(f"starting {_and_so_on(list(self._services))}")
            for service in self._services.values():
                service.process.start()
            for service in self._services.values():
                service.wait_ready()
            if self.servers:
                self.servers.announce(broadcaster_url=self.broadcaster_url, flower_url=self.flower_url)
        except BaseException:
            self.kill()
            raise

    def look_after(self) -> None:
        """Start again what has ended, and report it; to be called about twice a second.

        Raises:
            ServerStartError: something cannot be started again.
        """
        if self.servers and (dead := self.servers.dead()):
            self._report(f"{_and_so_on(dead)} ended by itself; starting it again on its data")
            self.servers.revive()
        for service in self._services.values():
            if said := service.look_after():
                self._report(said)

    def stop(self) -> None:
        """Stop everything in order; harmless when repeated, and when nothing was started."""
        for names in ((*self.listeners, "flower"), ("bridge", "broadcaster")):
            services = [self._services[name] for name in names if name in self._services]
            for service in services:
                service.process.ask_to_stop()
            for service in services:
                if service.process.wait(service.stop_s) is None:
                    service.process.kill()
        if self.servers:
            self.servers.stop()

    def kill(self) -> None:
        """End everything at once."""
        for service in self._services.values():
            service.process.kill()
        if self.servers:
            self.servers.kill()

    def hurry(self) -> None:
        """Cut a ``stop`` short that is under way; for a signal handler."""
        cut_off([service.process for service in self._services.values()] + (self.servers.processes if self.servers else []))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------------------- what it starts

    def _made(self) -> Iterable[Service]:
        celery = _program("celery")
        yield self._service(
            "broadcaster", [sys.executable, "-m", "broadcaster"], ready=partial(_answers, f"{self.broadcaster_url}/health/live")
        )
        yield self._service("bridge", [sys.executable, "-m", "broadcaster.bridge"], ready=self._bridge_works)
        for name in self.listeners:
            argv = [celery, "-A", "app", "worker", "-n", f"{name}@%h"]
            yield self._service(name, argv, ready=partial(self._listener_works, name), stop_s=max(10.0, self.settings.max_handler_s + 5))
        flower = [
            celery,
            "-A",
            "app",
            "flower",
            f"--address={self.settings.host}",
            f"--port={self.settings.flower_port}",
            *_flower_config(),
        ]
        yield self._service("flower", flower, ready=partial(_answers, f"{self.flower_url}/healthcheck"))

    def _service(self, name: str, argv: list[str], *, ready: Callable[[], bool], stop_s: float = 10.0) -> Service:
        process = ManagedProcess(
            name,
            argv,
            log=self.logs / f"{name}.log",
            env=environment_of(replace(self.settings, broadcaster_url=self.broadcaster_url)),
            cwd=self._cwd,
            explain=_sentence_in_log,
        )
        return Service(process, ready=ready, stop_s=stop_s)

    def _bridge_works(self) -> bool:
        """It sweeps, and listens to the broadcaster."""
        with suppress(TransientError):
            swept_before_ms = self.presence().swept_before_ms()
            if swept_before_ms is None or swept_before_ms > (time.monotonic() - self._started_at) * 1000:
                return False  # not yet, or a former bridge
            stats = json.loads(_get(f"{self.broadcaster_url}/stats", self.settings.token) or "{}")
            return bool(stats.get("socketio", {}).get("clients", {}).get("/bridge"))
        return False

    def _listener_works(self, name: str) -> bool:
        pid = self._services[name].process.pid
        with suppress(TransientError):
            found = self.presence().listeners(within_ms=self.settings.listener_grace_s * 1000)
            return any(node.pid == pid for listener in found for node in listener.nodes)
        return False

    def presence(self) -> "Presence":
        """The listeners' heartbeats.

        Raises:
            TransientError: a store is away.
        """
        if self._presence is None:
            from app import redis_client
            from app.presence import Presence
            from app.stores import mongo
            from app.stores.meta import deployment_id

            db = mongo.connect(self.settings, role="stack")
            with closing(db.client):
                deployment = deployment_id(db)
            self._presence = Presence(redis_client.connect(self.settings), deployment)
        return self._presence


def environment_of(settings: Settings) -> dict[str, str]:
    """This process's environment with all of the settings in it; no other ``DEDUP_`` variable stays."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    for spec in fields(settings):
        value = getattr(settings, spec.name)
        if value in (None, "", ()):
            continue
        env[PREFIX + spec.name.upper()] = ",".join(value) if isinstance(value, tuple) else str(value)
    return env


def next_free_port(wanted: int) -> int:
    """The port, or the next one above it that is free.

    Raises:
        ServerStartError: none is.
    """
    for port in range(wanted, min(wanted + _TRIED_PORTS, 65_536)):
        if is_free(port):
            return port
    raise ServerStartError(f"no port from {wanted} to {wanted + _TRIED_PORTS - 1} is free: choose another one")


def placeholder_urls() -> dict[str, Any]:
    """Server URLs that let settings be checked before the embedded servers run."""
    return {"redis_url": "redis://none", "broker_url": "redis://none", "mongo_url": "mongodb://none/dedup"}


def _program(name: str) -> str:
    """A program of this environment."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerStartError(f"the program {name!r} is missing beside {sys.executable}: run 'make setup', or install {name} there")
    return found


def _flower_config() -> list[str]:
    """Flower looks for its settings in the working folder; ours are beside ``celeryconfig``, wherever this process runs."""
    spec = find_spec("flowerconfig") or find_spec("celeryconfig")
    path = Path(spec.origin).with_name("flowerconfig.py") if spec and spec.origin else None
    return [f"--conf={path}"] if path and path.is_file() else []


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host


def _answers(url: str) -> bool:
    """Whether a web server answers there, whatever it says."""
    return _get(url) is not None


def _get(url: str, token: str = "") -> bytes | None:
    """What a web server answers, or None when none does."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2.0)
    try:
        connection.request("GET", parts.path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.read() if answer.status < 500 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _sentence_in_log(_code: int | None, log: str) -> str | None:
    said = _SAID.findall(log)
    return said[-1] if said else None


def _and_so_on(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
