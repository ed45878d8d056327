"""What a task did with its events, and the line that says so in Flower.

``won 250`` · ``won 3, skipped 247 (busy listener-2)`` · ``skipped 250 (done listener-1)`` · ``won 1, failed 1`` ·
``skipped 1 (done listener-1); result {"total": 7}``
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_RESULT = "; result "
_SHOWN_CHARACTERS = 200
_COUNTS = re.compile(r"(won|skipped|failed|left) (\d+)")


@dataclass(slots=True)
class Tally:
    """Counts of one task execution; its text is what the task returns.

    Attributes:
        won: committed by this task.
        skipped: others have them; ``by`` says who, as ``done listener-2``.
        failed: to be tried again, dead, or in conflict: now in ``failures``.
        left: given back unfinished, for the sweeper to send again.
        result: what the handler returned, where the task was about a single event that is done.
    """

    won: int = 0
    failed: int = 0
    left: int = 0
    by: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    result: Any = None

    @property
    def skipped(self) -> int:
        """Events that others have."""
        return self.by.total()

    def skip(self, how: str, who: str) -> None:
        """Count an event that ``who`` has: ``how`` is ``busy`` or ``done``."""
        self.by[f"{how} {who}"] += 1

    def fail(self, reason: str) -> None:
        """Count an event that went to ``failures``."""
        self.failed += 1
        self.reasons[reason] += 1

    def __str__(self) -> str:
        parts = []
        if self.won:
            parts.append(f"won {self.won}")
        if self.skipped:
            parts.append(f"skipped {self.skipped} ({_most(self.by)})")
        if self.failed:
            parts.append(f"failed {self.failed} ({_most(self.reasons)})")
        if self.left:
            parts.append(f"left {self.left}")
        told = _RESULT + json.dumps(self.result, ensure_ascii=False)[:_SHOWN_CHARACTERS] if self.result is not None else ""
        return (", ".join(parts) or "skipped 0") + told


def _most(counter: Counter[str]) -> str:
    shown = ", ".join(name for name, _ in counter.most_common(3))
    return shown + (", …" if len(counter) > 3 else "")


def counts(text: str) -> dict[str, int]:
    """``won, skipped, failed, left`` out of a tally's text."""
    found = dict.fromkeys(("won", "skipped", "failed", "left"), 0)
    found.update({name: int(number) for name, number in _COUNTS.findall(text.partition(_RESULT)[0])})
    return found


def is_skip(text: str) -> bool:
    """Whether the task won nothing and failed nothing: others have all of its events."""
    found = counts(text)
    return found["won"] == 0 and found["failed"] == 0 and found["skipped"] > 0
