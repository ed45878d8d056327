"""Events as the bytes of requests, made before a clock runs.

Real departures (``app.samples``) as data, each with an id of its own. Beyond 336,776 events the departures begin again under new ids;
their type is then ``bench.flight``, because the audit takes one departure under two keys for a mistake.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from app.samples import SOURCE, TOTAL, TYPE, flights

FLIGHT = TYPE
SYNTHETIC = "bench.flight"
MOST_PER_REQUEST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Which events to send, and how.

    Attributes:
        events: how many.
        start: the first departure to use.
        name: begins each id, so that two loads of different names share no event.
        type: of all events.
        per_request: events of a request.
        scattered: ids are hashes, in no order, instead of growing numbers; the ledger's index is then met at random places.
        payload_bytes: length of an event as JSON, reached by a text of other departures in place of its own; 0 leaves the departure (about 0.45 KiB).
        times: so often is every event sent; the repetitions follow after 20 requests.
    """

    events: int
    start: int = 0
    name: str = "run"
    type: str = FLIGHT
    per_request: int = MOST_PER_REQUEST
    scattered: bool = False
    payload_bytes: int = 0
    times: int = 1


_REPEATED_AFTER = 20
_POOL_LENGTH = 1_048_576


def events(load: Load) -> Iterator[dict[str, Any]]:
    """The events of a load, each once."""
    for number, row in enumerate(_departures(load.start, load.events)):
        event = row | {"type": load.type, "source": SOURCE, "id": id_of(load, number)}
        if load.payload_bytes:
            event["data"] = {"text": ""}
            missing = load.payload_bytes - len(msgspec.json.encode(event))
            event["data"] = {"text": _text(number, missing)}
        yield event


def bodies(load: Load) -> list[bytes]:
    """The bodies of all requests, in the order in which they are to be sent."""
    parts: list[bytes] = []
    waiting: list[dict[str, Any]] = []
    for event in events(load):
        waiting.append(event)
        if len(waiting) == load.per_request:
            parts.append(msgspec.json.encode(waiting))
            waiting = []
    if waiting:
        parts.append(msgspec.json.encode(waiting))
    if load.times == 1:
        return parts
    blocks = [parts[at : at + _REPEATED_AFTER] for at in range(0, len(parts), _REPEATED_AFTER)]
    return [part for block in blocks for part in block * load.times]


def id_of(load: Load, number: int) -> str:
    """The id of an event of a load, from 0."""
    plain = f"{load.name}-{number}"
    return hashlib.blake2b(plain.encode(), digest_size=12).hexdigest() if load.scattered else plain


def _text(number: int, length: int) -> str:
    at = number * 7_919 % _POOL_LENGTH
    return (_pool() * 2)[at : at + length]


@cache
def _pool() -> str:
    lines: list[str] = []
    length = 0
    for row in flights(_POOL_LENGTH // 50):
        lines.append(",".join(str(value) for value in row["data"].values()) + " ")
        length += len(lines[-1])
        if length >= _POOL_LENGTH:
            break
    return "".join(lines)[:_POOL_LENGTH]


def _departures(start: int, count: int) -> Iterator[dict[str, Any]]:
    while count > 0:
        start %= TOTAL
        part = min(count, TOTAL - start)
        yield from flights(part, start)
        start, count = start + part, count - part
