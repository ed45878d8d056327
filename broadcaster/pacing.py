"""How often a small inbox document may begin: quick while it is quiet, together while it is busy.

Each document costs every listener a task, whether it holds one event or 500. So single events go at once as long as there are few of them;
when more come, each document waits for the next ones, a fiftieth of a second at most with the numbers below, and holds what came meanwhile.
A document that is large anyway waits for nothing.
"""

import time
from collections.abc import Callable

PER_S = 50
"""Documents of one event that may begin in a second, for as long as one likes."""
BURST = 20
"""And so many at once after a quiet time."""
LARGE = 250
"""Events from which on a document costs nothing; one of half as many costs half."""


class Pace:
    """A token bucket. For one thread.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(BURST)
        self._filled_at = clock()

    def wait_s(self, events: int) -> float:
        """How long a document with so many events has to wait; with 0 it counts as begun."""
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._filled_at) * PER_S)
        self._filled_at = now
        cost = max(0.0, 1 - events / LARGE)
        if cost <= self._tokens:
            self._tokens -= cost
            return 0.0
        return (cost - self._tokens) / PER_S
