"""What the broadcaster announces, and what a Celery task carries: batch id, keys and digests, never bodies.

| field | type | in an announcement | in a delivery | meaning |
|---|---|---|---|---|
| ``v`` | int | x | x | version |
| ``batch`` | str or None | x | x | inbox batch; None: the bodies are in ``failures`` |
| ``keys``, ``digests`` | lists of str | x | x | the events, in the batch's order |
| ``types`` | list of str | x | x | distinct event types |
| ``type_of`` | list of int | x | x | index into ``types`` for each event; absent when there is one type |
| ``accepted_ms`` | int | x | x | when a door took the batch |
| ``deployment`` | str | | x | whose claims to use |
| ``seq`` | int | | x | order of forwarding; 0 on the recovery queue |
| ``forwards`` | int | | x | how often the batch has been sent, this time included |
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from app.errors import PermanentError
from app.naming import MESSAGE_VERSION


class UnreadableMessage(PermanentError):
    """A message is of another version, or not of the form that this process knows; the sweeper will send its batch again."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A task's message, checked. What is made of it is made once."""

    v: int
    batch: str | None
    keys: list[str]
    digests: list[str]
    types: list[str]
    type_of: list[int] | None = None
    accepted_ms: int
    deployment: str
    seq: int
    forwards: int

    @cached_property
    def events(self) -> list[tuple[str, str, str]]:
        """``(key, digest, type)`` of each event."""
        if self.type_of is None:
            kind = self.types[0]
            return [(key, digest, kind) for key, digest in zip(self.keys, self.digests, strict=True)]
        return [(k, d, self.types[t]) for k, d, t in zip(self.keys, self.digests, self.type_of, strict=True)]

    @cached_property
    def accepted_at(self) -> datetime:
        """When a door took the batch."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.accepted_ms)


def announcement(batch_id: str | None, events: Sequence[tuple[str, str, str]], accepted_at: datetime) -> dict[str, Any]:
    """What goes over ``/bridge`` for a batch of ``(key, digest, type)``."""
    types = list(dict.fromkeys(kind for _, _, kind in events))
    message: dict[str, Any] = {
        "v": MESSAGE_VERSION,
        "batch": batch_id,
        "keys": [key for key, _, _ in events],
        "digests": [digest for _, digest, _ in events],
        "types": types,
        "accepted_ms": int(accepted_at.timestamp() * 1000),
    }
    if len(types) > 1:
        index = {kind: i for i, kind in enumerate(types)}
        message["type_of"] = [index[kind] for _, _, kind in events]
    return message


def delivery(announced: dict[str, Any], *, deployment: str, seq: int, forwards: int) -> dict[str, Any]:
    """A task's message: an announcement, and who sends it in which order."""
    return announced | {"deployment": deployment, "seq": seq, "forwards": forwards}


def read_delivery(message: Any) -> Delivery:
    """Check a task's message.

    Raises:
        UnreadableMessage: not of this version, or malformed.
    """
    version = message.get("v") if isinstance(message, dict) else None
    if version != MESSAGE_VERSION:
        raise UnreadableMessage(f"the message has version {version!r}, this process knows {MESSAGE_VERSION}: upgrade it")
    try:
        read = msgspec.convert(message, Delivery)
    except msgspec.ValidationError as error:
        raise UnreadableMessage(f"the message is malformed: {error}") from error
    lengths = {len(read.keys), len(read.digests)} | ({len(read.type_of)} if read.type_of is not None else set())
    if len(lengths) != 1 or not read.keys or not read.types or not all(0 <= t < len(read.types) for t in read.type_of or ()):
        raise UnreadableMessage("the message is malformed: its lists do not fit each other")
    return read
