"""In whose hands is a batch? A pure decision over what was seen; no store, no clock.

A queue is first in, first out, and a listener takes a delivery only when it has room for it. So a listener that has received
a later batch, or whose queue was empty after the batch had been sent, has had its copy, or never will. After the grace, what it
does with the copy shows in its claims, and the caller looks at those before it sends anything.

Not guaranteed: that the answer is true. "In no hands" for a batch that somebody has costs one skipped delivery; "in hands" for a
batch that nobody has is corrected as soon as queues move on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What to do about a batch."""

    HELD = "held"
    """Somebody may have it: leave it."""
    DOUBTFUL = "doubtful"
    """Somebody has had it and not finished it, somebody else may still come to it: worth a look at its claims, a few at a time."""
    FREE = "free"
    """Nobody can have it, unless a claim says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A batch as far as its handing-out goes.

    Attributes:
        seq: its place in the order of fan-out; 0 before the first, and once it went to the recovery queue.
        forwards: how often it was sent.
        seen_at: when the sweeper first saw it with this many forwards, in seconds of the sweeper's clock.
        age_s: time since it was accepted, by the wall clock or since it was first seen, whichever is longer.
        being_sent: the forwarder of this process has it in hand.
    """

    seq: int
    forwards: int
    seen_at: float
    age_s: float
    being_sent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What was true of a live listener at least a grace ago.

    Attributes:
        seq: the highest sequence that it had received.
        empty_at: the last time, at least a grace ago, at which its queue was seen empty.
    """

    seq: int = 0
    empty_at: float = float("-inf")

    def has_had(self, head: Head) -> bool:
        """Whether its copy of a batch has left its queue for longer than the grace, if there ever was one."""
        return self.seq > head.seq or self.empty_at >= head.seen_at


def judge(
    head: Head, listeners: Mapping[str, Settled], *, now: float, taken_at: float | None, grace_s: float, patience_s: float
) -> Verdict:
    """Decide about one batch.

    Args:
        head: the batch.
        listeners: the live ones, by name.
        now: this instant, in seconds of the clock of ``seen_at``.
        taken_at: since when the batch's copy is known to have left the recovery queue; None while it may be in it.
        grace_s: time to wait beyond what can be proved.
        patience_s: longest wait for a copy that left the recovery queue.
    """
    if head.being_sent or not listeners:
        return Verdict.HELD
    if head.forwards == 0:
        return Verdict.FREE if head.age_s >= grace_s else Verdict.HELD
    if not head.seq:
        wait_s = recovery_wait_s(head.forwards, grace_s=grace_s, patience_s=patience_s)
        return Verdict.FREE if taken_at is not None and now - taken_at >= wait_s else Verdict.HELD
    have_had = [settled.has_had(head) for settled in listeners.values()]
    if all(have_had):
        return Verdict.FREE
    return Verdict.DOUBTFUL if any(have_had) else Verdict.HELD


def recovery_wait_s(forwards: int, *, grace_s: float, patience_s: float) -> float:
    """How long a copy may be out of the recovery queue before the next one is sent: the grace, doubling, up to the patience.

    Doubling keeps a batch whose copies nobody can finish from filling the queue.
    """
    doublings = min(max(0, forwards - 2), 20)
    return min(grace_s * (1 << doublings), max(patience_s, grace_s))
