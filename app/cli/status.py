"""``dedup status``: the state at a glance; on a terminal again and again, until Ctrl-C."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import console, counted, hanging, plain, put, put_json, text_width
from app.settings import load_settings

if TYPE_CHECKING:
    from rich.table import Table

_LABEL = 11
"""Columns of a row's name."""
_NARROW = 80
"""Below so many columns, numbers are shortened."""


def status(
    once: Annotated[bool, typer.Option("--once", help="Show it once, on a terminal too.")] = False,
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks, on a terminal.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text; once.")] = False,
) -> None:
    """Show listeners, inbox, failures, ledger, sweeper and servers.

    On a terminal it is shown again and again until Ctrl-C; into a pipe or file, with --once or --json, once.

    What a listener won, skipped and failed is counted since its process started; 'won/s' is over the last minute, or over the
    ledger's newest 1,000 events where these are younger. 'latency' is from a door to the write into the ledger, without the
    handlers' own time, of the newest 1,000 events. 'leases' are of the 20 oldest batches and of failures that are tried again.

    Exit code 1 when a server does not answer; what the others know is shown all the same.
    """
    from app.overview import overview
    from app.stores import mongo

    settings = load_settings()
    db = mongo.connect(settings, role="status")
    with closing(db.client):
        if sys.stdout.isatty() and not (once or as_json):
            facts = _live(lambda: overview(db, settings), every)
        else:
            facts = overview(db, settings)
            if as_json:
                put_json(facts)
            else:
                _tell(facts)
    if not all(facts[name]["ok"] for name in ("mongo", "redis", "broker")):
        raise typer.Exit(1)


def _live(look: Callable[[], dict[str, Any]], every_s: float) -> dict[str, Any]:
    """Show it until Ctrl-C; what was shown last."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    facts = look()
    out = console()
    with Live(console=out, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        try:
            while True:
                table = _table(facts, out.width)
                rows = [Text(row) for row in _rows(facts, out.width)]
                live.update(Group(*([table] if table else []), *rows), refresh=True)
                time.sleep(every_s)
                facts = look()
        except KeyboardInterrupt:
            return facts


def _tell(facts: dict[str, Any]) -> None:
    out = console()
    if table := _table(facts, out.width):
        out.print(table)
    for row in _rows(facts, text_width()):
        put(row)


def _rows(facts: dict[str, Any], width: int | None) -> Iterator[str]:
    """The lines below the table, no longer than ``width``; what could not be read is ``not known``."""
    for label, value in _values(facts).items():
        yield from hanging(
            label.ljust(_LABEL - 1) + " ", "not known" if isinstance(value, dict) else str(value), indent=_LABEL, width=width
        )


def _values(facts: dict[str, Any]) -> dict[str, Any]:
    inbox, failures, ledger, sweeper, paused, recent, held, queues = (
        facts[name] for name in ("inbox", "failures", "ledger", "sweeper", "paused", "recent", "held", "queues")
    )
    rows: dict[str, Any] = {}
    if not facts["listeners"]:
        rows["listeners"] = "none: start one with 'celery -A app worker -n listener-1@%h'"
    elif isinstance(facts["listeners"], dict):
        rows["listeners"] = facts["listeners"]
    oldest = f", the oldest {ago(inbox['oldest_age_s'])} old" if inbox.get("oldest_age_s") is not None else ""
    rows["inbox"] = inbox if "error" in inbox else f"{counted(inbox['batches'], 'batch', 'batches')} waiting{oldest}"
    rows["ledger"] = ledger if "error" in ledger else f"{counted(ledger['events'], 'event', 'events')} processed"
    rows["latency"] = recent if "error" in recent else _latency(recent["latency"])
    rows["failures"] = failures if "error" in failures else ", ".join(f"{n:,} {state}" for state, n in failures.items()) or "none"
    for number, why in enumerate(facts["reasons"] if isinstance(facts["reasons"], list) else ()):
        rows[" " * (number + 1)] = f"{why['n']:,} {why['state']}: {_one_line(why['reason'])}"
    rows["leases"] = held if "error" in held else _leases(held)
    if "error" not in queues and queues["recovery"]:
        rows["recovery"] = f"{counted(queues['recovery'], 'delivery', 'deliveries')} waiting"
    rows["sweeper"] = sweeper if "error" in sweeper else _swept(sweeper["last_success_s"])
    if "error" not in held and held["acting"]["bridge"]:
        rows["bridge"] = f"{plain(held['acting']['bridge'])} acts"
    if facts["full"] and isinstance(facts["full"], str):
        rows["doors"] = f"REFUSE: {plain(facts['full'])}"
    if isinstance(paused, list) and paused:
        rows["paused"] = ", ".join(plain(type_) for type_ in paused)
    for feed in facts["feeds"] if isinstance(facts["feeds"], list) else ():
        rows[f"feed {plain(feed['name'])}"] = _feed(feed)
    for name, label in (("mongo", "MongoDB"), ("redis", "Redis"), ("broker", "broker")):
        store = facts[name]
        rows[label] = f"answers in {store['ms']:.0f} ms" if store["ok"] else plain(store["error"])
    return rows


def _table(facts: dict[str, Any], width: int) -> "Table | None":
    """The listeners; None where there are none, or nobody knows."""
    listeners = facts["listeners"]
    if isinstance(listeners, dict) or not listeners:
        return None
    from rich import box
    from rich.table import Table

    narrow = width < _NARROW
    number = _short if narrow else "{:,}".format
    table = Table(box=None, padding=(0, 1, 0, 0)) if narrow else Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("listener", overflow="fold")
    for title in ("won", "skip", "fail", "won/s", "queue") if narrow else ("won", "skipped", "failed", "won/s", "queue"):
        table.add_column(title, justify="right")
    table.add_column("heard" if narrow else "heard of", justify="right", no_wrap=True)
    per_s = facts["recent"].get("per_s", {})
    for one in listeners:
        silent = ago(one["silent_ms"] / 1000)
        heard = f"SILENT {silent}" if not one["alive"] else silent if narrow else f"{silent} ago"
        queue = facts["queues"].get(one["name"])
        table.add_row(
            plain(one["name"]),
            *(number(one[name]) for name in ("won", "skipped", "failed")),
            "?" if "error" in facts["recent"] else _rate(per_s.get(one["name"], 0.0)),
            "?" if queue is None else number(queue),
            heard,
        )
    return table


def _rate(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s < 100 else f"{per_s:,.0f}"


def _latency(latency: dict[str, Any]) -> str:
    if not latency["events"]:
        return "nothing is processed yet"
    shares = ", ".join(f"p{share} {latency[f'p{share}_s']:.3f} s" for share in (50, 95, 99))
    return f"{shares} (newest {counted(latency['events'], 'event', 'events')})"


def _leases(held: dict[str, Any]) -> str:
    said = [f"{plain(name)} {leases:,}" for name, leases in held["live"].items()]
    if held["lapsed"]:
        said.append(f"{held['lapsed']:,} RUN OUT")
    return f"{', '.join(said) or 'none'}{' of ' + counted(held['of'], 'event', 'events') if held['of'] else ''}"


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def _short(number: int) -> str:
    """A number in five characters or less."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (10_000, "k")):
        if number >= size:
            scale = 1_000 if unit == "k" else size
            return f"{number / scale:.1f}{unit}" if number < 10 * scale else f"{number // scale}{unit}"
    return f"{number:,}"


def _feed(feed: dict[str, Any]) -> str:
    counts = {"accepted": "accepted", "malformed": "malformed", "unaccepted": "LOST for want of room", "waiting": "waiting"}
    said = [f"{feed[name]:,} {word}" for name, word in counts.items() if feed[name] or name == "accepted"]
    return f"{'connected' if feed['connected'] else 'NOT CONNECTED'}, {', '.join(said)} ({plain(feed['node'])})"


def _swept(before_s: float | None) -> str:
    return "has not succeeded yet: is a bridge running?" if before_s is None else f"succeeded {ago(before_s)} ago"


def ago(seconds: float) -> str:
    """A duration in the unit that reads best."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
