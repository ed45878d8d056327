"""The tables of settings in the documents, out of ``app/settings.py``; ``python -m tests.support.settings_table`` writes them anew."""

import ast
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from app.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
ALL = tuple(spec.name for spec in fields(Settings))
OFTEN = (
    *("redis_url", "broker_url", "mongo_url", "home", "host", "port", "flower_port", "handlers", "policies", "concurrency"),
    *("lease_ms", "max_handler_s", "max_attempts", "retention_s", "visibility_timeout_s", "token", "flower_auth"),
)
"""Those that the README shows."""

DOCUMENTS: dict[Path, Sequence[str]] = {ROOT / "README.md": OFTEN, ROOT / "docs" / "settings.md": ALL}
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def table(names: Sequence[str]) -> list[str]:
    """The lines of a table: variable, default, meaning."""
    meanings = _docstrings()
    specs = {spec.name: spec for spec in fields(Settings)}
    rows = [f"| `{PREFIX}{name.upper()}` | {_default(specs[name])} | {meanings[name]} |" for name in names]
    return ["| variable | default | meaning |", "|---|---|---|", *rows]


def written(text: str) -> list[str]:
    """The lines of the table that a document has."""
    return text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()


def _default(spec: Any) -> str:
    if spec.default is MISSING:
        return "the embedded server"
    return f"`{spec.default}`" if spec.default not in ("", (), None) else ""


def _docstrings() -> dict[str, str]:
    """The text under each field, on one line, in Markdown."""
    tree = ast.parse((ROOT / "app" / "settings.py").read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = re.sub(r"\s+", " ", str(text.value.value)).replace("``", "`").replace("|", r"\|")
    return found


def write() -> None:
    """Write the tables of all documents."""
    for document, names in DOCUMENTS.items():
        head, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
        document.write_text("\n".join([head + BEGIN, *table(names), END + rest.partition(END)[2]]), encoding="utf-8")


if __name__ == "__main__":
    write()
