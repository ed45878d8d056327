"""Slices: how many events a listener claims at once, and where in a batch it begins.

Quick handlers: the whole batch. Slow ones: as many events as take about ``slice_target_ms``, by what was measured; so a
batch of slow events is shared by all listeners. Each begins at its own place, which keeps them out of each other's way.

A delivery that has waited for long is one of many, and need not be shared: concurrent events come in longer slices then, for between two slices, and
while the last ones of a slice end, nothing else of the listener runs.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

FIRST_SLICE = 4
"""Events of a type with handlers that were never measured."""

MAX_SLICE = 500
BEHIND = 4
"""A delivery that has waited for so many times the target, since a door took it, is cut into slices of so many times the target."""
_SMOOTHING = 0.3
_GOLDEN = 0.6180339887


class Pace:
    """Measured handling time per event type, smoothed."""

    def __init__(self, target_ms: float) -> None:
        self._target_ms = target_ms
        self._ms: dict[str, float] = {}

    def note(self, type: str, ms: float, *, events: int, at_once: int = 1) -> None:
        """Take into account that ``events`` of ``type``, ``at_once`` of them concurrently, took ``ms`` together."""
        ms_per_event = ms / math.ceil(events / at_once)
        before = self._ms.get(type)
        self._ms[type] = ms_per_event if before is None else before + _SMOOTHING * (ms_per_event - before)

    def events_per_slice(self, type: str, *, at_once: int = 1, waited_ms: float = 0.0) -> int:
        """How many events of ``type`` take about the target time.

        Of concurrent ones it is as many rounds of ``at_once`` as take no less, and more in a delivery that has ``waited_ms``.
        """
        ms = self._ms.get(type)
        if ms is None:
            return max(FIRST_SLICE, at_once)
        behind = at_once > 1 and waited_ms > BEHIND * self._target_ms
        rounds = self._target_ms * (BEHIND if behind else 1) / max(ms, 0.001)
        rounds = math.ceil(rounds) if at_once > 1 else max(1, round(rounds))
        return min(MAX_SLICE, rounds * at_once)


def rotated(items: Sequence[T], listener: str) -> list[T]:
    """``items`` begun at the listener's own place: golden-ratio steps by the number in its name, or by its hash."""
    digits = listener.rpartition("-")[2]
    number = int(digits) if digits.isdigit() else zlib.crc32(listener.encode())
    start = int(number * _GOLDEN % 1 * len(items))
    return [*items[start:], *items[:start]]


def slices(events: Sequence[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut ``events`` into runs; ``size_of`` is asked at each cut, so that what was just measured counts."""
    at = 0
    while at < len(events):
        size = max(1, size_of(events[at]))
        yield list(events[at : at + size])
        at += size
