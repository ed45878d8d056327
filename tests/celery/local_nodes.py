"""pytest-celery's nodes on processes of this machine, without Docker.

pytest-celery's nodes and clusters hold containers, which pytest-docker-tools wraps around docker-py's ``Container``. That is the
seam: :class:`LocalProcess` is docker-py's ``Container`` for a local process, as far as those two packages use it, and
:class:`LocalContainer` is a mix-in for the few places in which a wrapper looks into a container's network. So a test that works on
``celery_setup`` (``worker.kill()``, ``broker.restart()``, ``worker.assert_log_exists(…)``) runs on either, unchanged::

    class LocalRedis(LocalContainer, RedisContainer): ...

    redis = LocalRedis(LocalProcess("broker", ["redis-server", "--port", "6400"], log=folder / "broker.log", ports={6379: 6400}))
    broker = RedisTestBroker(redis)

Of this project it uses nothing. Guaranteed: as with a container, SIGKILL ends the process and all that it started, any other
signal goes to it alone, and its output is kept over restarts. Not guaranteed: what only a container has; a process sees the
machine's files, ports and processes. It needs POSIX.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pytest_celery import CeleryTestContainer, CeleryTestWorker

HOST = "127.0.0.1"


class LocalProcess:
    """docker-py's ``Container``, for a process of this machine.

    Attributes:
        id: a made-up one, in the form of a container's.
        name: of the process.
        status: as docker-py's: ``created``, ``running``, ``paused`` or ``exited``, of the last :meth:`reload`.
        attrs: the part of ``docker inspect`` that the wrappers read.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ports: Mapping[int, int] | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: of the process.
            command: program and arguments.
            log: file that gets its output and errors, appended.
            env: its whole environment; by default this process's.
            cwd: its working folder; by default this process's.
            ports: where it listens: the port that it would have in a container, and the one that it has on this machine.
        """
        self.id = uuid.uuid4().hex * 2
        self.name = name
        self.status = "created"
        self._command = list(command)
        self._log = log
        self._env = dict(os.environ if env is None else env)
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self._paused = False
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": socket.gethostname(), "Cmd": self._command, "Env": [f"{k}={v}" for k, v in self._env.items()]},
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {
                "Networks": {"host": {"IPAddress": HOST}},
                "Ports": {f"{inside}/tcp": [{"HostIp": HOST, "HostPort": str(port)}] for inside, port in (ports or {}).items()},
            },
            "State": {"Pid": 0, "ExitCode": 0},
        }

    def start(self) -> Self:
        """Start it, where it does not run.

        Raises:
            OSError: there is no such program, or the log cannot be written.
        """
        if self._running is None:
            with self._log.open("ab") as output:
                self._popen = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                )
            self._paused = False
        self.reload()
        return self

    def stop(self, timeout: float = 10) -> None:
        """SIGTERM, and SIGKILL for what is left after ``timeout`` seconds."""
        self._end_paused()
        if process := self._running:
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self.reload()

    def restart(self, timeout: float = 10) -> None:
        """Stop it, and start it again with the same command."""
        self.stop(timeout)
        self.start()

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal, by name or number; by default SIGKILL, which goes to all that it started, too.

        Raises:
            RuntimeError: it does not run, as with a container.
        """
        process = self._running
        if process is None:
            raise RuntimeError(f"{self.name} is not running")
        number = _number(signal)
        if number == _number("SIGKILL"):
            self._signal_all(number)
            process.wait(30)
        else:
            process.send_signal(number)
        self.reload()

    def pause(self) -> None:
        """Hold it and all that it started; its ports stay open, but nothing answers."""
        self._signal_all(signal.SIGSTOP)
        self._paused = True
        self.reload()

    def unpause(self) -> None:
        """Let it go on."""
        self._end_paused()
        self.reload()

    def wait(self, timeout: float | None = None) -> dict[str, int]:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: the time is over.
        """
        if self._popen is not None:
            self._popen.wait(timeout)
        self.reload()
        return {"StatusCode": self.attrs["State"]["ExitCode"]}

    def remove(self, *, force: bool = False, **_: object) -> None:
        """End it; its log stays.

        Args:
            force: also when it runs.

        Raises:
            RuntimeError: it runs.
        """
        if self._running is not None:
            if not force:
                raise RuntimeError(f"{self.name} is running")
            self.kill()

    def reload(self) -> None:
        """Look at the process again; sets ``status`` and ``attrs``."""
        if self._popen is None:
            return
        code = self._popen.poll()
        if code is not None and self.status != "exited":
            self._signal_all(signal.SIGKILL)  # as the end of a container's first process ends the others
        self.status = "exited" if code is not None else "paused" if self._paused else "running"
        exit_code = 0 if code is None else code if code >= 0 else 128 - code
        self.attrs["State"] = {"Pid": self._popen.pid if code is None else 0, "ExitCode": exit_code}

    def logs(self, **_: object) -> bytes:
        """All that it has written, of all its starts."""
        return self._log.read_bytes() if self._log.exists() else b""

    def exec_run(self, cmd: str | Sequence[str], **_: object) -> tuple[int, bytes]:
        """Run another program in its environment and folder; exit code, and output with errors."""
        command = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
        done = subprocess.run(command, env=self._env, cwd=self._cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout

    @property
    def _running(self) -> subprocess.Popen[bytes] | None:
        return self._popen if self._popen is not None and self._popen.poll() is None else None

    def _end_paused(self) -> None:
        if self._paused:
            self._signal_all(signal.SIGCONT)
            self._paused = False

    def _signal_all(self, number: int) -> None:
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
                os.killpg(self._popen.pid, number)


class LocalContainer(CeleryTestContainer):  # type: ignore[misc]  # pytest-celery publishes no types
    """Mix-in for a subclass of ``CeleryTestContainer`` around a :class:`LocalProcess`; stands before it among the bases."""

    def get_addr(self, port: str) -> tuple[str, int]:
        """Where a port of the container is on this machine, also where this machine is itself a container."""
        return HOST, int(self.ports[port][0])

    def get_open_tcp_ports(self) -> list[str]:
        """The declared ports that take connections; ``ready()`` waits until that is all of them."""
        return [port.partition("/")[0] for port in self.ports if _listens(self.get_addr(port))]

    @property
    def url(self) -> str:
        """The address for other nodes, which is the one for the test: all are on one machine."""
        return str(self.host_url)

    def teardown(self) -> None:
        """End the process."""
        super().teardown()
        self._container.remove(force=True)


class LocalTestWorker(CeleryTestWorker):  # type: ignore[misc]  # pytest-celery publishes no types
    """A worker node with the host's name in its own, where a container has its id: ``-n name@%h``."""

    def hostname(self) -> str:
        """The worker's node name."""
        return f"{self.worker_name}@{self.container.attrs['Config']['Hostname']}"


def _number(name: str | int | None) -> int:
    if name is None:
        return signal.SIGKILL
    if isinstance(name, int):
        return name
    return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]


def _listens(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=1):
            return True
    except OSError:
        return False
