"""Which small batches travel in one delivery, so that many single events do not cost many tasks.

Guarantees: within a delivery a key stands once, with one digest; what is large, or of unknown size, travels alone; the oldest begin the first
delivery. A batch that repeats what stands in a delivery already travels with it: an event that is sent again and again is one event there.
Pure functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.messages import Announcement

MAX_EVENTS = 250
"""Most events of several batches; from so many on a batch travels alone."""
MAX_BATCHES = 1_000
"""Most batches; more than events only where they repeat each other."""
MAX_BYTES = 4 * 1024 * 1024
"""Most bytes of several batches: the winner has all of them in memory."""
_OPEN = 8
"""So many deliveries are looked at for room; more are open only where one key stands in many batches with different digests."""


@dataclass(slots=True)
class _Draft:
    """A delivery in the making."""

    batches: list[Announcement] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def has_room_for(self, announced: Announcement, size: int, max_events: int) -> bool:
        if self.size + size > MAX_BYTES or len(self.batches) >= MAX_BATCHES:
            return False
        keys = announced["keys"]
        if self.digests.keys().isdisjoint(keys):
            return len(self.digests) + len(keys) <= max_events
        return all(self.digests.get(key) == digest for key, digest in zip(keys, announced["digests"], strict=True))

    def add(self, announced: Announcement, size: int) -> None:
        self.batches.append(announced)
        self.digests.update(zip(announced["keys"], announced["digests"], strict=True))
        self.size += size


def together(announced: Sequence[Announcement], *, max_events: int = MAX_EVENTS) -> list[list[Announcement]]:
    """Group batches into deliveries.

    Args:
        announced: of batches that may be handed out in any order.
        max_events: most events of several batches.

    Returns:
        Each of them once; the groups in the order of their first batches.
    """
    groups: list[list[Announcement]] = []
    open_: list[_Draft] = []
    for one in announced:
        size = one.get("bytes")
        if size is None or len(one["keys"]) >= max_events:
            groups.append([one])
            continue
        draft = next((draft for draft in open_ if draft.has_room_for(one, size, max_events)), None)
        if draft is None:
            draft = _Draft()
            groups.append(draft.batches)
            open_ = [*open_[1 - _OPEN :], draft]
        draft.add(one, size)
    return groups
