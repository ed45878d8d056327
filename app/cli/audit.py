"""``dedup audit``: what MongoDB says about events: processed, lost, twice, unfinished."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import put, put_json
from app.errors import PermanentError
from app.settings import load_settings

if TYPE_CHECKING:
    from app.audit import Audit

_ASK_EVERY_S = 0.5


def audit(
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help='Keys that were accepted, one per line, or JSON lines with a "key" or "keys"; - for standard input.'
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for events that are on their way or to be retried.")] = 0.0,
    departures: Annotated[
        bool,
        typer.Option("--departures", help="The example handler ran from the first event on: departures that it did not count are lost."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Draw the balance out of MongoDB alone: events processed, lost, twice, unfinished, failed.

    With --expect, 'lost' are the keys of that file that are neither processed, nor failed, nor on their way. Without it, nobody
    can know what was accepted: then only events whose body is missing in the inbox or among the failures count as lost.

    'twice' are departures (flight.departed) with the same carrier, flight, origin and hour under several keys, and counts of
    the example handler beyond the ledger. A key cannot stand twice: MongoDB's unique index forbids it. What handlers do outside
    MongoDB cannot be seen.

    'unfinished' are events on their way; 'failures' have their bodies, wait for a retry or a decision, and are not lost.

    Exit code 0 when nothing is lost, twice or unfinished; else 1.
    """
    from app.audit import audit as draw
    from app.stores import mongo

    settings = load_settings()
    keys = list(_keys(expect)) if expect else None
    db = mongo.connect(settings, role="audit")
    with closing(db.client):
        give_up_at = time.monotonic() + wait
        found = draw(db, expected=keys, counted_from_start=departures)
        while _moving(found) and time.monotonic() < give_up_at:
            time.sleep(_ASK_EVERY_S)
            found = draw(db, expected=keys, counted_from_start=departures)
    if as_json:
        put_json(as_dict(found))
    else:
        _tell(found)
    if not found.ok:
        raise typer.Exit(1)


def as_dict(found: "Audit") -> dict[str, Any]:
    """An audit as it is printed."""
    import msgspec

    return msgspec.structs.asdict(found) | {"ok": found.ok}


def _moving(found: "Audit") -> bool:
    """Whether time alone may change it."""
    return bool(found.unfinished or found.failures_by_state.get("retrying"))


def _tell(found: "Audit") -> None:
    from app.cli.edge import console

    failures = ", ".join(f"{n:,} {state}" for state, n in found.failures_by_state.items())
    rows = [
        ("processed", found.processed, ""),
        ("lost", found.lost, ", ".join(found.lost_keys)),
        ("twice", found.twice, ", ".join(found.twice_keys)),
        ("unfinished", found.unfinished, "on their way" if found.unfinished else ""),
        ("failures", found.failures, failures),
    ]
    if found.expected is not None:
        rows.insert(0, ("expected", found.expected, ""))
    out = console()
    for name, number, more in rows:
        out.print(f"{name:<11}{number:>11,}  {more}".rstrip(), markup=False, soft_wrap=True)
    put("the balance holds" if found.ok else "the balance does NOT hold")


def _keys(file: str) -> Iterator[str]:
    """Keys out of a file: plain, or in JSON lines as a string, a list of strings, or under ``key`` or ``keys`` of an object."""
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield from _keys_of(line.strip(), f"{file}, line {number}")
    except OSError as error:
        raise PermanentError(f"{file} cannot be read: {error.strerror or error}") from error


def _keys_of(line: bytes, place: str) -> list[str]:
    try:
        if line[:1] not in (b"{", b'"', b"["):
            return [line.decode()] if line else []
        value = json.loads(line)
    except ValueError as error:
        raise PermanentError(f"{place}: neither a key nor JSON ({error})") from error
    found = value.get("keys", [value.get("key")]) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
        raise PermanentError(f'{place}: no "key" or "keys" with text in it')
    return found
