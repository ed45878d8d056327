"""What the sweeper has seen: of listeners, of their queues, of the recovery queue, of batches. Pure memory, injected clock.

Lost with the process, and harmless so: a new sweeper begins with no proof, and waits a grace longer.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broadcaster.sweeper.hands import Settled


@dataclass(slots=True)
class _Listener:
    recent: deque[tuple[float, int, bool]] = field(default_factory=deque)
    settled: Settled = field(default_factory=Settled)

    def settle(self, until: float) -> None:
        while self.recent and self.recent[0][0] <= until:
            at, seq, empty = self.recent.popleft()
            self.settled = Settled(seq=max(seq, self.settled.seq), empty_at=at if empty else self.settled.empty_at)


class ListenerHistory:
    """What each listener had received, and when its queue was empty, at least a grace ago."""

    def __init__(self, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._listeners: dict[str, _Listener] = {}

    def observe(self, received: Mapping[str, int], depths: Mapping[str, int], now: float) -> dict[str, Settled]:
        """Take a sample of the live listeners.

        Args:
            received: highest sequence received, by listener.
            depths: deliveries waiting in its queue, by listener.
            now: this instant.

        Returns:
            What is settled of each of them.
        """
        self._listeners = {name: self._listeners.get(name) or _Listener() for name in received}
        for name, listener in self._listeners.items():
            listener.recent.append((now, received[name], depths.get(name, 1) == 0))
            listener.settle(now - self._grace_s)
        return {name: listener.settled for name, listener in self._listeners.items()}


class RecoveryHistory:
    """Which copies have left the recovery queue: first in, first out, so all but the last ones sent that are still in it.

    Counts what this process sent; deliveries of others in the queue make it err towards "still in the queue".
    """

    def __init__(self) -> None:
        self._sent: int | None = None
        self._place: dict[str, int] = {}
        self._taken_at: dict[str, float] = {}
        self._copy: dict[str, int] = {}

    def observe(self, batches: Iterable[str], depth: int, now: float) -> None:
        """Take a sample.

        Args:
            batches: every batch that went to the recovery queue and is unfinished.
            depth: deliveries waiting in the queue.
            now: this instant.
        """
        if self._sent is None:
            self._sent = depth
        known = set(batches)
        self._place = {batch: place for batch, place in self._place.items() if batch in known}
        self._taken_at = {batch: at for batch, at in self._taken_at.items() if batch in known}
        self._copy = {batch: copy for batch, copy in self._copy.items() if batch in known}
        for batch in known:
            place = self._place.setdefault(batch, self._sent)
            if place <= self._sent - depth:
                self._taken_at.setdefault(batch, now)

    def sent(self, *batches: str) -> int:
        """Note a copy that was sent, of one batch, of several, or of none. Returns its place in the order of sending."""
        self._sent = (self._sent or 0) + 1
        for batch in batches:
            self._place[batch] = self._copy[batch] = self._sent
            self._taken_at.pop(batch, None)
        return self._sent

    def copy(self, batch: str) -> str | None:
        """The copy in which this process sent a batch last, the same for all that share it; None where it sent none."""
        return f"copy {self._copy[batch]}" if batch in self._copy else None

    def left(self, depth: int) -> int:
        """The place up to which copies have left the queue, when ``depth`` deliveries wait in it."""
        return (self._sent or 0) - depth

    def taken_at(self, batch: str) -> float | None:
        """When the batch's copy was first seen to have left the queue, or None."""
        return self._taken_at.get(batch)


class BatchHistory:
    """When each batch was first seen in its present state."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}

    def observe(self, batches: Iterable[tuple[str, int]], now: float) -> None:
        """Take a sample: every batch with its number of forwards; those not named are forgotten."""
        present = list(batches)
        self._first = {batch: self._first.get(batch, now) for batch, _ in present}
        seen: dict[str, tuple[int, float]] = {}
        for batch, forwards in present:
            before = self._seen.get(batch)
            seen[batch] = before if before is not None and before[0] == forwards else (forwards, now)
        self._seen = seen

    def first_at(self, batch: str) -> float:
        """When it was first seen at all."""
        return self._first[batch]

    def seen_at(self, batch: str) -> float:
        """When it was first seen with as many forwards as at the last sample."""
        return self._seen[batch][1]
