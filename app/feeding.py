"""How foreign feeds do: each bridge that listens to one says so in Redis, for ``dedup status`` and ``GET /stats``.

| key | type | lifetime | meaning |
|---|---|---|---|
| ``dedup:{deployment}:=feeds`` | hash: ``<feed>@<host>#<pid>`` -> JSON of :class:`FeedState` | an hour after the last word | one feed of one process |

(No event key begins with ``=``.) Numbers count since the process started. Losing the hash is healed within seconds.
"""

from typing import cast

import msgspec

from app.redis_client import Client, translated

EVERY_S = 2.0
"""Time between two words of a process."""
KEPT_MS = 3_600_000
HEARD_OF_MS = 10_000


class FeedState(msgspec.Struct, frozen=True):
    """What one process says of one feed.

    Attributes:
        received: payloads that arrived.
        accepted: of these, in the inbox by majority write.
        malformed: of these, no events; in ``failures``, but for ``unkept``.
        unkept: malformed ones that are only counted, because ``failures`` holds enough of them.
        unaccepted: given up: MongoDB was away or the inbox full, and the buffer too. They are lost, for a feed is not asked again.
        rubbish: messages that were no Socket.IO.
        waiting: in the buffer now.
    """

    name: str
    node: str
    url: str
    connected: bool = False
    received: int = 0
    accepted: int = 0
    malformed: int = 0
    unkept: int = 0
    unaccepted: int = 0
    rubbish: int = 0
    waiting: int = 0
    at_ms: int = 0


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(FeedState)


class FeedStates:
    """The feeds of one deployment. Thread-safe."""

    def __init__(self, client: Client, deployment: str) -> None:
        self._client = client
        self._key = f"dedup:{{{deployment}}}:=feeds"

    def put(self, state: FeedState) -> None:
        """Say how a feed does.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            said = msgspec.structs.replace(state, at_ms=self._now_ms())
            self._client.hset(self._key, f"{state.name}@{state.node}", _ENCODER.encode(said))
            self._client.pexpire(self._key, KEPT_MS)

    def remove(self, state: FeedState) -> None:
        """Say that a process listens no more.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            self._client.hdel(self._key, f"{state.name}@{state.node}")

    def all(self) -> list[FeedState]:
        """The feeds heard of lately, by name; those long silent are removed.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            found = cast(dict[bytes, bytes], self._client.hgetall(self._key))
            now_ms = self._now_ms()
            states = {field: state for field, raw in found.items() if (state := _read(raw)) is not None}
            if old := [field for field, state in states.items() if now_ms - state.at_ms > KEPT_MS]:
                self._client.hdel(self._key, *old)
        return sorted((s for s in states.values() if now_ms - s.at_ms <= HEARD_OF_MS), key=lambda s: (s.name, s.node))

    def _now_ms(self) -> int:
        seconds, micros = self._client.time()
        return seconds * 1000 + micros // 1000


def _read(raw: bytes) -> FeedState | None:
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # of another version
