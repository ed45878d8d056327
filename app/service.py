"""A child process that is to stay: started, awaited, watched, started again when it ends by itself, but not for ever.

Guaranteed: after ``MAX_RESTARTS`` ends within ``WINDOW_S`` it is given up and said so, so that a process which cannot live
does not keep a machine busy. Not guaranteed: that a process which runs also works.
"""

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable

from app.embedded.process import ManagedProcess, in_words
from app.errors import ServerStartError

MAX_RESTARTS = 5
WINDOW_S = 60.0
_FIRST_PAUSE_S = 0.5
_POLL_S = 0.1


class Service:
    """One process of the system.

    Attributes:
        process: the process.
        given_up: it ended too often and is not started again.
    """

    def __init__(
        self,
        process: ManagedProcess,
        *,
        ready: Callable[[], bool],
        timeout_s: float = 60.0,
        stop_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is started yet.

        Args:
            process: not started.
            ready: whether it is of use; raises nothing.
            timeout_s: longest time from start to ready.
            stop_s: longest time from SIGTERM to its end.
            clock: seconds that never run backwards.
        """
        self.process = process
        self.given_up = False
        self.stop_s = stop_s
        self._ready = ready
        self._timeout_s = timeout_s
        self._clock = clock
        self._ends: deque[float] = deque()
        self._again_at: float | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.process.name

    def wait_ready(self) -> None:
        """Wait until it is of use.

        Raises:
            ServerStartError: it ended, or the time is over.
        """
        asked_at = float("-inf")

        def seldom() -> bool:
            nonlocal asked_at
            if time.monotonic() - asked_at < _POLL_S:
                return False
            asked_at = time.monotonic()
            return self._ready()

        self.process.wait_until(seldom, timeout_s=self._timeout_s)

    def look_after(self) -> str | None:
        """Start it again if it has ended; returns what is to be said, or None when nothing happened.

        Raises:
            ServerStartError: it cannot be started.
        """
        if self.given_up or self.process.alive:
            return None
        now = self._clock()
        if self._again_at is None:
            return self._note_end(now)
        if now < self._again_at:
            return None
        self._again_at = None
        self.process.start()
        return f"{self.name} is started again"

    def _note_end(self, now: float) -> str:
        self._ends.append(now)
        while now - self._ends[0] > WINDOW_S:
            self._ends.popleft()
        ended = f"{self.name} ended {in_words(self.process.returncode or 0)}"
        if len(self._ends) > MAX_RESTARTS:
            self.given_up = True
            return f"{ended}, for the {len(self._ends)}th time in a minute, and is not started again; its log is {self.process.log}"
        pause_s = 0.0 if len(self._ends) == 1 else _FIRST_PAUSE_S * 2 ** (len(self._ends) - 2)
        self._again_at = now + pause_s
        return f"{ended}; its log is {self.process.log}"


def cut_off(processes: Iterable[ManagedProcess]) -> None:
    """SIGKILL to processes and their groups, without waiting for their end.

    Safe in a signal handler: whoever is waiting for them, as an orderly stop under way does, sees them end.
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError, ServerStartError):
            os.killpg(process.pid, signal.SIGKILL)
