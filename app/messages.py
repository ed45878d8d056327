"""What the broadcaster announces, and what a Celery task carries: batch ids, keys and digests, never bodies.

An announcement is of one batch. A delivery is of one, or of several small ones that travel together (:mod:`broadcaster.together`). A key stands
once in either. A batch all of whose events stand in the delivery already has no events of its own there. A field that is not in this table is not
passed on.

| field | type | in an announcement | in a delivery | meaning |
|---|---|---|---|---|
| ``v`` | int | x | x | version |
| ``batch`` | str or None | x | x | inbox batch, the first of several; None: the bodies are in ``failures`` |
| ``keys``, ``digests`` | lists of str | x | x | the events, in the batch's order |
| ``types`` | list of str | x | x | distinct event types |
| ``type_of`` | list of int | x | x | index into ``types`` for each event; absent when there is one type |
| ``accepted_ms`` | int | x | x | when a door took the batch |
| ``bytes`` | int or None | x | | what its events take in the inbox; absent: unknown |
| ``parts`` | list of [str, int, int] | | x | for each of several batches: its id, how many of the events are its, in their order, ``accepted_ms``; absent for one |
| ``deployment`` | str | | x | whose claims to use |
| ``seq`` | int | | x | order of forwarding; 0 on the recovery queue |
| ``forwards`` | int | | x | how often the batch has been sent, this time included |
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, TypeVar

import msgspec

from app.errors import PermanentError
from app.naming import MESSAGE_VERSION

EventRef = tuple[str, str, str]
"""What a delivery says of an event: ``(key, digest, type)``."""
Announcement = dict[str, Any]
"""As :func:`announcement` builds it."""
Instant = Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800_000)]
"""Milliseconds since the epoch, up to the year 9999."""

MAX_ANNOUNCEMENTS = 10_000
"""In one message; the broadcaster sends at most some 2,000."""
_FAULTS = 10
"""Different ones that are named of a message."""


class UnreadableMessage(PermanentError):
    """A message is of another version, or not of the form that this process knows; the sweeper will send its batch again."""


class Part(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """One of the batches of a delivery.

    Attributes:
        batch: its id; None: the bodies are in ``failures``.
        events: how many of the delivery's events are its, in the delivery's order.
        accepted_ms: when a door took it, in milliseconds since the epoch.
    """

    batch: str | None
    events: Annotated[int, msgspec.Meta(ge=0)]
    accepted_ms: Instant

    @cached_property
    def accepted_at(self) -> datetime:
        """When a door took it."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.accepted_ms)


class _Listed(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Events, as announcements and deliveries list them."""

    v: int
    keys: list[str]
    digests: list[str]
    types: list[str]
    type_of: list[int] | None = None
    accepted_ms: Instant


class _Announced(_Listed, frozen=True, kw_only=True, omit_defaults=True):
    batch: str
    bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None


_Form = TypeVar("_Form", bound=_Listed)


class Delivery(_Listed, frozen=True, kw_only=True):
    """A task's message, checked. What is made of it is made once."""

    batch: str | None
    parts: list[Part] | None = None
    deployment: str
    seq: int
    forwards: int

    @cached_property
    def events(self) -> list[EventRef]:
        """Its events."""
        if self.type_of is None:
            kind = self.types[0]
            return [(key, digest, kind) for key, digest in zip(self.keys, self.digests, strict=True)]
        return [(k, d, self.types[t]) for k, d, t in zip(self.keys, self.digests, self.type_of, strict=True)]

    @cached_property
    def batches(self) -> list[Part]:
        """The batches that its events are from, one or several."""
        return self.parts or [Part(self.batch, len(self.keys), self.accepted_ms)]

    def part_of(self, key: str) -> Part:
        """The batch that an event is from, by its key."""
        return self.batches[0] if len(self.batches) == 1 else self._part_by_key[key]

    @cached_property
    def _part_by_key(self) -> dict[str, Part]:
        return dict(zip(self.keys, (part for part in self.batches for _ in range(part.events)), strict=True))


def announcement(batch_id: str | None, events: Sequence[EventRef], accepted_at: datetime, *, size: int | None = None) -> Announcement:
    """What goes over ``/bridge`` for a batch, whose events take ``size`` bytes in the inbox."""
    message: Announcement = {
        "v": MESSAGE_VERSION,
        "batch": batch_id,
        "keys": [key for key, _, _ in events],
        "digests": [digest for _, digest, _ in events],
        **_typed([kind for _, _, kind in events]),
        "accepted_ms": int(accepted_at.timestamp() * 1000),
    }
    return message if size is None else message | {"bytes": size}


def delivery(announced: Sequence[Announcement], *, deployment: str, seq: int, forwards: int) -> dict[str, Any]:
    """A task's message: what was announced of one batch or of several, and who sends it in which order.

    Args:
        announced: at least one batch; several have no key in common, but that all events of one may be among those before it.
        deployment: whose claims to use.
        seq: place in the order of forwarding; 0 on the recovery queue.
        forwards: how often these batches have been sent, this time included.
    """
    first = announced[0]
    message = {"v": MESSAGE_VERSION, "batch": first["batch"], "accepted_ms": first["accepted_ms"]}
    message |= {"deployment": deployment, "seq": seq, "forwards": forwards}
    if len(announced) == 1:
        return message | {name: first[name] for name in ("keys", "digests", "types", "type_of") if name in first}
    events: dict[str, tuple[str, str]] = {}
    parts: list[list[Any]] = []
    for one in announced:
        before = len(events)
        for key, digest, kind in zip(one["keys"], one["digests"], _kinds(one), strict=True):
            events.setdefault(key, (digest, kind))
        if parts and parts[-1][::2] == [one["batch"], one["accepted_ms"]]:
            parts[-1][1] += len(events) - before
        else:
            parts.append([one["batch"], len(events) - before, one["accepted_ms"]])
    digests, kinds = zip(*events.values(), strict=True)
    return message | {"keys": list(events), "digests": list(digests), **_typed(kinds), "parts": parts}


def _kinds(announced: Announcement) -> list[str]:
    """The type of each event."""
    types, of = announced["types"], announced.get("type_of")
    return [types[number] for number in of] if of is not None else [types[0]] * len(announced["keys"])


def _typed(kinds: Sequence[str]) -> dict[str, Any]:
    """``types``, and ``type_of`` where there are several."""
    index = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return {"types": list(index)} | ({"type_of": [index[kind] for kind in kinds]} if len(index) > 1 else {})


def read_announcements(received: Any) -> tuple[list[Announcement], list[str]]:
    """Those of one message's announcements that this process can read, and what is wrong with the others.

    Returns:
        The announcements, with the fields of the table above and no others; and some different faults, each in a short sentence.
    """
    read: list[Announcement] = []
    faults: set[str] = set()
    listed = received if isinstance(received, list) else [received]
    for one in listed[:MAX_ANNOUNCEMENTS]:
        try:
            read.append(msgspec.to_builtins(_announced(one)))
        except UnreadableMessage as error:
            if len(faults) < _FAULTS:
                faults.add(str(error)[:200])
    if len(listed) > MAX_ANNOUNCEMENTS:
        faults.add(f"a message has more than {MAX_ANNOUNCEMENTS} announcements")
    return read, sorted(faults)


def _announced(one: Any) -> _Announced:
    read = _checked(one, _Announced, "an announcement")
    if len(set(read.keys)) != len(read.keys):
        raise UnreadableMessage("an announcement is malformed: a key stands twice")
    try:
        "".join([read.batch, *read.keys, *read.digests, *read.types]).encode()
    except UnicodeEncodeError as error:
        raise UnreadableMessage("an announcement is malformed: its texts are no Unicode") from error
    return read


def read_delivery(message: Any) -> Delivery:
    """Check a task's message.

    Raises:
        UnreadableMessage: not of this version, or malformed.
    """
    read = _checked(message, Delivery, "the message")
    if read.parts is not None and (sum(part.events for part in read.parts) != len(read.keys) or len(set(read.keys)) != len(read.keys)):
        raise UnreadableMessage("the message is malformed: its batches do not fit its keys")
    return read


def _checked(message: Any, form: type[_Form], what: str) -> _Form:
    version = message.get("v") if isinstance(message, dict) else None
    if version != MESSAGE_VERSION:
        raise UnreadableMessage(f"{what} has version {repr(version)[:40]}, this process knows {MESSAGE_VERSION}: upgrade it")
    try:
        read = msgspec.convert(message, form)
    except msgspec.ValidationError as error:
        raise UnreadableMessage(f"{what} is malformed: {error}") from error
    lengths = {len(read.keys), len(read.digests)} | ({len(read.type_of)} if read.type_of is not None else set())
    if len(lengths) != 1 or not read.keys or not read.types or not all(0 <= t < len(read.types) for t in read.type_of or ()):
        raise UnreadableMessage(f"{what} is malformed: its lists do not fit each other")
    return read
