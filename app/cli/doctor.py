"""``dedup doctor``: what the environment may have broken, with remedies."""

from dataclasses import asdict
from typing import Annotated

import typer

from app.cli.edge import hanging, plain, put, put_json, text_width
from app.settings import load_settings

_MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def doctor(
    brief: Annotated[bool, typer.Option("--brief", help="Leave out what is well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Check servers, settings and processes: versions, persistence, eviction, replica set, transactions, clocks, queues, access.

    Each finding says what was seen and what to do. Run it where a listener runs, with its settings. What this user may not look
    at is a warning that says what to check by hand. Exit code 1 when there are problems; warnings alone are 0.
    """
    from app.doctor import examine

    findings = examine(load_settings())
    if as_json:
        put_json({"ok": not findings.problems, "problems": findings.problems, "findings": [asdict(finding) for finding in findings]})
    else:
        width = text_width()
        for finding in findings:
            if not (brief and finding.severity == "ok"):
                lines = [*hanging(f"{_MARKS[finding.severity]:<8} ", f"{finding.check}: {finding.seen}", indent=9, width=width)]
                if finding.remedy:
                    lines += hanging("         -> ", finding.remedy, indent=12, width=width)
                put(plain("\n".join(lines)))
        warnings = sum(finding.severity == "warning" for finding in findings)
        put(
            f"{findings.problems} {'problem' if findings.problems == 1 else 'problems'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"
        )
    if findings.problems:
        raise typer.Exit(1)
