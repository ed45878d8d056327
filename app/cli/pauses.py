"""``dedup pause`` and ``dedup resume``: event types that wait in the inbox."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.edge import plain, put
from app.errors import DedupError
from app.settings import load_settings

if TYPE_CHECKING:
    from app.stores.pauses import Pauses


def pause(type: Annotated[str, typer.Argument(metavar="TYPE", help="Event type, as in flight.departed; no pattern.")]) -> None:
    """Park events of a type in the inbox; what is being handled goes on to its end."""
    with _pauses() as pauses:
        pauses.pause(type)
    put(f"{plain(type)} is paused: its events wait in the inbox until 'dedup resume {plain(type)}'")


def resume(type: Annotated[str, typer.Argument(metavar="TYPE", help="Event type, as in flight.departed; no pattern.")]) -> None:
    """Let events of a paused type go on."""
    with _pauses() as pauses:
        resumed = pauses.resume(type)
    if not resumed:
        raise NotPaused(f"{plain(type)} was not paused")
    put(f"{plain(type)} goes on")


class NotPaused(DedupError):
    """A type was to be resumed that is not paused."""


@contextmanager
def _pauses() -> "Iterator[Pauses]":
    from app.stores import mongo
    from app.stores.pauses import Pauses

    db = mongo.connect(load_settings(), role="pauses")
    with closing(db.client):
        yield Pauses(db)
