"""``dedup status``: the state at a glance."""

from contextlib import closing
from typing import Annotated, Any

import typer

from app.cli.edge import console, plain, put, put_json
from app.settings import load_settings


def status(as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False) -> None:
    """Show listeners, inbox, failures, ledger and sweeper, as the stores have them.

    What a listener won, skipped and failed is counted since its process started. Exit code 1 when a store does not answer; what
    the others know is shown all the same.
    """
    from app.overview import overview
    from app.stores import mongo

    settings = load_settings()
    db = mongo.connect(settings, role="status")
    with closing(db.client):
        facts = overview(db, settings)
    if as_json:
        put_json(facts)
    else:
        _tell(facts)
    if not (facts["mongo"]["ok"] and facts["redis"]["ok"]):
        raise typer.Exit(1)


def _tell(facts: dict[str, Any]) -> None:
    for name, label in (("mongo", "MongoDB"), ("redis", "Redis")):
        if not facts[name]["ok"]:
            put(f"{label:<10} {plain(facts[name]['error'])}")
    _tell_listeners(facts["listeners"])
    inbox, failures, ledger, sweeper, paused = (facts[name] for name in ("inbox", "failures", "ledger", "sweeper", "paused"))
    oldest = f", the oldest {ago(inbox['oldest_age_s'])} old" if inbox.get("oldest_age_s") is not None else ""
    rows = {
        "inbox": inbox if "error" in inbox else f"{_number(inbox['batches'], 'batch', 'batches')} waiting{oldest}",
        "ledger": ledger if "error" in ledger else f"{_number(ledger['events'], 'event', 'events')} processed",
        "failures": failures if "error" in failures else ", ".join(f"{n:,} {state}" for state, n in failures.items()) or "none",
        "sweeper": sweeper if "error" in sweeper else _swept(sweeper["last_success_s"]),
    }
    if facts["full"] and isinstance(facts["full"], str):
        rows["doors"] = f"REFUSE: {plain(facts['full'])}"
    if isinstance(paused, list) and paused:
        rows["paused"] = ", ".join(plain(type_) for type_ in paused)
    for feed in facts["feeds"] if isinstance(facts["feeds"], list) else ():
        rows[f"feed {plain(feed['name'])}"] = _feed(feed)
    for label, value in rows.items():
        put(f"{label:<10} {'not known' if isinstance(value, dict) else value}")


def _tell_listeners(listeners: Any) -> None:
    if isinstance(listeners, dict):
        put(f"{'listeners':<10} not known")
        return
    if not listeners:
        put(f"{'listeners':<10} none: start one with 'celery -A app worker -n listener-1@%h'")
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("listener", overflow="fold")
    for title in ("won", "skipped", "failed"):
        table.add_column(title, justify="right")
    table.add_column("heard of", justify="right")
    for one in listeners:
        heard = f"{ago(one['silent_ms'] / 1000)} ago" if one["alive"] else f"SILENT {ago(one['silent_ms'] / 1000)}"
        table.add_row(plain(one["name"]), f"{one['won']:,}", f"{one['skipped']:,}", f"{one['failed']:,}", heard)
    console().print(table)


def _feed(feed: dict[str, Any]) -> str:
    counts = {"accepted": "accepted", "malformed": "malformed", "unaccepted": "LOST for want of room", "waiting": "waiting"}
    said = [f"{feed[name]:,} {word}" for name, word in counts.items() if feed[name] or name == "accepted"]
    return f"{'connected' if feed['connected'] else 'NOT CONNECTED'}, {', '.join(said)} ({plain(feed['node'])})"


def _swept(before_s: float | None) -> str:
    return "has not succeeded yet: is a bridge running?" if before_s is None else f"succeeded {ago(before_s)} ago"


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def ago(seconds: float) -> str:
    """A duration in the unit that reads best."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
