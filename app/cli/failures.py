"""``dedup failures``: look at what failed, and decide. ``dedup pause|resume``: park a type of events in the inbox."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import json_text, plain, put, put_json, say
from app.cli.inspect import key_in
from app.errors import DedupError, PermanentError
from app.settings import load_settings

if TYPE_CHECKING:
    from pymongo.database import Database

failures = typer.Typer(help="Look at failed events, and decide what becomes of them.", no_args_is_help=True)

STATES = ("retrying", "dead", "conflict", "malformed", "stale")

State = Annotated[str | None, typer.Option("--state", help=f"Only these: {', '.join(STATES)}.")]
Type = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
Key = Annotated[str | None, typer.Argument(metavar="[KEY]", help="The event's key.")]
Digest = Annotated[str | None, typer.Option("--digest", help="Which of several contents of the key; a beginning will do.")]
Everything = Annotated[bool, typer.Option("--all", help="All that --state and --type select.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be decided, and decide nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]


@failures.command("list")
def list_failures(
    state: State = None,
    type: Type = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the latest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List failures, the latest first."""
    with _database() as db:
        found = list(db["failures"].find(_query(state, type), {"body": 0, "error.traceback": 0}).sort("updated_at", -1).limit(limit))
    for one in found:
        if as_json:
            put_json(one)
        else:
            put(
                f"{one['updated_at']:%Y-%m-%d %H:%M:%S}  {one['state']:<9} {plain(one['key'])}  {one['digest'][:9]}  {plain(one.get('reason', ''))}"
            )
    if not found and not as_json:
        say("no failures")


@failures.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The event's key.")], digest: Digest = None, as_json: AsJson = False
) -> None:
    """Show all that is kept of an event's failures, body and traceback included."""
    with _database() as db:
        found = _selected(db, key, digest, None, None)
    for one in found:
        if as_json:
            put_json(one)
            continue
        error = one.pop("error", None) or {}
        for name, value in one.items():
            put(f"{name:<16} {plain(value if isinstance(value, str) else json_text(value))}")
        if error:
            put(plain(f"\n{error.get('traceback') or error.get('message')}"))


@failures.command()
def export(state: State = None, type: Type = None) -> None:
    """Write failures with their bodies to standard output, one JSON object a line."""
    with _database() as db:
        for one in db["failures"].find(_query(state, type)).sort("first_failed_at", 1):
            put_json(one)


def _decision(name: str, text: str) -> None:
    def decide(
        key: Key = None,
        digest: Digest = None,
        everything: Everything = False,
        state: State = None,
        type: Type = None,
        dry_run: DryRun = False,
    ) -> None:
        if (key is None) == (not everything):
            raise typer.BadParameter("name a KEY, or give --all with --state or --type")
        if everything and not (state or type):
            raise typer.BadParameter("--all needs --state or --type, so that nothing is decided by mistake")
        with _database() as db:
            refused = _decide(db, name, _selected(db, key, digest, state, type), dry_run=dry_run)
        if refused:
            raise typer.Exit(1)

    decide.__doc__ = text
    failures.command(name)(decide)


_decision("retry", "Try events again, as if for the first time.")
_decision("discard", "Give events up for good; late copies of them are kept out.")
_decision("accept-new", "Conflicts: let this content stand in place of the committed one. Handlers do not run again.")
_decision("keep-old", "Conflicts: let the committed content stand, and refuse this one whenever it comes.")


def _decide(db: "Database[dict[str, Any]]", name: str, found: list[dict[str, Any]], *, dry_run: bool) -> int:
    from app.decisions import DecisionRefused, Decisions
    from app.reprocessing import operator

    decide: Callable[[str, str], str] = Decisions.on(db, by=operator()).by_name()[name]
    refused = 0
    for one in found:
        label = f"{plain(one['key'])} {one['digest'][:9]}"
        if dry_run:
            put(f"{label}: would {name} ({one['state']})")
            continue
        try:
            put(f"{label}: {decide(one['key'], one['digest'])}")
        except DecisionRefused as error:
            refused += 1
            say(f"{label}: {error}")
    return refused


def _selected(
    db: "Database[dict[str, Any]]", key: str | None, digest: str | None, state: str | None, type: str | None
) -> list[dict[str, Any]]:
    query = _query(state, type)
    if key is not None:
        query["key"] = key_in(key)
    found = [one for one in db["failures"].find(query).sort("first_failed_at", 1) if one["digest"].startswith(digest or "")]
    if not found:
        raise NoFailure(f"no failure of {plain(key)}" if key else "no such failures")
    if key is not None and len(found) > 1:
        digests = ", ".join(one["digest"] for one in found)
        raise NoFailure(f"{plain(key)} has failed with several contents; name one with --digest: {digests}")
    return found


class NoFailure(PermanentError):
    """What was asked for is not among the failures, or not one alone."""


def _query(state: str | None, type: str | None) -> dict[str, Any]:
    if state is not None and state not in STATES:
        raise typer.BadParameter(f"--state is one of {', '.join(STATES)}")
    return {name: value for name, value in (("state", state), ("type", type)) if value}


def pause(type: Annotated[str, typer.Argument(metavar="TYPE", help="Event type, as in flight.departed.")]) -> None:
    """Park events of a type in the inbox; what is being handled goes on to its end."""
    from app.stores.pauses import Pauses

    with _database() as db:
        Pauses(db).pause(type)
    put(f"{plain(type)} is paused: its events wait in the inbox until 'dedup resume {plain(type)}'")


def resume(type: Annotated[str, typer.Argument(metavar="TYPE", help="Event type, as in flight.departed.")]) -> None:
    """Let events of a paused type go on."""
    from app.stores.pauses import Pauses

    with _database() as db:
        resumed = Pauses(db).resume(type)
    if not resumed:
        raise NotPaused(f"{plain(type)} was not paused")
    put(f"{plain(type)} goes on")


class NotPaused(DedupError):
    """A type was to be resumed that is not paused."""


@contextmanager
def _database() -> "Iterator[Database[dict[str, Any]]]":
    from app.stores import mongo

    db = mongo.connect(load_settings(), role="failures")
    with closing(db.client), mongo.translated("reading failures"):
        yield db
