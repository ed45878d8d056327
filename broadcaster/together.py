"""Which small batches travel in one delivery, so that many single events do not cost many tasks.

Guarantees: within a delivery a key stands once; what is large, or of unknown size, travels alone; the oldest begin the first delivery.
Pure functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.messages import Announcement

MAX_EVENTS = 250
"""Most events of several batches; from so many on a batch travels alone."""
MAX_BYTES = 4 * 1024 * 1024
"""Most bytes of several batches: the winner has all of them in memory."""
_OPEN = 8
"""So many deliveries are looked at for room; more are open only where keys stand in many batches."""


@dataclass(slots=True)
class _Draft:
    """A delivery in the making."""

    batches: list[Announcement] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    size: int = 0

    def has_room_for(self, announced: Announcement, size: int, max_events: int) -> bool:
        keys = announced["keys"]
        return len(self.keys) + len(keys) <= max_events and self.size + size <= MAX_BYTES and self.keys.isdisjoint(keys)

    def add(self, announced: Announcement, size: int) -> None:
        self.batches.append(announced)
        self.keys.update(announced["keys"])
        self.size += size


def together(announced: Sequence[Announcement], *, max_events: int = MAX_EVENTS) -> list[list[Announcement]]:
    """Group batches into deliveries.

    Args:
        announced: of batches that may be handed out in any order.
        max_events: most events of several batches.

    Returns:
        Each of them once; the groups in the order of their first batches.
    """
    drafts: list[_Draft] = []
    open_: list[_Draft] = []
    for one in announced:
        size = one.get("bytes")
        small = size is not None and len(one["keys"]) < max_events
        draft = next((d for d in open_ if d.has_room_for(one, size or 0, max_events)), None) if small else None
        if draft is None:
            draft = _Draft()
            drafts.append(draft)
            if small:
                open_ = [*open_[1 - _OPEN :], draft]
        draft.add(one, size or 0)
    return [draft.batches for draft in drafts]
