"""The record: tables and pictures of the saved results, written into ``docs/performance.md`` between markers."""

from collections.abc import Mapping
from typing import Any

from bench.measures import shown


def as_text(found: Mapping[str, Any]) -> str:
    """A result for a terminal."""
    columns = found["columns"]
    cells = [list(columns.values()), *([shown(row.get(name)) for name in columns] for row in found["rows"])]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(["", found["title"], *lines, *(_verdict(target) for target in found["targets"]), ""])


def write_report() -> list[str]:
    """Write the record of all saved results. Returns what was done, in lines."""
    return ["nothing yet"]


def _verdict(target: Mapping[str, Any]) -> str:
    met = {True: "met", False: "NOT met", None: "not judged"}[target["met"]]
    return f"target: {target['text']}: {target['found']}, {met}"
