"""The documents keep to the code: what they name exists, what they tabulate is what the code says, and their examples are read."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from app.events.policies import Policies
from app.settings import PREFIX, Settings, load_settings
from app.stack import placeholder_urls
from tests.support import settings_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
MAX_ADR_LINES = 30

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_PATH = re.compile(r"(?:app|workers|broadcaster|tests|docs|bench)/[\w./-]*|[\w.-]+\.(?:py|toml|md|yml)")
_DOTTED = re.compile(r"(?:app|workers|broadcaster)(?:\.\w+)+")
_TEST = re.compile(r"tests/[\w/]+\.py::[\w:]+")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_every_relative_link_resolves(document: Path):
    for target in _links(document):
        file, _, anchor = target.partition("#")
        linked = (document.parent / file).resolve() if file else document
        assert linked.exists(), f"{document.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in _anchors(linked), f"{document.name} links to {target}, and there is no such heading"


@each_document
def test_every_file_that_is_named_exists(document: Path):
    for name in _quoted(document):
        if _PATH.fullmatch(name) and "…" not in name:
            assert (ROOT / name).exists() or name == "counts.py", f"{document.name} names {name}, which does not exist"


@each_document
def test_every_test_that_is_named_exists(document: Path):
    for name in _quoted(document):
        if _TEST.fullmatch(name):
            path, _, inside = name.partition("::")
            assert inside.replace("::", ".") in _names(ROOT / path), f"{document.name} names {name}, which does not exist"


@each_document
def test_every_name_in_the_code_exists(document: Path):
    for name in _quoted(document):
        if _DOTTED.fullmatch(name):
            assert _exists(name), f"{document.name} names {name}, which does not exist"


@each_document
def test_every_variable_that_is_named_is_a_setting(document: Path):
    known = {PREFIX + name.upper() for name in Settings.__dataclass_fields__}
    unknown = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", document.read_text(encoding="utf-8"))) - known
    assert not unknown, f"{document.name} names settings that do not exist: {sorted(unknown)}"


@each_document
def test_every_target_of_make_and_every_command_exists(document: Path):
    text = document.read_text(encoding="utf-8")
    code = "\n".join([*_quoted(document), *(block for language, block in _FENCED.findall(text) if language in ("", "sh"))])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)) <= targets
    named = set(re.findall(r"^dedup ([a-z]+)\b", code, re.MULTILINE))
    assert named <= _commands(), f"{document.name} names commands that do not exist: {sorted(named - _commands())}"


@each_document
def test_every_example_in_python_and_toml_can_be_read(document: Path, tmp_path: Path):
    for language, block in _FENCED.findall(document.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(block)
        elif language == "toml":
            tomllib.loads(block)
            (tmp_path / "policies.toml").write_text(block, encoding="utf-8")
            Policies.load(tmp_path / "policies.toml", _defaults())


def test_every_guarantee_names_tests():
    parts = re.split(r"^## ", (DOCS / "guarantees.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {part[:2]: _TEST.findall(part) for part in parts if re.match(r"G\d ", part)}
    assert sorted(named) == [f"G{n}" for n in range(1, 8)]
    assert all(named.values()), f"no test is named for {[name for name, tests in named.items() if not tests]}"


def test_the_index_names_every_document():
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in _links(DOCS / "README.md")}
    missing = [str(path) for path in DOCS.rglob("*.md") if path.name != "README.md" and path.resolve() not in linked]
    assert not missing, f"docs/README.md does not name {missing}"


def test_decisions_are_short_and_numbered_without_a_gap():
    decisions = sorted((DOCS / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert len(text.splitlines()) <= MAX_ADR_LINES, f"{path.name} is longer than {MAX_ADR_LINES} lines"


@pytest.mark.parametrize("document", settings_table.DOCUMENTS, ids=lambda path: path.name)
def test_tables_of_settings_are_what_the_code_says(document: Path):
    expected = settings_table.table(settings_table.DOCUMENTS[document])
    written = settings_table.written(document.read_text(encoding="utf-8"))
    assert written == expected, "write it anew: .venv/bin/python -m tests.support.settings_table"


def test_the_handler_of_the_readme_is_the_example_that_is_shipped():
    def of(text: str) -> list[str]:
        return [ast.dump(node) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]

    shipped = of((ROOT / "workers" / "examples" / "departures.py").read_text(encoding="utf-8"))
    shown = [of(block) for language, block in _FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8")) if language == "python"]
    assert shipped in shown


# ------------------------------------------------------------------------------------------------------------------ reading


def _links(document: Path) -> list[str]:
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    return [target for target in _LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]


def _quoted(document: Path) -> list[str]:
    return _QUOTED.findall(_FENCED.sub("", document.read_text(encoding="utf-8")))


def _anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, made as GitHub makes them."""
    headings = _HEADING.findall(_FENCED.sub("", document.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def _names(path: Path) -> frozenset[str]:
    """Everything that a Python file defines or imports: ``name`` and ``Class.name``."""
    if not path.is_file():
        return frozenset()
    return frozenset(_defined(ast.parse(path.read_text(encoding="utf-8")).body))


def _defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def _exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or is defined in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:length])
        for path in (folder.with_suffix(".py"), folder / "__init__.py"):
            if path.is_file():
                return length == len(parts) or ".".join(parts[length:]) in _names(path)
    return False


@cache
def _commands() -> frozenset[str]:
    """The commands of ``dedup``."""
    from typer.main import get_command

    from app.cli.main import cli

    return frozenset(getattr(get_command(cli), "commands", {}))


def _defaults() -> Settings:
    return load_settings({}, folder=ROOT / "tests", **placeholder_urls())
