"""Which listeners live, as this process remembers it.

Redis is asked about once a second; between two answers, and when Redis has forgotten everything, what was heard last still
counts for a while. A pure memory with an injected clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.presence import Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A listener that lives: the highest sequence it said it had received, and when it was heard, in seconds of our clock."""

    name: str
    received_seq: int
    heard_at: float


class Roster:
    """Not thread-safe: one thread updates, others read the list that :meth:`live` returned.

    Args:
        grace_s: a listener heard of within this time lives.
        missing_s: a listener that Redis does not name lives for this time after it was heard: it has left, or Redis has
            forgotten, and its next heartbeat will tell.
    """

    def __init__(self, *, grace_s: float, missing_s: float) -> None:
        self._grace_s = grace_s
        self._missing_s = min(missing_s, grace_s)
        self._heard: dict[str, Heard] = {}
        self._named: frozenset[str] = frozenset()
        self.refused: frozenset[str] = frozenset()
        """Listeners that live and do not read the messages that this process writes: they count for nothing here."""

    def update(self, found: Sequence[Listener], now: float) -> None:
        """Take in what Redis says.

        Args:
            found: the listeners that Redis names.
            now: this instant in seconds of any clock that never runs backwards.
        """
        self.refused = frozenset(listener.name for listener in found if not listener.reads_ours)
        found = [listener for listener in found if listener.name not in self.refused]
        self._named = frozenset(listener.name for listener in found)
        for listener in found:
            before = self._heard.get(listener.name)
            heard_at = now - listener.silent_ms / 1000
            self._heard[listener.name] = Heard(
                name=listener.name,
                received_seq=max(listener.received_seq, before.received_seq if before else 0),
                heard_at=max(heard_at, before.heard_at) if before else heard_at,
            )
        self._heard = {name: heard for name, heard in self._heard.items() if self._lives(heard, now) and name not in self.refused}

    def live(self, now: float) -> list[Heard]:
        """The listeners that live, by name."""
        return [heard for _, heard in sorted(self._heard.items()) if self._lives(heard, now)]

    def _lives(self, heard: Heard, now: float) -> bool:
        return now - heard.heard_at <= (self._grace_s if heard.name in self._named else self._missing_s)
