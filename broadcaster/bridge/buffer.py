"""What a foreign server sent and is not yet accepted: bounded by number and by bytes, giving up what comes when it is full.

A foreign server is not asked to send again, so what is given up here is lost, and counted. Thread-safe.
"""

import threading
from collections import deque
from typing import Any

MAX_PAYLOADS = 10_000
MAX_BYTES = 32 * 1024 * 1024


class Buffer:
    """A queue from a connection to whoever accepts.

    Attributes:
        received: payloads that arrived.
        refused: of these, the ones that found no room.
    """

    def __init__(self, *, max_payloads: int = MAX_PAYLOADS, max_bytes: int = MAX_BYTES) -> None:
        self._max_payloads = max_payloads
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self.received = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, payload: Any, size: int) -> bool:
        """Hold a payload of ``size`` bytes on the wire. Returns whether there was room; an empty buffer has room for any one."""
        with self._changed:
            self.received += 1
            if self._waiting and (len(self._waiting) >= self._max_payloads or self._bytes + size > self._max_bytes):
                self.refused += 1
                return False
            self._waiting.append((payload, size))
            self._bytes += size
            self._changed.notify()
            return True

    def first(self, most: int, timeout_s: float) -> list[Any]:
        """The oldest payloads, at most ``most``; waits for the first one. They stay until :meth:`drop`."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            return [payload for (payload, _), _ in zip(self._waiting, range(most), strict=False)]

    def drop(self, number: int) -> None:
        """Let the oldest ``number`` payloads go: they are accepted, kept as malformed, or given up."""
        with self._changed:
            for _ in range(number):
                self._bytes -= self._waiting.popleft()[1]
