"""How the commands show themselves: arguments by their own names, and summaries that end where a thought ends.

typer writes ``{KEY}`` and ``[[KEY]]`` for the arguments KEY and [KEY], and cuts a summary off in mid-sentence where a list has no room for it.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

_KEPT_FREE = 2
"""Columns of a list that typer leaves empty."""
_ENDS = (re.compile(r"(?<=\w )\S*?[;:](?=\s)"), re.compile(r",(?=\s)"))
"""Where a sentence may be cut off, best first: a colon after the first word of all would leave a heading."""


class PlainCommand(TyperCommand):
    """A command whose arguments are shown as they are named, and whose summary is cut off at the end of a clause only."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the usage line says after the command's name."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            pieces += [param.metavar] if isinstance(param, TyperArgument) and param.metavar else param.get_usage_pieces(ctx)
        return pieces

    def get_short_help_str(self, limit: int = 45) -> str:
        """The summary in the list of commands."""
        return summary(self.help or "", limit + _KEPT_FREE) or super().get_short_help_str(limit)


def summary(text: str, limit: int) -> str:
    """A text's first sentence; where it has more characters than ``limit``, the clauses of it that fit; empty where none does."""
    sentence = re.split(r"(?<=\.)\s", " ".join(text.partition("\n\n")[0].split()), maxsplit=1)[0]
    if len(sentence) <= limit:
        return sentence
    for ends in _ENDS:
        if fitting := [found.end() - 1 for found in ends.finditer(sentence) if found.end() - 1 <= limit]:
            return sentence[: fitting[-1]]
    return ""


def make_plain(app: typer.Typer) -> None:
    """Have all commands of an application show themselves so."""
    for command in _commands(app):
        command.cls = PlainCommand


def _commands(app: typer.Typer) -> Iterator[Any]:
    yield from app.registered_commands
    for group in app.registered_groups:
        if group.typer_instance:
            yield from _commands(group.typer_instance)
