"""What all listeners of a deployment have counted since the beginning, added up in Redis: the source of the metrics.

Every process that runs tasks, a pool's child too, adds what it has counted since its last addition, once a heartbeat.

| key | type | lifetime | meaning |
|---|---|---|---|
| ``dedup:{deployment}:=totals`` | hash: field -> integer | ``KEPT_MS`` after the last addition | the totals |
| ``dedup:{deployment}:=types`` | set: event types | the same | those that are counted by name; at most ``MAX_TYPES`` |
| ``dedup:{deployment}:=added:<process>`` | string | ``REMEMBERED_MS`` | number of a process's last addition |

(No event key begins with ``=``.)

| field of the totals | counts |
|---|---|
| ``outcome:<listener>:<outcome>:<type>`` | events |
| ``<duration>:<listener>:<upper bound>`` | observations in one bucket of a histogram; the bound in seconds, or ``+Inf`` |
| ``<duration>:<listener>:us`` | microseconds of all observations |
| ``takeover:<listener>``, ``lost:<listener>`` | claims won from an owner whose lease had run out; own claims that another was seen to hold |

Guarantees: an addition that is repeated counts once; the totals only grow, whichever process starts or ends, until Redis loses its data or a
listener is forgotten; then they begin again at 0. Not guaranteed: what a process counted in its last seconds before it was killed.
An audit counts in MongoDB.
"""

import secrets
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, cast

from app.redis_client import Client, translated

KEPT_MS = 30 * 86_400_000
REMEMBERED_MS = 3_600_000
MAX_TYPES = 50
"""So many event types of a deployment are counted by name, first come, first served; the rest is ``other``. Producers choose types."""
OTHER = "other"

Sums = Mapping[tuple[str, str], int]
"""What is added: by ``(field, event type or "")``."""

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BOUNDS_S: dict[str, tuple[float, ...]] = {
    "ledger": (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
    "claim": _SHORT_S,
    "commit": _SHORT_S,
}
"""Upper bounds of the buckets, by duration: from a door's acceptance to the commit, of an event; of one claim call and of one commit, of a
slice."""


@dataclass(slots=True)
class Histogram:
    """Observations of one duration by one listener; ``buckets`` has one number per bound and one beyond, not cumulated."""

    buckets: list[int]
    seconds: float = 0.0


@dataclass(slots=True)
class Counted:
    """The totals at one moment.

    Attributes:
        outcomes: events by (listener, outcome, type).
        durations: histograms by (duration, listener).
        takeovers, lost: claims by listener.
    """

    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    durations: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    takeovers: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)


class Totals:
    """The totals of one deployment. Thread-safe; not to be carried over a fork."""

    def __init__(self, client: Client, deployment: str) -> None:
        self._client = client
        prefix = f"dedup:{{{deployment}}}:="
        self._key, self._types, self._added = f"{prefix}totals", f"{prefix}types", f"{prefix}added:"
        self._add = client.register_script(files(__package__).joinpath("add.lua").read_text())

    def add(self, sums: Sums, *, process: str, number: int) -> bool:
        """Add what a process counted.

        Args:
            sums: by field and type.
            process: from :func:`new_process`.
            number: of this addition, from 1; the next one only after this one was answered.

        Returns:
            False when this addition had been made before.

        Raises:
            RedisUnavailable: Redis is away; whether it was added is unknown, so repeat it with the same number.
        """
        args: list[Any] = [number, KEPT_MS, REMEMBERED_MS, MAX_TYPES]
        for (name, kind), more in sums.items():
            args += (name, kind, more)
        with translated():
            return bool(self._add(keys=[self._key, self._types, self._added + process], args=args))

    def read(self) -> Counted:
        """Everything that was added.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            found = cast(dict[bytes, bytes], self._client.hgetall(self._key))
        counted = Counted()
        for name, value in found.items():
            if value.isdigit():
                _sort_in(counted, name.decode("utf-8", "replace"), int(value))
        return counted

    def forget(self, listeners: Iterable[str]) -> None:
        """Drop what listeners counted that are gone for good.

        Raises:
            RedisUnavailable: Redis is away.
        """
        names = {name.encode() for name in listeners}
        with translated():
            fields = cast(list[bytes], self._client.hkeys(self._key))
            if gone := [name for name in fields if name.split(b":")[1] in names]:
                self._client.hdel(self._key, *gone)


def new_process() -> str:
    """A name for one process's additions, which no other ever has."""
    return secrets.token_hex(8)


def outcome_field(listener: str, outcome: str) -> str:
    """Field of events, to be completed by their type."""
    return f"outcome:{listener}:{outcome}"


def duration_fields(duration: str, listener: str) -> tuple[str, ...]:
    """Fields of a histogram's buckets, in the order of their bounds; the last is that of the sum."""
    return tuple(f"{duration}:{listener}:{bound}" for bound in (*BOUNDS_S[duration], "+Inf", "us"))


def _sort_in(counted: Counted, name: str, value: int) -> None:
    """Put one field where it belongs; what another version may have written is passed over."""
    what, _, rest = name.partition(":")
    listener, _, rest = rest.partition(":")
    if what == "outcome":
        outcome, _, kind = rest.partition(":")
        counted.outcomes[listener, outcome, kind] += value
    elif what in ("takeover", "lost"):
        (counted.takeovers if what == "takeover" else counted.lost)[listener] += value
    elif what in BOUNDS_S:
        histogram = counted.durations.setdefault((what, listener), Histogram([0] * (len(BOUNDS_S[what]) + 1)))
        if rest == "us":
            histogram.seconds = value / 1e6
        elif (bound := _bound(rest)) is not None:
            histogram.buckets[bisect_left(BOUNDS_S[what], bound)] += value


def _bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
