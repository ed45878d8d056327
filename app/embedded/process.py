"""A managed child process: started, awaited, paused, stopped, with its output in a log file.

Guaranteed: a child runs in a session of its own, so that Ctrl-C or a closed terminal reaches only the starter, which then stops
things in order; on Linux it does not outlive the starter (see ``app.embedded.tether``); when the child ends, what it left in its
process group is killed. Not guaranteed: anything about descendants that open a session of their own.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from app.embedded import tether
from app.errors import ServerStartError

_POLL_S = 0.02
_TAIL_BYTES = 256 * 1024
_LOG_MAX_BYTES = 16 * 1024 * 1024

Explain = Callable[[int | None, str], str | None]
"""From an exit code (None: still running) and the end of a log to one sentence with the remedy, or None when nothing is known."""


class ManagedProcess:
    """One child process.

    The object may be started again after its end. Methods may be called from any thread, but not from several at a time.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        explain: Explain | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: what messages call it, as ``listener-1``.
            argv: the program and its arguments; looked up on ``PATH``.
            log: file that gets its output and errors, appended; at 16 MiB the old one is kept as ``<log>.1``.
            env: its whole environment; by default this process's.
            cwd: its working folder; by default this process's.
            explain: turns a failed start into one plain sentence.
        """
        self.name = name
        self.argv = [str(part) for part in argv]
        self.log = log
        self.env = dict(env) if env is not None else None
        self.cwd = cwd
        self._explain = explain
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._swept = True

    def start(self) -> Self:
        """Start the process; does not wait for it to be of use, see ``wait_until``.

        Raises:
            ServerStartError: it runs already, or its log cannot be written.
        """
        if self.alive:
            raise ServerStartError(f"{self.name} is running already (pid {self.pid})")
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > _LOG_MAX_BYTES:
                self.log.replace(self.log.with_name(self.log.name + ".1"))
            with self.log.open("ab") as output:
                self._log_start = output.tell()
                self._popen = _spawned(lambda: self._fork(output.fileno()))
        except OSError as error:
            raise ServerStartError(f"{self.name} cannot start: {error.strerror or error} ({error.filename or self.log})") from error
        self._swept = False
        return self

    def _fork(self, output: int) -> subprocess.Popen[bytes]:
        argv = self.argv
        if sys.platform == "linux":
            argv = [sys.executable, "-I", "-S", tether.__file__, str(int(signal.SIGKILL)), str(os.getpid()), *argv]
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.env, cwd=self.cwd, start_new_session=True
        )

    @property
    def pid(self) -> int:
        """Its process id, also of its process group.

        Raises:
            ServerStartError: it was never started.
        """
        if self._popen is None:
            raise ServerStartError(f"{self.name} was never started")
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal's number when a signal ended it; None while it runs or was never started."""
        if self._popen is None:
            return None
        code = self._popen.poll()
        if code is not None and not self._swept:
            self._swept = True  # once, now: later the number may belong to another group
            self._signal_group(signal.SIGKILL)
        return code

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self.returncode is None

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float, what: str = "become ready") -> None:
        """Wait until a condition holds while the process lives.

        Args:
            ready: asked every 20 ms; it raises nothing for "not yet".
            timeout_s: longest wait.
            what: what it should do, for the message: "broadcaster did not *become ready* within 10 s".

        Raises:
            ServerStartError: it ended, or the time is over; one sentence, and the end of its log when no cause is known.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            code = self.returncode
            if code is not None or time.monotonic() > deadline:
                raise self._failure(code, f"did not {what} within {timeout_s:g} s" if code is None else f"ended {in_words(code)} on start")
            if ready():
                return
            time.sleep(_POLL_S)

    def _failure(self, code: int | None, happened: str) -> ServerStartError:
        known = self._explain(code, self.log_tail(200)) if self._explain else None
        if known:
            return ServerStartError(f"{self.name} cannot start: {known}")
        tail = self.log_tail(12)
        return ServerStartError(
            f"{self.name} {happened}; its log is {self.log}" + (f", which ends:\n{tail}" if tail else " and says nothing")
        )

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code as soon as it ends, or None when it has not within the time."""
        if self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
        return self.returncode

    def ask_to_stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Send the process itself, not its group, a signal; nothing happens when it has ended."""
        if self.alive:
            self._signal_group(signal.SIGCONT)  # a paused one could not hear it
            os.kill(self.pid, signum)

    def terminate(self, *, deadline_s: float = 10.0) -> int | None:
        """Ask it to stop, wait, and kill it and its group at the deadline; returns its exit code. Harmless when repeated."""
        self.ask_to_stop()
        if self.wait(deadline_s) is None:
            self.kill()
        return self.returncode

    def kill(self) -> None:
        """SIGKILL to it and its whole group, and wait for its end; as when a machine dies. Harmless when repeated."""
        if self.alive:
            self._signal_group(signal.SIGKILL)
            self.wait(30.0)

    def pause(self) -> None:
        """SIGSTOP to it and its group; the port stays open, but nothing answers."""
        if self.alive:
            self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to it and its group."""
        if self.alive:
            self._signal_group(signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that it wrote since its last start."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - _TAIL_BYTES))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _signal_group(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
            os.killpg(self.pid, signum)


def in_words(code: int) -> str:
    """How a process ended, from its exit code: ``with exit code 1``, ``by SIGKILL``."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


class _Spawner:
    """The one thread that starts children, and that lives as long as the process; see ``app.embedded.tether``."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.pid = os.getpid()
        threading.Thread(target=self._run, name="spawner", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()

    def run(self, job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        future: Future[subprocess.Popen[bytes]] = Future()

        def attempt() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  it is raised again in the caller
                future.set_exception(error)

        self._jobs.put(attempt)
        return future.result()


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _spawned(job: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    global _spawner  # noqa: PLW0603  one thread per process is the point
    with _spawner_lock:
        if _spawner is None or _spawner.pid != os.getpid():  # a fork does not copy the thread
            _spawner = _Spawner()
    return _spawner.run(job)
