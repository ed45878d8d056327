"""Order and amount of what is forwarded: sequence numbers, and high- and low-water marks. Pure memory, injected clock."""

import time
from collections.abc import Callable, Iterable, Mapping


class Order:
    """Numbers in the order of forwarding: microseconds since the epoch, strictly growing.

    Args:
        clock_us: microseconds since the epoch; may jump.
    """

    def __init__(self, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._clock_us = clock_us
        self._last = 0

    def beyond(self, seq: int) -> None:
        """Go on after this number: another bridge, with a faster clock, has used it."""
        self._last = max(self._last, seq)

    def next(self) -> int:
        """The next number."""
        self._last = max(self._last + 1, self._clock_us())
        return self._last


class Gates:
    """Which queues take more: one that has reached the high-water mark takes none until it has drained to half of it.

    Args:
        high_water: deliveries waiting in a queue.
    """

    def __init__(self, high_water: int) -> None:
        self._high_water = high_water
        self._depths: dict[str, int] = {}
        self._closed: set[str] = set()
        self.stale = False
        """Whether something was sent since the queues were measured."""

    def measured(self, depths: Mapping[str, int]) -> None:
        """Take in how many deliveries wait, by queue; queues that are not named are forgotten."""
        self.stale = False
        self._depths = dict(depths)
        self._closed = {queue for queue in self._closed if self._depths.get(queue, 0) > self._high_water // 2}
        self._close_full(depths)

    def sent(self, queues: Iterable[str], deliveries: int) -> None:
        """Count deliveries that were sent to each of these queues since."""
        names = list(queues)
        self.stale = True
        for queue in names:
            self._depths[queue] = self._depths.get(queue, 0) + deliveries
        self._close_full(names)

    def open(self, queue: str) -> bool:
        """Whether a queue takes more."""
        return queue not in self._closed

    @property
    def any_closed(self) -> bool:
        """Whether some queue takes no more."""
        return bool(self._closed)

    def _close_full(self, queues: Iterable[str]) -> None:
        self._closed.update(queue for queue in queues if self._depths[queue] >= self._high_water)
