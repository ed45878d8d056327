"""What a check found: how bad it is, what was seen, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's result.

    Attributes:
        severity: ``problem``: events are, or will be, delayed, refused or lost, or strangers can act; ``warning``: worth a look, or not seen.
        check: short name of what was checked.
        seen: what was seen, in one sentence or less.
        remedy: what to do, or empty.
    """

    severity: Severity
    check: str
    seen: str
    remedy: str = ""


@dataclass(slots=True)
class Findings:
    """Findings in the order in which they were made."""

    found: list[Finding] = field(default_factory=list)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def ok(self, check: str, seen: str) -> None:
        """Nothing to do."""
        self.found.append(Finding(severity="ok", check=check, seen=seen))

    def warn(self, check: str, seen: str, remedy: str) -> None:
        """Worth a look."""
        self.found.append(Finding(severity="warning", check=check, seen=seen, remedy=remedy))

    def problem(self, check: str, seen: str, remedy: str) -> None:
        """To be mended."""
        self.found.append(Finding(severity="problem", check=check, seen=seen, remedy=remedy))

    def hidden(self, check: str, command: str, by_hand: str) -> None:
        """The server did not allow the look; what to check by hand instead."""
        self.warn(check, f"not allowed to look: {command} is refused to this user", f"check by hand: {by_hand}")

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return sum(finding.severity == "problem" for finding in self.found)


def skew(findings: Findings, check: str, whose: str, seconds: float, *, uncertain_s: float = 0.0, other: str = "this host's") -> None:
    """Judge how far a clock is from another one; ``seconds`` is positive when it is ahead."""
    off = max(0.0, abs(seconds) - uncertain_s)
    seen = f"{whose} is {abs(seconds):.3f} s {'ahead of' if seconds > 0 else 'behind'} {other}"
    remedy = "let all hosts keep their clocks by NTP or chrony: latencies, retention and the order of fencing tokens depend on them"
    if off < SKEW_WARNING_S:
        findings.ok(check, seen)
    elif off < SKEW_PROBLEM_S:
        findings.warn(check, seen, remedy)
    else:
        findings.problem(check, seen, remedy)


SKEW_WARNING_S = 1.0
SKEW_PROBLEM_S = 30.0
