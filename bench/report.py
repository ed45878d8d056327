"""The record: tables and pictures of the saved results, written into ``docs/performance.md`` between markers.

``<!-- bench:NAME -->`` … ``<!-- /bench:NAME -->`` holds a benchmark's part, ``bench:targets`` the list of all targets. What is between them is replaced; a benchmark
without a saved result keeps what it has.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from bench import benchmarks
from bench.measures import shown
from bench.record import saved
from bench.rig import ROOT, BenchError

DOCUMENT = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
_TARGETS = "targets"
_MET = {True: "met", False: "**not met**", None: "not judged"}


def as_text(found: Mapping[str, Any]) -> str:
    """A result for a terminal."""
    columns = found["columns"]
    cells = [list(columns.values()), *([shown(row.get(name)) for name in columns] for row in found["rows"])]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    verdicts = [f"target: {target['text']}: {target['found']}, {_MET[target['met']].strip('*')}" for target in found["targets"]]
    return "\n".join(["", found["title"], *(line.rstrip() for line in lines), *verdicts, ""])


def write_report() -> Iterator[str]:
    """Write the record of all saved results; says what it does, line by line.

    Raises:
        BenchError: there is no result, or the document has no place for one.
    """
    results = {name: found for name, found in saved().items() if name in benchmarks.NAMES}
    if not results:
        raise BenchError("there is no result to write: run python -m bench first")
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, found in results.items():
        pictures = list(_drawn(name, found))
        text = _replaced(text, name, _part(found, pictures))
        yield f"{name}: {found['command']}, {found['at']}"
    DOCUMENT.write_text(_replaced(text, _TARGETS, _targets(results)), encoding="utf-8")
    yield f"written to {DOCUMENT}"


def _drawn(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    from bench.charts import draw  # takes a second, and matplotlib, which only the record needs

    for number, chart in enumerate(found["charts"], 1):
        file = f"bench-{name}.svg" if number == 1 else f"bench-{name}-{number}.svg"
        draw(chart, found, IMAGES / file)
        yield file


def _replaced(text: str, name: str, part: str) -> str:
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise BenchError(f"{DOCUMENT.name} has no place for {name}: add the lines {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{part}\n{end}", text)


def _part(found: Mapping[str, Any], pictures: list[str]) -> str:
    columns = found["columns"]
    numeric = {name for name in columns if all(isinstance(row.get(name), int | float | None) for row in found["rows"])}
    lines = [f"### {found['title']}", "", found["about"], "", _row(columns.values())]
    lines += [_row("---:" if name in numeric or name == "spread" else "---" for name in columns)]
    lines += [_row(shown(row.get(name)) for name in columns) for row in found["rows"]]
    if found["targets"]:
        lines += ["", *(f"- {target['text']}: {target['found']}, {_MET[target['met']]}." for target in found["targets"])]
    lines += [line for picture in pictures for line in ("", f"![{found['title']}](images/{picture})")]
    return "\n".join([*lines, "", _origin(found)])


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _origin(found: Mapping[str, Any]) -> str:
    at = datetime.fromisoformat(found["at"])
    runs = f"median of {len(found['runs'])} runs" if len(found["runs"]) > 1 else "one run"
    return f"`{found['command']}`: {runs}, {at.day} {at:%B %Y}, at commit {found['versions']['commit']}, {found['seconds']:.0f} s."


def _targets(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = list(dict.fromkeys(_setting(found) for found in results.values()))
    lines += ["", _row(("benchmark", "target", "found", "")), _row(("---", "---", "---", "---"))]
    judged = [(name, target) for name in benchmarks.NAMES if name in results for target in results[name]["targets"]]
    return "\n".join([*lines, *(_row((name, target["text"], target["found"], _MET[target["met"]])) for name, target in judged)])


def _setting(found: Mapping[str, Any]) -> str:
    """Where a result was taken, and with what."""
    machine, versions = found["machine"], found["versions"]
    at = datetime.fromisoformat(found["at"])
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("dedup", "commit", "python"))
    return (
        f"Taken on {at.day} {at:%B %Y}: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['system']}; "
        f"Python {versions['python']}, {libraries}."
    )
