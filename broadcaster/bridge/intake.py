"""What was announced and is not yet forwarded: bounded by its number of events, dropping what comes when it is full.

What is dropped is in the inbox, and the sweeper sends it. Thread-safe.
"""

import threading
from collections import deque
from collections.abc import Iterable

from app.messages import Announcement


class Intake:
    """A queue from the feeds to the forwarder.

    Args:
        max_events: so many events are held at most.
    """

    def __init__(self, max_events: int) -> None:
        self._max_events = max_events
        self._waiting: deque[Announcement] = deque()
        self._events = 0
        self._held: set[str] = set()
        self._own: set[str] = set()
        self._changed = threading.Condition()

    def offer(self, announcements: Iterable[Announcement], *, own: bool = False) -> int:
        """Hold announcements until they are taken. Returns how many there was no room for.

        Args:
            announcements: of accepted batches.
            own: this process accepted them, so nobody else announces them: it forwards them also while another bridge is active.
        """
        dropped = 0
        with self._changed:
            for announced in announcements:
                size = len(announced["keys"])
                if self._events + size > self._max_events and self._waiting:
                    dropped += 1
                    continue
                self._waiting.append(announced)
                self._events += size
                self._held.add(announced["batch"])
                if own:
                    self._own.add(announced["batch"])
            self._changed.notify()
        return dropped

    def take(self, max_events: int, timeout_s: float) -> list[Announcement]:
        """Take what waits, in its order: at least one where there is one, up to about ``max_events`` events.

        What is taken stays *held* until :meth:`release`.

        Args:
            max_events: bound; the first announcement is taken whatever its size.
            timeout_s: longest wait for the first one.
        """
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            taken: list[Announcement] = []
            events = 0
            while self._waiting and (not taken or events + len(self._waiting[0]["keys"]) <= max_events):
                announced = self._waiting.popleft()
                events += len(announced["keys"])
                taken.append(announced)
            self._events -= events
            return taken

    def release(self, batches: Iterable[str]) -> None:
        """Say that taken batches are noted as forwarded, or given up."""
        with self._changed:
            gone = set(batches)
            self._held -= gone
            self._own -= gone

    def owns(self, batch: str) -> bool:
        """Whether a batch that is held was accepted by this process."""
        return batch in self._own

    def holds(self, batch: str) -> bool:
        """Whether a batch was announced and is neither noted as forwarded nor given up."""
        return batch in self._held

    def clear(self) -> None:
        """Give up everything that waits, but for what this process accepted itself."""
        with self._changed:
            kept = deque(announced for announced in self._waiting if announced["batch"] in self._own)
            self._held.difference_update(a["batch"] for a in self._waiting if a["batch"] not in self._own)
            self._waiting = kept
            self._events = sum(len(announced["keys"]) for announced in kept)
