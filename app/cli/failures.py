"""``dedup failures``: look at what failed, and decide. ``dedup pause|resume``: park a type of events in the inbox."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import json_text, plain, put, put_json, say
from app.errors import PermanentError
from app.naming import FAILURE_STATES, key_in
from app.settings import load_settings

if TYPE_CHECKING:
    from pymongo.database import Database

failures = typer.Typer(help="Look at failed events, and decide what becomes of them.", no_args_is_help=True)

AGE = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
MOST_S = 100 * 365 * 86_400
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

State = Annotated[str | None, typer.Option("--state", help=f"Only these: {', '.join(FAILURE_STATES)}.")]
Type = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those whose reason has this text in it.")]
Prefix = Annotated[str | None, typer.Option("--key-prefix", metavar="TEXT", help="Only keys that begin so.")]
Older = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Only those that changed last before so long: 90s, 5m, 2h, 1d.")
]
Newer = Annotated[str | None, typer.Option("--newer-than", metavar="AGE", help="Only those that changed since.")]
Key = Annotated[str | None, typer.Argument(metavar="[KEY]", help="The event's key, or a task id out of Flower.")]
Digest = Annotated[str | None, typer.Option("--digest", help="Which of several contents of the key; a beginning will do.")]
Everything = Annotated[bool, typer.Option("--all", help="All that the filters select.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many, those that failed first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be decided, and decide nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]

FILTERS = "--state, --type, --reason, --key-prefix, --older-than, --newer-than"
ONLY_CONFLICTS = ("accept-new", "keep-old")


@failures.command("list")
def list_failures(
    state: State = None,
    type: Type = None,
    reason: Reason = None,
    key_prefix: Prefix = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the latest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List failures, the latest first."""
    query = _query(state, type, reason, key_prefix, older_than, newer_than)
    with _database() as db:
        found = list(db["failures"].find(query, {"body": 0, "error.traceback": 0}).sort("updated_at", -1).limit(limit))
    for one in found:
        if as_json:
            put_json(one)
        else:
            why = plain(" ".join(str(one.get("reason", "")).split()))
            put(
                f"{one['updated_at']:%Y-%m-%d %H:%M:%S}  {one['state']:<9} {plain(one['type'])}  {plain(one['key'])}  {one['digest'][:9]}  {why}"
            )
    if not found and not as_json:
        say("no failures")


@failures.command()
def show(
    key: Key = None,
    digest: Digest = None,
    everything: Everything = False,
    state: State = None,
    type: Type = None,
    reason: Reason = None,
    key_prefix: Prefix = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is kept of failures, body and traceback included: of a KEY, or with --all of those that the filters select."""
    query = _asked(key, everything=everything, query=_query(state, type, reason, key_prefix, older_than, newer_than))
    shown = 0
    with _database() as db:
        for one in _matching(db, query, digest, limit):
            if shown and not as_json:
                put("")
            shown += 1
            if as_json:
                put_json(one)
            else:
                _show(one)
    if not shown:
        raise NoFailure(f"no failure of {plain(key)}" if key else "no such failures")


def _show(one: dict[str, Any]) -> None:
    error = one.pop("error", None) or {}
    for name, value in one.items():
        put(f"{name:<16} {plain(value if isinstance(value, str) else json_text(value))}")
    if error:
        put(plain(f"\n{error.get('traceback') or error.get('message')}"))


@failures.command()
def export(
    state: State = None,
    type: Type = None,
    reason: Reason = None,
    key_prefix: Prefix = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many would be written, and write none.")] = False,
) -> None:
    """Write failures with their bodies to standard output, one JSON object a line, those that failed first at the top."""
    query = _query(state, type, reason, key_prefix, older_than, newer_than)
    with _database() as db:
        if dry_run:
            found = db["failures"].count_documents(query)
            found = min(found, limit or found)
            put(f"would write {found:,} {'failure' if found == 1 else 'failures'}")
            return
        for one in _matching(db, query, None, limit):
            put_json(one)


def _decision(name: str, text: str) -> None:
    def decide(
        key: Key = None,
        digest: Digest = None,
        everything: Everything = False,
        state: State = None,
        type: Type = None,
        reason: Reason = None,
        key_prefix: Prefix = None,
        older_than: Older = None,
        newer_than: Newer = None,
        limit: Limit = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        query = _query(state, type, reason, key_prefix, older_than, newer_than)
        if everything and not query:
            raise typer.BadParameter(f"--all needs a filter, so that nothing is decided by mistake: {FILTERS}")
        query = _asked(key, everything=everything, query=query)
        if everything and name in ONLY_CONFLICTS:
            query.setdefault("state", "conflict")
        with _database() as db:
            refused = _decide(db, name, _selected(db, key, query, digest, limit), dry_run=dry_run, as_json=as_json)
        if refused:
            raise typer.Exit(1)

    decide.__doc__ = text
    failures.command(name)(decide)


_decision("retry", "Try events again, as if for the first time: of a KEY, or with --all those that the filters select.")
_decision("discard", "Give events up for good; late copies of them are kept out. Of a KEY, or with --all those that the filters select.")
_decision("accept-new", "Conflicts: let this content stand in place of the committed one. Handlers do not run again.")
_decision("keep-old", "Conflicts: let the committed content stand, and refuse this one whenever it comes.")


def _decide(db: "Database[dict[str, Any]]", name: str, found: list[dict[str, Any]], *, dry_run: bool, as_json: bool) -> int:
    """Decide about each; what is refused does not keep the others from it. Returns how many were refused."""
    from app.decisions import DecisionRefused, Decisions
    from app.events.policies import Policies
    from app.reprocessing import operator

    settings = load_settings()
    decisions = Decisions.on(db, by=operator(), policies=Policies.load(settings.policies, settings))
    decide: Callable[[str, str], str] = decisions.by_name()[name]
    refused = done = 0
    for one in found:
        label = f"{plain(one['key'])} {one['digest'][:9]}"
        told = {"key": one["key"], "digest": one["digest"], "state": one["state"], "decision": name}
        try:
            said = f"would {name} ({one['state']})" if dry_run else decide(one["key"], one["digest"])
        except DecisionRefused as error:
            refused += 1
            if as_json:
                put_json(told | {"refused": str(error)})
            else:
                say(f"{label}: {plain(str(error))}")
            continue
        done += 1
        if as_json:
            put_json(told | ({"would": True} if dry_run else {"done": said}))
        else:
            put(f"{label}: {said}")
    if len(found) > 1:
        say(f"{done:,} {'would be decided' if dry_run else 'decided'}, {refused:,} refused")
    return refused


def _selected(
    db: "Database[dict[str, Any]]", key: str | None, query: dict[str, Any], digest: str | None, limit: int | None
) -> list[dict[str, Any]]:
    """What a decision is about, without bodies; of a key, one content alone."""
    found = list(_matching(db, query, digest, limit, {"key": 1, "digest": 1, "state": 1}))
    if not found:
        raise NoFailure(f"no failure of {plain(key)}" if key else "no such failures")
    if key is not None and len(found) > 1:
        digests = ", ".join(one["digest"] for one in found)
        raise NoFailure(f"{plain(key)} has failed with several contents; name one with --digest: {digests}")
    return found


def _matching(
    db: "Database[dict[str, Any]]", query: dict[str, Any], digest: str | None, limit: int | None, fields: dict[str, int] | None = None
) -> "Iterator[dict[str, Any]]":
    if digest:
        query = query | {"digest": {"$regex": f"^{re.escape(digest)}"}}
    return iter(db["failures"].find(query, fields).sort("first_failed_at", 1).limit(limit or 0))


class NoFailure(PermanentError):
    """What was asked for is not among the failures, or not one alone."""


def _asked(key: str | None, *, everything: bool, query: dict[str, Any]) -> dict[str, Any]:
    if (key is None) == (not everything):
        raise typer.BadParameter(f"name a KEY, or give --all with a filter: {FILTERS}")
    return query if key is None else query | {"key": key_in(key)}


def _query(
    state: str | None, type: str | None, reason: str | None, key_prefix: str | None, older_than: str | None, newer_than: str | None
) -> dict[str, Any]:
    if state is not None and state not in FAILURE_STATES:
        raise typer.BadParameter(f"--state is one of {', '.join(FAILURE_STATES)}")
    query: dict[str, Any] = {name: value for name, value in (("state", state), ("type", type)) if value}
    if reason:
        query["reason"] = {"$regex": re.escape(reason), "$options": "i"}
    if key_prefix:
        query["key"] = {"$regex": f"^{re.escape(key_prefix)}"}
    changed = {}
    if older_than is not None:
        changed["$lte"] = _ago("--older-than", older_than)
    if newer_than is not None:
        changed["$gte"] = _ago("--newer-than", newer_than)
    return query | ({"updated_at": changed} if changed else {})


def _ago(option: str, text: str) -> datetime:
    """The instant so long ago, by this host's clock."""
    match = AGE.fullmatch(text.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else MOST_S + 1
    if seconds > MOST_S:
        raise typer.BadParameter(f"{option} is a number with s, m, h or d, as in 90s, 5m, 2h or 1d")
    return datetime.now(UTC) - timedelta(seconds=seconds)


@contextmanager
def _database() -> "Iterator[Database[dict[str, Any]]]":
    from app.stores import mongo

    db = mongo.connect(load_settings(), role="failures")
    with closing(db.client), mongo.translated("reading failures"):
        yield db
