"""How often small deliveries may be sent: at once while it is quiet, together while it is busy.

Each delivery costs every listener a task and the winner half a dozen round trips, whether it holds one event or 250. So single events go at once
as long as there are few of them; when more come, they wait for the next ones, a thirtieth of a second with the numbers below, and travel with what
came meanwhile. The producers have had their answers by then. What is large anyway waits for nothing. What cannot travel together waits for its
turns, and no longer than a burst takes. While listeners do not keep up, fewer and larger deliveries help them to.
"""

import time
from collections.abc import Callable, Iterable

from broadcaster.together import MAX_EVENTS

PER_S = 60
"""Deliveries of one event that may be sent in a second, for as long as one likes."""
BURST = 20
"""And so many at once after a quiet time."""
BEHIND_PER_S = 30
"""The same while listeners do not keep up."""
SEVERAL = 2.0
"""What a delivery of a few events costs, as against a single one's 1: who has to wait anyway may wait for more company."""
LARGE = MAX_EVENTS
"""Events from which on a delivery costs nothing here; one of half as many costs half of what a few do."""


class Pace:
    """A token bucket. For one thread.

    Args:
        clock: seconds, never going back.

    Attributes:
        behind: whether listeners do not keep up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(BURST)
        self._filled_at = clock()
        self.behind = False

    def wait_s(self, deliveries: Iterable[int]) -> float:
        """How long deliveries of so many events each have to wait; with 0 they count as sent."""
        now = self._clock()
        per_s = BEHIND_PER_S if self.behind else PER_S
        self._tokens = min(BURST, self._tokens + (now - self._filled_at) * per_s)
        self._filled_at = now
        cost = min(BURST, sum(map(_cost, deliveries)))
        if cost <= self._tokens:
            self._tokens -= cost
            return 0.0
        return (cost - self._tokens) / per_s


def _cost(events: int) -> float:
    return max(0.0, 1 - events / LARGE) * (1.0 if events == 1 else SEVERAL)
