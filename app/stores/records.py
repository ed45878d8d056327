"""The records that pass between doors, stores and listeners, and their BSON form.

An *entry* is one event as the stores hold it: key, digest and type to decide by, and the body as BSON bytes that nobody
decodes before a handler asks for it.
"""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import bson
import msgspec
from bson.dbref import DBRef
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument

from app.events.event import Event
from app.naming import MESSAGE_VERSION

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Entry(msgspec.Struct, frozen=True):
    """One event in a batch: what decides (key, digest, type) and the body that only the winner needs."""

    key: str
    digest: str
    type: str
    body: RawBSONDocument


class Batch(msgspec.Struct, frozen=True):
    """1 to 500 events accepted together, as the inbox holds them."""

    id: str
    accepted_at: datetime
    door: str
    entries: list[Entry]


def new_batch_id() -> str:
    """A batch id: 26 characters, ordered by time of creation to the millisecond, 80 random bits."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def utc_now() -> datetime:
    """This instant, aware, cut to the milliseconds that BSON can hold."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def entry_of(event: Event) -> Entry:
    """An event with its body encoded.

    Raises:
        bson.errors.InvalidDocument, OverflowError: the body is beyond what BSON can hold; the door refuses such events before.
    """
    body: dict[str, Any] = {"source": event.source}
    if event.id is not None:
        body["id"] = event.id
    if event.time is not None:
        body["time"] = event.time
    body["data"] = event.data
    if event.extra:
        body["extra"] = event.extra
    return Entry(event.key, event.digest, event.type, RawBSONDocument(bson.encode(body)))


def event_of(entry: Entry) -> Event:
    """The event that an entry holds, decoded."""
    body = bson.decode(entry.body.raw)
    if b"$ref\x00" in entry.body.raw:
        body = _without_references(body)
    return Event(
        key=entry.key,
        digest=entry.digest,
        type=entry.type,
        source=body["source"],
        id=body.get("id"),
        time=body.get("time"),
        data=body.get("data"),
        extra=body.get("extra", {}),
    )


def _without_references(value: Any) -> Any:
    """The driver reads ``{"$ref": …, "$id": …}`` as a reference of its own; an event's data is data."""
    if isinstance(value, DBRef):
        value = value.as_doc().to_dict()
    if isinstance(value, dict):
        return {name: _without_references(part) for name, part in value.items()}
    return [_without_references(part) for part in value] if isinstance(value, list) else value


def inbox_document(batch_id: str, entries: Sequence[Entry], *, door: str, accepted_at: datetime) -> dict[str, Any]:
    """The inbox document of a new batch."""
    return {
        "_id": batch_id,
        "v": MESSAGE_VERSION,
        "accepted_at": accepted_at,
        "door": door,
        "seq": Int64(0),
        "forwarded_at": accepted_at,
        "forwards": 0,
        "count": len(entries),
        "bytes": sum(len(e.body.raw) for e in entries),
        "events": [{"key": e.key, "digest": e.digest, "type": e.type, "body": e.body} for e in entries],
    }


def entry_from(document: Any) -> Entry:
    """The entry in an element of an inbox document or in a failures document."""
    return Entry(document["key"], document["digest"], document["type"], document["body"])
