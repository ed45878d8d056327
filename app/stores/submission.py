"""What one request brings, made ready to be stored: each event encoded once.

Guarantees: a submission fits into one inbox document. The same for every door, so that a request which one of them takes is taken by
the others too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bson.errors import BSONError

from app.errors import InvalidEvent
from app.events.event import Event
from app.stores.records import Entry, entry_of

MAX_REQUEST_BYTES = 12 * 1024 * 1024
"""Most bytes of one request's events as BSON: one request is one document, and MongoDB's limit is 16 MiB. (BSON may be six times
as long as its JSON: a digit in an array takes twelve bytes.)"""
_ENTRY_OVERHEAD = 64
"""Names, types and lengths of an element of ``events``, rounded up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The events of one request, checked and encoded, ready to be stored.

    Attributes:
        events: the events, each key once.
        entries: their stored form, in the same order.
        sizes: the bytes that each takes in a document.
        size: the sum of these.
    """

    events: tuple[Event, ...]
    entries: tuple[Entry, ...]
    sizes: tuple[int, ...]
    size: int

    @property
    def keys(self) -> tuple[str, ...]:
        """Their keys, in the same order."""
        return tuple(event.key for event in self.events)


def prepare(events: Sequence[Event]) -> Submission:
    """Encode events once; to be called in a worker thread where there are many.

    Args:
        events: checked, each key once and no more than a document may hold, as :class:`~app.events.parsing.EventParser` gives them.

    Raises:
        InvalidEvent: 413 too large for one inbox document; 422 one that BSON cannot hold.
    """
    entries: list[Entry] = []
    sizes: list[int] = []
    size = 0
    for index, event in enumerate(events):
        entries.append(_encoded(event, index))
        sizes.append(_size(entries[-1]))
        size += sizes[-1]
        if size > MAX_REQUEST_BYTES:
            raise InvalidEvent(
                f"the first {index + 1} events alone take {size} bytes in MongoDB; {MAX_REQUEST_BYTES} fit into one request: send fewer",
                status=413,
            )
    return Submission(events=tuple(events), entries=tuple(entries), sizes=tuple(sizes), size=size)


def _encoded(event: Event, index: int) -> Entry:
    try:
        return entry_of(event)
    except (BSONError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise InvalidEvent(f"the event cannot be stored: {str(error)[:200]}", index=index, field="data") from error


def _size(entry: Entry) -> int:
    return len(entry.body.raw) + 4 * (len(entry.key) + len(entry.type)) + len(entry.digest) + _ENTRY_OVERHEAD
