"""Which requests share an inbox document.

Guarantees: the events of one request lie in one document; within a document a key stands once; a request that holds another
digest of a key goes into another document, so that both are judged by the listeners; the oldest requests go first. Nothing
here waits or talks to a server.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from app.events.event import Event
from app.stores.records import Entry
from app.stores.submission import Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A submission that waits for its write; ``stored`` becomes the batch id."""

    submission: Submission
    door: str
    stored: asyncio.Future[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one document and one write may hold. Several requests share a document up to ``document_bytes``; one may have more."""

    document_events: int
    document_bytes: int
    write_documents: int
    write_bytes: int


@dataclass(slots=True)
class Draft:
    """An inbox document in the making."""

    door: str
    events: list[Event] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    waiters: list[Waiter] = field(default_factory=list)
    size: int = 0
    _digests: dict[str, str] = field(default_factory=dict)

    def add(self, waiter: Waiter) -> None:
        """Take a request in; what is here already is not taken twice."""
        submission = waiter.submission
        for event, entry, size in zip(submission.events, submission.entries, submission.sizes, strict=True):
            if entry.key not in self._digests:
                self._digests[entry.key] = entry.digest
                self.events.append(event)
                self.entries.append(entry)
                self.size += size
        self.waiters.append(waiter)

    def has_room_for(self, waiter: Waiter, limits: Limits) -> bool:
        """Whether a request fits in as a whole and disagrees with nothing here."""
        submission = waiter.submission
        if waiter.door != self.door or self.size + submission.size > limits.document_bytes:
            return False
        fresh = 0
        for entry in submission.entries:
            held = self._digests.get(entry.key)
            if held is None:
                fresh += 1
            elif held != entry.digest:
                return False
        return len(self.entries) + fresh <= limits.document_events


def take_group(waiting: deque[Waiter], limits: Limits) -> list[Draft]:
    """Take from the head of the queue what goes into the next write: at least the first request."""
    drafts: list[Draft] = []
    size = 0
    while waiting:
        waiter = waiting[0]
        if drafts and size + waiter.submission.size > limits.write_bytes:
            break
        draft = next((d for d in drafts if d.has_room_for(waiter, limits)), None)
        if draft is None:
            if len(drafts) == limits.write_documents:
                break
            draft = Draft(waiter.door)
            drafts.append(draft)
        draft.add(waiter)
        size += waiter.submission.size
        waiting.popleft()
    return drafts
