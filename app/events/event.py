"""The event as the whole system sees it.

Guaranteed: an ``Event`` that came from ``app.events.parsing`` is complete. Its key and digest are made, its strings are valid
Unicode, its integers fit into 64 bits, its floats are finite, and its data fits into a MongoDB document. Not guaranteed: that
its data means anything to a handler.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, accepted or about to be."""

    key: str
    """The dedup key: two events with this key are the same event."""
    digest: str
    """Digest of the content; another digest under the same key is a conflict."""
    type: str
    source: str
    id: str | None = None
    """As given by the producer, or its ``Idempotency-Key``; None where the type's policy makes the key from other fields."""
    time: str | None = None
    """RFC 3339 text as given."""
    data: Any = None
    """A JSON value, or bytes. Data that is absent and data that is ``null`` are the same thing: None."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other CloudEvents attributes, flat as in CloudEvents: ``subject``, ``datacontenttype``, ``dataschema``, and extensions
    such as ``traceparent``; only those that were given."""
