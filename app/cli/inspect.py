"""``dedup inspect``: the story of one event."""

import textwrap
from contextlib import closing
from datetime import datetime
from typing import Annotated, Any

import typer

from app.cli.edge import json_text, plain, put, put_json
from app.naming import key_in
from app.settings import load_settings

_SHOWN_CHARACTERS = 2_000
"""So much of an event's data is shown; ``--json`` has all of it."""


def inspect(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The event's key, or a task id out of Flower.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Tell what is known of an event, in the order of what happened: accepted, forwarded, claimed, failed, committed, decided.

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
        for step in story["steps"]:
            put(f"{_instant(step['at']):<24} {plain(step['text'])}")
            if step.get("more"):
                put(plain(textwrap.indent(step["more"].rstrip(), " " * 25)))
        put("")
        _tell_body(story)
    else:
        put(f"nothing is known of {plain(key)}: it was never accepted here, or its retention is over")
    if not story:
        raise typer.Exit(1)


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


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text):,} characters; --json shows all)"


def _instant(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if at else ""
