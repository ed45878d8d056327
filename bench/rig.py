"""A whole system of its own for a benchmark: embedded servers, broadcaster, bridge and listeners on free ports, data in a temporary folder.

Guaranteed: nothing of the environment's ``DEDUP_`` variables gets in; all processes end with this one; :meth:`Rig.audit` is the judge of every run.
Listeners run as a user starts them, with Celery's task events on, so that Flower could watch; Flower itself runs only when it is asked for.
"""

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import httpx
from redis import Redis

from app.audit import audit
from app.embedded.ports import free_port
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.errors import ServerStartError
from app.settings import Settings, load_settings
from app.stack import environment_of, placeholder_urls
from app.stores import mongo
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from bench.load import Load
from bench.producers import over_http

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 5_000
"""Events before the clock runs."""
_LOOK_EVERY_S = 0.01
_STALLED_S = 60.0
P = ParamSpec("P")
T = TypeVar("T")


class BenchError(Exception):
    """A benchmark has no result: its system did not do what it must."""


class Rig:
    """One system. Also a context manager that starts and ends it.

    Attributes:
        settings: of all processes.
        servers: Valkey and mongod.
        processes: by name: ``broadcaster``, ``bridge``, ``listener-1``, …
        started_in: seconds from start to use, by name; ``valkey``, ``mongod`` too.
        db: the deployment's database, at majority.
    """

    def __init__(
        self, *, listeners: int = 3, system: bool = True, env: dict[str, str] | None = None, bridge: Sequence[str] = (), **settings: Any
    ) -> None:
        """Nothing is started yet.

        Args:
            listeners: how many.
            system: False starts the servers alone.
            env: variables of all processes.
            bridge: arguments of ``dedup bridge``; by default it listens to the broadcaster alone.
            settings: what differs from the defaults.
        """
        self._stack = ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="dedup-bench-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.servers = EmbeddedServers(self.folder / "servers", databases=4)
        self.listeners = tuple(f"listener-{number}" for number in range(1, listeners + 1))
        self._system = system
        self._overrides = settings
        self._env = env or {}
        self._bridge = [*bridge]
        self.processes: dict[str, ManagedProcess] = {}
        self.started_in: dict[str, float] = {}
        self._expected = 0
        self.settings: Settings
        self.db: Any

    # --------------------------------------------------------------------------------------------------- start and end

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start everything and wait until it is of use.

        Raises:
            ServerStartError: something does not start.
        """
        self.start_servers()
        if not self._system:
            return
        self.start_broadcaster()
        self.start_bridge()
        for name in self.listeners:
            self.start_listener(name, wait=False)
        for name in self.listeners:
            self.await_listener(name)

    def start_servers(self) -> None:
        """Start Valkey and mongod, and connect."""
        self._stack.callback(self.servers.kill)
        began = time.monotonic()
        self.servers.start()
        self.started_in["valkey and mongod"] = time.monotonic() - began
        urls = {
            "redis_url": self.servers.valkey.url(0),
            "broker_url": self.servers.valkey.url(1),
            "mongo_url": self.servers.mongo.url("bench"),
        }
        self.settings = load_settings({}, folder=self.folder, **(placeholder_urls() | urls | {"port": free_port()} | self._overrides))
        self.db = mongo.connect(self.settings, role="bench")
        self._stack.callback(self.db.client.close)

    def start_broadcaster(self) -> None:
        """Start the broadcaster, and wait until it answers."""
        process = self.spawn("broadcaster", [sys.executable, "-m", "broadcaster"])
        self.await_ready(process, lambda: bool(self.stats()))

    def start_bridge(self) -> None:
        """Start the bridge, and wait until it listens to the broadcaster."""
        argv = [self.program("dedup"), "bridge", *self._bridge] if self._bridge else [sys.executable, "-m", "broadcaster.bridge"]
        process = self.spawn("bridge", argv)
        self.await_ready(process, lambda: bool(self.stats().get("socketio", {}).get("clients", {}).get("/bridge")))

    def start_listener(self, name: str, *, wait: bool = True) -> ManagedProcess:
        """Start a listener as a user does."""
        process = self.spawn(name, [self.program("celery"), "-A", "app", "worker", "-n", f"{name}@%h"])
        if wait:
            self.await_listener(name)
        return process

    def await_listener(self, name: str) -> None:
        """Wait until the listener of this process id is known."""
        process = self.processes[name]
        self.await_ready(
            process, lambda: any(node["pid"] == process.pid for found in self.stats().get("listeners", ()) for node in found["nodes"])
        )

    def spawn(self, name: str, argv: Sequence[str], env: dict[str, str] | None = None) -> ManagedProcess:
        """Start any process with this system's settings."""
        broadcaster = f"http://127.0.0.1:{self.settings.port}"
        ours = environment_of(replace(self.settings, broadcaster_url=broadcaster)) | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder),
            "NO_COLOR": "1",
        }
        log = self.folder / f"{name}.log"
        process = ManagedProcess(name, argv, log=log, env=ours | self._env | (env or {}), cwd=self.folder)
        self.processes[name] = process
        self._stack.callback(process.kill)
        self._spawned_at = time.monotonic()
        return process.start()

    @staticmethod
    def program(name: str) -> str:
        """A program of this environment."""
        return str(Path(sys.executable).with_name(name))

    def await_ready(self, process: ManagedProcess, ready: Callable[[], bool]) -> None:
        """Wait until a process that was just started is of use, and note how long it took."""
        process.wait_until(ready, timeout_s=90)
        self.started_in[process.name] = time.monotonic() - self._spawned_at

    # ------------------------------------------------------------------------------------------------------ what it is

    @property
    def url(self) -> str:
        """Where the broadcaster is."""
        return f"http://127.0.0.1:{self.settings.port}"

    def stats(self) -> dict[str, Any]:
        """What the broadcaster says; nothing while it does not answer."""
        with suppress(httpx.TransportError, ValueError):
            found: dict[str, Any] = httpx.get(f"{self.url}/stats", timeout=5).json()
            return found
        return {}

    def valkey(self, database: int = 0) -> Redis:
        """A client of Valkey; the rig closes it."""
        client = self.servers.valkey.client(database)
        self._stack.callback(client.close)
        return client

    def processed(self) -> int:
        """Documents in the ledger, by its metadata, which count those of open transactions too."""
        return Ledger(self.db).size()

    def in_inbox(self) -> int:
        """Batches in the inbox, by its metadata."""
        return Inbox(self.db).size()

    # --------------------------------------------------------------------------------------------------------- waiting

    def await_processed(
        self,
        number: int,
        beside: "Future[Any] | None" = None,
        *,
        look: Callable[[int], None] = lambda _: None,
        every_s: float = _LOOK_EVERY_S,
    ) -> float:
        """Wait until the ledger holds so many documents.

        Args:
            number: of documents, those of former loads included.
            beside: who sends; what it raises is raised here.
            look: told how many there are, each time.
            every_s: how often to ask; the error of the instant.

        Returns:
            When that was, by the monotonic clock.

        Raises:
            BenchError: nothing has moved for a minute.
        """
        return self.await_count(self.processed, number, beside, look=look, every_s=every_s)

    def await_count(
        self,
        count: Callable[[], int],
        number: int,
        beside: "Future[Any] | None" = None,
        *,
        look: Callable[[int], None] = lambda _: None,
        every_s: float = _LOOK_EVERY_S,
    ) -> float:
        """The same for anything that counts up."""
        moved_at, before = time.monotonic(), -1
        while True:
            found = count()
            now = time.monotonic()
            look(found)
            if found >= number:
                return now
            if beside is not None and beside.done():
                beside.result()
            if found != before:
                moved_at, before = now, found
            elif now - moved_at > _STALLED_S:
                raise BenchError(f"nothing has moved for a minute: {found:,} of {number:,}{self._ended()}")
            time.sleep(every_s)

    def await_committed(self, number: int, beside: "Future[Any] | None" = None) -> float:
        """Wait until so many documents are in the ledger by majority; returns when that was.

        To be used where handlers write in transactions, whose documents the metadata count before they are committed. The exact count is asked only
        once the metadata say enough, since it scans an index.
        """
        self.await_processed(number, beside)
        return self.await_count(Ledger(self.db).count, number)

    def await_empty_inbox(self) -> float:
        """Wait until nothing is left to do; returns when that was, and raises as :meth:`await_processed` does."""
        return self.await_count(lambda: -self.in_inbox(), 0)

    def _ended(self) -> str:
        gone = [f"; {name} has ended: {process.log_tail(5)}" for name, process in self.processes.items() if not process.alive]
        return "".join(gone)

    def expect(self, events: int) -> int:
        """Note that so many new events will be accepted; returns how many the ledger will hold then."""
        self._expected += events
        return self._expected

    def audit(self) -> None:
        """Judge: what was expected is processed, each event once, and nothing is left or has failed.

        Raises:
            BenchError: they are not.
        """
        self.await_empty_inbox()
        found = audit(self.db)
        if not found.ok or found.processed != self._expected or found.failures:
            raise BenchError(f"the audit fails: {self._expected:,} events were accepted, and it found {found}")


class Aside:
    """Functions run in processes of their own, beside what is measured. Also a context manager."""

    def __init__(self, processes: int = 1) -> None:
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Start a function of a module; its result comes as a future."""
        return self._pool.submit(function, *args, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._pool.shutdown()
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():  # whoever sends to a system that has failed would go on
            child.terminate()


@contextmanager
def started(say: Callable[[str], None], **options: Any) -> Iterator[Rig]:
    """A rig, with a word about its start.

    Raises:
        BenchError: it does not start.
    """
    began = time.monotonic()
    try:
        with Rig(**options) as rig:
            say(f"{len(rig.processes) or 'no'} processes and the servers up in {time.monotonic() - began:.1f} s")
            yield rig
    except ServerStartError as error:
        raise BenchError(str(error)) from error


def warm(rig: Rig, aside: Aside, load: Load) -> None:
    """Send a load by HTTP, and wait until nothing of it is left."""
    aside.run(over_http, rig.url, load).result()
    rig.await_processed(rig.expect(load.events))
    rig.await_empty_inbox()
