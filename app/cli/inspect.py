"""``dedup inspect``: the story of one event."""

from contextlib import closing
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import unquote

import typer

from app.cli.edge import json_text, plain, put, put_json
from app.settings import load_settings

_SHOWN_CHARACTERS = 2_000
"""So much of an event's data is shown; ``--json`` has all of it."""


def inspect(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The event's key, or a task id out of Flower.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Tell what is known of an event, in the order of what happened: accepted, forwarded, claimed, failed, committed.

    Exit code 1 when the key is unknown.
    """
    from app.stores import mongo
    from app.story import story_of

    settings = load_settings()
    key = key_in(key)
    db = mongo.connect(settings, role="inspect")
    with closing(db.client):
        story = story_of(db, settings, key)
    if as_json:
        put_json(story or {"key": key, "state": "unknown"})
    elif story:
        for at, what in _steps(story):
            put(f"{_instant(at):<24} {plain(what)}")
        put("")
        _tell_body(story)
    else:
        put(f"nothing is known of {plain(key)}: it was never accepted here, or its retention is over")
    if not story:
        raise typer.Exit(1)


def key_in(text: str) -> str:
    """The key in a task id such as ``<key>+249/listener-1``; a key itself holds neither ``/`` nor ``+`` and is returned as it is."""
    key, slash, _ = text.partition("/")
    return unquote(key.partition("+")[0]) if slash else text


def _steps(story: dict[str, Any]) -> list[tuple[datetime | None, str]]:
    steps: list[tuple[datetime | None, str]] = []
    ledger, failures = story["ledger"], story["failures"]
    for one in story["inbox"]:
        steps.append((one["accepted_at"], f"accepted ({one['door']}) in batch {one['batch']}, digest {one['digest']}"))
        times = f", {one['forwards']} times in all" if one["forwards"] > 1 else ""
        steps.append((one["forwarded_at"], f"forwarded to listeners{times}" if one["forwarded_at"] else "not yet forwarded"))
    if not story["inbox"] and (ledger or failures):
        first = ledger or failures[0]
        steps.append((first["accepted_at"], f"accepted in batch {first['batch']}, digest {first['digest']}"))
    steps += [step for failure in failures for step in _failed(failure)]
    claim = story["claim"]
    if claim and claim.get("state") != "done":
        steps.append((None, _claimed(claim)))
    if ledger:
        attempt = f", in attempt {ledger['attempt']}" if ledger["attempt"] > 1 else ""
        steps.append((ledger["processed_at"], f"processed by {ledger['listener']}{attempt}, token {ledger['token']}"))
        if "result" in ledger:
            steps.append((None, f"its handler returned {_short(ledger['result'])}"))
        for name in ("superseded", "rejected"):
            steps += [(None, f"other content {name}: digest {digest}") for digest in ledger.get(name, ())]
    if claim and claim.get("state") == "done":
        steps.append((None, f"Redis remembers it as done by {claim['owner']}"))
    return steps


def _failed(failure: dict[str, Any]) -> list[tuple[datetime | None, str]]:
    error = failure.get("error") or {}
    why = f"{failure.get('reason', '')}" + (f": {error.get('type')}: {error.get('message')}" if error else "")
    counts = f"{failure['attempts']} attempts" if failure["attempts"] else "no attempt"
    steps = [(failure["first_failed_at"], f"first failed, digest {failure['digest']}")] if failure["state"] != "conflict" else []
    steps.append((failure["updated_at"], f"{failure['state']} after {counts} ({failure.get('listener')}): {why}"))
    if failure.get("other_digest"):
        steps.append((None, f"the key is held with digest {failure['other_digest']}, this content has {failure['digest']}"))
    if failure.get("due_at"):
        steps.append((failure["due_at"], "due to be tried again"))
    return steps


def _claimed(claim: dict[str, Any]) -> str:
    if "error" in claim:
        return f"claim not known: {claim['error']}"
    lease = "its lease runs" if claim["live"] else "its lease has run out"
    before = f", taken over from {claim['previous_owner']}" if claim["previous_owner"] else ""
    return f"claimed by {claim['owner']}{before}, token {claim['token']}; {lease}"


def _tell_body(story: dict[str, Any]) -> None:
    document = story["ledger"] or (story["failures"][-1] if story["failures"] else None)
    put(f"key    {plain(story['key'])}")
    put(f"state  {story['state']}")
    if document:
        body = document["body"]
        for label, value in (
            ("type", document["type"]),
            ("source", body.get("source")),
            ("id", body.get("id")),
            ("time", body.get("time")),
        ):
            if value is not None:
                put(f"{label:<6} {plain(str(value))}")
        put(f"data   {_short(body.get('data'))}")
        trace = (document.get("error") or {}).get("traceback") if not story["ledger"] else None
        if trace:
            put(plain(trace))


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text):,} characters; --json shows all)"


def _instant(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if at else ""
