"""Both embedded servers of one home folder: started together, written down in ``servers.json``, stopped together.

Guaranteed: one set of servers per home, held by a file lock that dies with its holder; after any end, SIGKILL of everything
included, the next start in the same home recovers its data. A second start while the first runs is refused in one sentence.
They are for trying out and for tests: no passwords, one machine, the loopback address alone.

Home: ``valkey/``, ``mongo/`` (see their modules), ``servers.json``, ``servers.lock``.
"""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from app.embedded.mongod import REPLICA_SET, MongodServer, ReplicaSet
from app.embedded.process import ManagedProcess
from app.embedded.serverinfo import ProcessRecord, ServerInfo, record_of, recorded_servers, remove_servers, running_servers, write_servers
from app.embedded.valkey import BROKER_DB, CLAIMS_DB, ValkeyServer
from app.errors import ServerStartError

__all__ = ["EmbeddedServers", "ServerInfo", "running_servers"]

DATABASE = "dedup"
LOCK_FILE = "servers.lock"

_NEW_HOME_BYTES = 400_000_000
"""An empty mongod lays out 300 MB at its first start, and aborts with a stack trace where it cannot."""
_OLD_HOME_BYTES = 50_000_000

_LETTING_GO_S = 1.0
"""A starter that was just killed may hold the lock for a moment longer than its servers live."""


class EmbeddedServers:
    """Valkey and MongoDB of one home folder. Also a context manager that starts and stops them.

    Attributes:
        home: the folder.
        valkey: the Valkey server.
        mongo: the replica set, of one server by default.
    """

    def __init__(
        self,
        home: Path,
        *,
        transaction_lifetime_s: float = 10.0,
        valkey_port: int | None = None,
        mongo_port: int | None = None,
        databases: int = 16,
        mongo_nodes: int = 1,
        standalone: bool = False,
        mongod_args: Sequence[str] = (),
    ) -> None:
        """Nothing is started yet.

        Args:
            home: made when missing.
            transaction_lifetime_s: MongoDB aborts transactions that stay open longer.
            valkey_port: by default the one it had before, where that is free, else a free one.
            mongo_port: the same for MongoDB's first server.
            databases: how many numbered databases Valkey has.
            mongo_nodes: servers of the replica set.
            standalone: one mongod without a replica set, hence without transactions.
            mongod_args: more arguments for every mongod.
        """
        self.home = home
        self.valkey = ValkeyServer(home / "valkey", port=valkey_port, databases=databases)
        self.mongo = ReplicaSet(
            home / "mongo",
            nodes=mongo_nodes,
            port=mongo_port,
            replica_set=None if standalone else REPLICA_SET,
            transaction_lifetime_s=transaction_lifetime_s,
            extra_args=mongod_args,
        )
        self._lock: IO[str] | None = None
        self._info: ServerInfo | None = None

    def start(self) -> ServerInfo:
        """Start both, wait until they take writes, write ``servers.json``.

        Raises:
            ServerStartError: servers run in this home already, or one cannot start; then nothing is left running.
        """
        _refuse_windows()
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.home)
        except OSError as error:
            raise _unwritable(self.home, error) from error
        try:
            _stop_leftovers(self.home)
            _check_space(self.home)
            self.valkey.launch()
            self.mongo.launch()
            self.valkey.wait_ready()
            self.mongo.wait_ready()
            self._info = self._describe()
            write_servers(self.home, self._info)
        except OSError as error:
            self.kill()
            raise _unwritable(self.home, error) from error
        except BaseException:
            self.kill()
            raise
        return self._info

    def stop(self) -> None:
        """Remove ``servers.json``, let both end in order, and kill what does not; harmless when repeated."""
        if self._lock is None:
            return
        try:
            remove_servers(self.home)
            self.valkey.stop()
            self.mongo.stop()
        finally:
            self._release()

    def kill(self) -> None:
        """SIGKILL to both, as when the machine dies; ``servers.json`` goes, since this process lives and knows."""
        self.valkey.kill()
        self.mongo.kill()
        if self._lock is not None:
            remove_servers(self.home)
        self._release()

    def announce(self, *, broadcaster_url: str = "", flower_url: str = "") -> None:
        """Add to ``servers.json`` where the broadcaster and Flower are."""
        info = self.info
        self._info = replace(info, broadcaster_url=broadcaster_url or info.broadcaster_url, flower_url=flower_url or info.flower_url)
        write_servers(self.home, self._info)

    @property
    def info(self) -> ServerInfo:
        """What ``servers.json`` says.

        Raises:
            ServerStartError: they were not started.
        """
        if self._info is None:
            raise ServerStartError(f"the servers of {self.home} are not running")
        return self._info

    @property
    def processes(self) -> list[ManagedProcess]:
        """The servers' processes, as far as they were started."""
        return [p for p in (self.valkey.process, *(node.process for node in self.mongo.nodes)) if p]

    def dead(self) -> list[str]:
        """Names of the servers that have ended by themselves."""
        return [process.name for process in self.processes if not process.alive]

    def revive(self) -> list[str]:
        """Start those again that have ended by themselves, on their data and ports; returns their names.

        Raises:
            ServerStartError: one cannot start, or its port was taken meanwhile, so that the URLs given out are wrong.
        """
        dead = self.dead()
        servers: list[ValkeyServer | MongodServer] = [self.valkey, *self.mongo.nodes]
        for server in servers:
            if server.process and not server.process.alive:
                before = server.port
                server.launch()
                if server.port != before:
                    raise ServerStartError(f"{server.process.name} cannot start again: its port {before} was taken meanwhile")
        if dead:
            self.valkey.wait_ready()
            self.mongo.wait_ready()
            described = self._describe()
            self._info = replace(self.info, processes=described.processes)
            write_servers(self.home, self._info)
        return dead

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _describe(self) -> ServerInfo:
        return ServerInfo(
            redis_url=self.valkey.url(CLAIMS_DB),
            broker_url=self.valkey.url(BROKER_DB),
            mongo_url=self.mongo.url(DATABASE),
            owner=record_of("owner", os.getpid()),
            processes=tuple(record_of(process.name, process.pid) for process in self.processes),
        )

    def _release(self) -> None:
        self._info = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _refuse_windows() -> None:
    if os.name == "nt":
        raise ServerStartError(
            "there are no embedded servers for Windows: use WSL 2, or run your own and set DEDUP_REDIS_URL, DEDUP_BROKER_URL and DEDUP_MONGO_URL"
        )


def _locked(home: Path) -> IO[str]:
    """The home's lock, held as long as the file is open; its text says who has it.

    Raises:
        ServerStartError: another process, or another object of this one, has it.
    """
    import fcntl  # not on Windows

    file = (home / LOCK_FILE).open("a+")
    deadline = time.monotonic() + _LETTING_GO_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ServerStartError(
            f"servers run in {home} already (process {holder or 'unknown'}): stop them there with Ctrl-C, "
            "or set DEDUP_HOME to another folder for a second set"
        )
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _stop_leftovers(home: Path) -> None:
    """End servers whose owner is gone: still dying, or left behind on a system without parent-death signals."""
    info = recorded_servers(home)
    for process in info.processes if info else ():
        for signum, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if process.alive:
                os.kill(process.pid, signum)
                _wait_gone(process, patience_s)
    remove_servers(home)


def _wait_gone(process: ProcessRecord, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while process.alive and time.monotonic() < deadline:
        time.sleep(0.02)


def _check_space(home: Path) -> None:
    need = _OLD_HOME_BYTES if (home / "mongo").exists() else _NEW_HOME_BYTES
    free = shutil.disk_usage(home).free
    if free < need:
        raise ServerStartError(
            f"the disk of {home} has {free // 1_000_000} MB left and the servers need {need // 1_000_000}: make room, or set DEDUP_HOME to a folder elsewhere"
        )


def _unwritable(home: Path, error: OSError) -> ServerStartError:
    return ServerStartError(
        f"{error.filename or home} cannot be written ({error.strerror or error}): correct that, or set DEDUP_HOME to a folder that you can write"
    )
