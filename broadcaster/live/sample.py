"""Which events a page shows: all of them at a human pace, some of them beyond it.

Guarantees: events are counted whether or not they are shown; of an event that is shown, all that is heard is shown; what waits here
is bounded. A pure memory with an injected clock.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from app.outcomes import SAMPLE_EVENTS, Told
from broadcaster.ingress import Stored

SHOWN_PER_S = 12.0
SHOWN_AT_ONCE = 40
MAX_REMEMBERED = 20_000
"""Events of which outcomes may still come. One that was passed over stays so: what others told of it has not been kept."""
MAX_OUTCOMES = 2_000
"""Outcomes that are told at a time."""
MAX_LISTENERS = 1_000

Frame = dict[str, Any]


class Sample:
    """What is shown since the last :meth:`take`.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._room = float(SHOWN_AT_ONCE)
        self._filled_at = clock()
        self._shown: OrderedDict[str, bool] = OrderedDict()
        self._begin()

    def accepted(self, stored: list[Stored]) -> None:
        """Take in batches that were accepted here."""
        for batch in stored:
            self._accepted += len(batch.events)
            for event in batch.events[:SAMPLE_EVENTS]:
                self._show(event.key, event.type)

    def told(self, told: Told) -> None:
        """Take in what a listener told. Events that were accepted elsewhere, or before somebody watched, are shown from here on."""
        if told.listener not in self._counts and len(self._counts) >= MAX_LISTENERS:
            return
        counts = self._counts.setdefault(told.listener, Counter())
        counts.update(won=told.won, skipped=told.skipped, failed=told.failed, left=told.left)
        for key, outcome, why in told.events:
            if key not in self._shown:
                self._show(key, None)
            if self._shown[key] and len(self._outcomes) < MAX_OUTCOMES:
                self._outcomes.append((key, told.listener, outcome, why))

    def take(self) -> Frame | None:
        """What there is to tell, or None; begins anew.

        Returns:
            ``accepted``: number; ``events``: newly shown ones, ``key`` and ``type`` (None where it is not known); ``outcomes``:
            ``[key, listener, outcome, why]``; ``counts``: by listener ``won, skipped, failed, left``.
        """
        if not (self._accepted or self._counts):
            return None
        frame = {"accepted": self._accepted, "events": self._events, "outcomes": self._outcomes, "counts": self._counts}
        self._begin()
        return frame

    def _begin(self) -> None:
        self._accepted = 0
        self._events: list[dict[str, str | None]] = []
        self._outcomes: list[tuple[str, str, str, str]] = []
        self._counts: dict[str, Counter[str]] = {}

    def _show(self, key: str, kind: str | None) -> None:
        """Decide whether an event is shown."""
        now = self._clock()
        self._room = min(SHOWN_AT_ONCE, self._room + (now - self._filled_at) * SHOWN_PER_S)
        self._filled_at = now
        self._shown[key] = self._room >= 1
        self._shown.move_to_end(key)
        if self._shown[key]:
            self._room -= 1
            self._events.append({"key": key, "type": kind})
        if len(self._shown) > MAX_REMEMBERED:
            self._shown.popitem(last=False)
