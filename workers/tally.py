"""What a task did with its events, and the line that says so in Flower.

``won 250`` · ``won 3, skipped 247 (busy listener-2)`` · ``skipped 250 (done listener-1)`` · ``won 1, failed 1`` ·
``skipped 1 (done listener-1); result {"total": 7}``
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from app.messages import Delivery

_RESULT = "; result "
_SHOWN_CHARACTERS = 200
_COUNTS = re.compile(r"(won|skipped|failed|left) (\d+)")
_RETRYING = re.compile(r"failed \d+ \(retrying\)")


@dataclass(slots=True)
class Tally:
    """Counts of one task execution; its text is what the task returns.

    Attributes:
        won: committed by this task.
        skipped: others have them; ``by`` says who, as ``done listener-2``.
        failed: to be tried again, dead, or in conflict: now in ``failures``.
        left: given back unfinished, for the sweeper to send again.
        result: what the handler returned, where the task was about a single event that is done.
        sample: keys whose outcome somebody watches; what became of them is in ``seen``, as ``(key, outcome, why)``.
        several_types: whether the delivery has events of several types; then their keys are kept in ``noted``, by outcome.
    """

    won: int = 0
    failed: int = 0
    left: int = 0
    by: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    result: Any = None
    sample: frozenset[str] = frozenset()
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    several_types: bool = False
    noted: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def skipped(self) -> int:
        """Events that others have."""
        return self.by.total()

    def win(self, keys: Collection[str]) -> None:
        """Count events that were committed."""
        self.won += len(keys)
        if self.sample:
            self.seen += [(key, "won", "") for key in keys if key in self.sample]
        if self.several_types:
            self.noted["won"] += keys

    def skip(self, how: str, who: str, key: str) -> None:
        """Count an event that ``who`` has: ``how`` is ``busy`` or ``done``, or ``in failures:`` with its state there."""
        why = f"{how} {who}"
        self.by[why] += 1
        if key in self.sample:
            self.seen.append((key, "skipped", why))
        if self.several_types:
            self.noted["skipped"].append(key)

    def fail(self, reason: str, key: str) -> None:
        """Count an event that went to ``failures``."""
        self.failed += 1
        self.reasons[reason] += 1
        if key in self.sample:
            self.seen.append((key, "failed", reason))
        if self.several_types:
            self.noted[reason].append(key)

    def by_type(self, delivery: Delivery) -> dict[tuple[str, str], int]:
        """Events by (outcome, type): ``won``, ``skipped``, ``left``, and for the failed ones their reasons."""
        if not self.several_types:
            of_all = {"won": self.won, "skipped": self.skipped, "left": self.left, **self.reasons}
            return {(outcome, delivery.types[0]): events for outcome, events in of_all.items() if events}
        types = [delivery.types[number] for number in delivery.type_of or ()]
        type_of = dict(zip(delivery.keys, types, strict=True))
        left = Counter(types)
        found: dict[tuple[str, str], int] = {}
        for outcome, keys in self.noted.items():
            for kind, events in Counter(map(type_of.__getitem__, keys)).items():
                found[outcome, kind] = events
                left[kind] -= events
        return found | {("left", kind): events for kind, events in left.items() if events > 0}

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


def ending(text: str) -> str:
    """How the task ended: ``won`` when it won anything; else ``retrying`` when what failed is tried again, or ``failed``; else ``left``;
    else ``skipped``: others have all of its events.
    """
    found = counts(text)
    if found["won"] == 0 and found["failed"] and _RETRYING.search(text.partition(_RESULT)[0]):
        return "retrying"
    return next((name for name in ("won", "failed", "left") if found[name]), "skipped")
