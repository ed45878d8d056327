"""``dedup listeners``: who receives events, and names that are to be forgotten."""

from contextlib import closing
from typing import Annotated, Any

import typer

from app.cli.edge import console, plain, put, put_json, say
from app.cli.status import ago
from app.errors import TransientError
from app.settings import Settings, load_settings

listeners = typer.Typer(help="See who receives events, and forget names that are gone.", no_args_is_help=True)


@listeners.command("list")
def list_listeners(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False) -> None:
    """List every listener that is known: its nodes, what waits in its queue, when it was heard of.

    A listener that is silent gets no more copies after DEDUP_LISTENER_GRACE_S, and is forgotten after DEDUP_LISTENER_RETIRE_S.
    """
    settings = load_settings()
    found = _found(settings)
    if as_json:
        for one in found:
            put_json(one)
    elif found:
        _tell(found)
    else:
        say("no listeners: start one with 'celery -A app worker -n listener-1@%h'")


@listeners.command()
def forget(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of listeners that were stopped.")],
) -> None:
    """Forget listeners that were stopped for good: their queues and what is left of them go at once.

    Nothing is lost with a queue: its deliveries are copies, and their events are in the inbox. A name that starts again is a new
    listener, which receives what comes from then on.
    """
    from app import redis_client
    from app.broker import Broker
    from app.celery import app
    from app.presence import Presence
    from app.retiring import forget as forget_one
    from app.stores import mongo
    from app.stores.meta import deployment_id

    settings = load_settings()
    db = mongo.connect(settings, role="listeners")
    with closing(db.client), closing(redis_client.connect(settings)) as redis, closing(Broker(app.connection_for_write)) as broker:
        presence = Presence(redis, deployment_id(db))
        for name in names:
            forget_one(db, presence, broker, settings, name)
            put(f"{plain(name)} is forgotten")


def _found(settings: Settings) -> list[dict[str, Any]]:
    from app.overview import overview
    from app.stores import mongo

    db = mongo.connect(settings, role="listeners")
    with closing(db.client):
        facts = overview(db, settings)
    if isinstance(facts["listeners"], dict):
        raise TransientError(facts["listeners"]["error"])
    if not facts["broker"]["ok"]:
        say(f"dedup: {facts['broker']['error']}")
    return [one | {"queue": facts["queues"].get(one["name"])} for one in facts["listeners"]]


def _tell(found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("listener", overflow="fold")
    table.add_column("nodes", overflow="fold")
    table.add_column("waiting", justify="right")
    table.add_column("heard of", justify="right")
    for one in found:
        nodes = ", ".join(plain(node["node"].partition("@")[2]) for node in one["nodes"])
        waiting = "?" if one["queue"] is None else f"{one['queue']:,}"
        heard = f"{ago(one['silent_ms'] / 1000)} ago" if one["alive"] else f"SILENT {ago(one['silent_ms'] / 1000)}"
        table.add_row(plain(one["name"]), nodes, waiting, heard)
    console().print(table)
