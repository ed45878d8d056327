"""What a benchmark answers: rows of figures, the targets that they are held against, and the charts to draw of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
"""A row by column; figures are numbers, all else says what the row is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a benchmark is asked to run.

    Attributes:
        mode: ``quick`` shows that it works, ``default`` is for the record, ``full`` goes on for longer.
        runs: how often each case is run, or None for the benchmark's own number.
        say: told what happens, in one line each.
    """

    mode: Literal["quick", "default", "full"] = "default"
    runs: int | None = None
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def pick(self, *, quick: int, default: int, full: int | None = None) -> int:
        """The number for this mode."""
        return {"quick": quick, "default": default, "full": full or default}[self.mode]

    def repeat(self, default: int) -> int:
        """How many runs."""
        return self.runs or (1 if self.mode == "quick" else default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure is to reach.

    Attributes:
        text: as in "throughput at least 40 × the naive baseline".
        found: what it is.
        met: whether that is enough; None where this run cannot tell.
    """

    text: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture of the rows.

    Attributes:
        kind: bars, or a line per series.
        x: column of the horizontal axis (bars: their labels).
        y: column, or columns, of figures.
        series: column that parts the rows into series.
        label: of the vertical axis.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"``, ``"xy"``.
        line: a target, drawn across.
        line_label: what it is called.
        rows: what to draw, where it is not the result's rows.
    """

    kind: Literal["bars", "lines"]
    x: str
    y: tuple[str, ...]
    label: str
    series: str = ""
    log: str = ""
    line: float | None = None
    line_label: str = "target"
    rows: Sequence[Row] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark found.

    Attributes:
        name: of the benchmark.
        title: one line.
        about: how it was taken, in a few sentences.
        columns: by the rows' names, the headings of the table in their order; what is not named is only in the JSON.
        rows: medians over the runs.
        runs: the rows of each run.
    """

    name: str
    title: str
    about: str
    columns: Mapping[str, str]
    rows: Sequence[Row]
    targets: Sequence[Target] = ()
    charts: Sequence[Chart] = ()
    runs: Sequence[Sequence[Row]] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


def medians(runs: Sequence[Sequence[Row]], *, by: Sequence[str]) -> list[Row]:
    """One row for each row of a run, with the median of each figure.

    Args:
        runs: the rows of each run; the same rows in each.
        by: columns that say which row it is; they are kept as they are.
    """
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for rows in runs:
        for row in rows:
            grouped.setdefault(tuple(row.get(name) for name in by), []).append(row)
    return [{name: _median([row[name] for row in rows if name in row], keep=name in by) for name in rows[0]} for rows in grouped.values()]


def with_spread(rows: Sequence[Row], runs: Sequence[Sequence[Row]], *, by: Sequence[str], of: str) -> list[Row]:
    """The rows with a column ``spread``: the smallest and largest of a figure over the runs."""
    found: list[Row] = []
    for row in rows:
        same = [other[of] for other_rows in runs for other in other_rows if all(other.get(name) == row.get(name) for name in by)]
        found.append(row | {"spread": f"{shown(min(same))} – {shown(max(same))}" if len(same) > 1 else "–"})
    return found


def _median(values: Sequence[Any], *, keep: bool) -> Any:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if keep or len(numbers) != len(values):
        return values[0]
    return statistics.median(numbers)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of the values lie; ``ordered`` is sorted and not empty."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def shown(value: Any) -> str:
    """A figure for people: thousands apart, three digits that matter."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) >= 100 or value == int(value):
            return f"{value:,.0f}"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
