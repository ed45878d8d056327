"""What listeners tell whoever watches: who won and who skipped which events, while somebody wants to know.

| in Redis | type | lifetime | meaning |
|---|---|---|---|
| ``dedup:{deployment}:=watched`` | string | ``WATCHED_MS`` | somebody has a live page open; broadcasters write it again in time |
| ``dedup:{deployment}:=outcomes`` | pub/sub channel | | :class:`Told`, as JSON, one for several tasks of a listener |

(No event key begins with ``=``.) For looking at, and for nothing else: what is published may be missed, and of a batch only the first
``SAMPLE_EVENTS`` events are named. The numbers count every event of the tasks that are told of. The truth is in MongoDB.
"""

import msgspec

from app.naming import MESSAGE_VERSION

WATCHED_MS = 5_000
SAMPLE_EVENTS = 20
"""Events of one batch that are named. Every listener takes the first ones, so that all of them name the same."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of some tasks of one listener.

    Attributes:
        won, skipped, failed, left: events, as in the listener's tally.
        events: ``(key, outcome, why)`` of some; ``why`` is who has it (``done listener-2``) or why it failed (``dead``).
    """

    v: int = MESSAGE_VERSION
    listener: str
    won: int = 0
    skipped: int = 0
    failed: int = 0
    left: int = 0
    events: list[tuple[str, str, str]] = []


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Told)


def watched_key(deployment: str) -> str:
    """Redis key that says that somebody watches."""
    return f"dedup:{{{deployment}}}:=watched"


def channel(deployment: str) -> str:
    """Redis channel of the outcomes."""
    return f"dedup:{{{deployment}}}:=outcomes"


def encoded(told: Told) -> bytes:
    """As it is published."""
    return _encode(told)


def decoded(raw: bytes) -> Told | None:
    """What was published, or None when it is of another version or no such thing."""
    try:
        told = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return told if told.v == MESSAGE_VERSION else None
