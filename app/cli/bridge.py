"""``dedup bridge``: a bridge in the foreground; with ``--from`` it also takes in a foreign Socket.IO server's events."""

from importlib import import_module
from typing import Annotated, Any

import typer

from app.errors import PolicyError
from app.settings import load_settings


def bridge(
    servers: Annotated[
        list[str] | None, typer.Option("--from", metavar="URL|NAME", help="A foreign Socket.IO server, or [feeds.NAME] of the policy file.")
    ] = None,
    event: Annotated[str | None, typer.Option(metavar="NAME", help="The Socket.IO event to listen to.")] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NS", help="Its namespace; by default /.")] = None,
    auth: Annotated[
        str | None, typer.Option(metavar="TOKEN|JSON", help="A token or a JSON object; env:NAME reads a variable, of .env too.")
    ] = None,
    type: Annotated[str | None, typer.Option(metavar="EXPR", help="The event's type; by default the Socket.IO event's name.")] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", "--id", metavar="EXPR", help="What says which event it is; may be given several times.")
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="EXPR", help="The event's source; by default the server's host.")] = None,
    time: Annotated[str | None, typer.Option(metavar="EXPR", help="The event's time.")] = None,
    data: Annotated[str | None, typer.Option(metavar="EXPR", help="The event's data; by default the whole payload.")] = None,
    transport: Annotated[str | None, typer.Option(metavar="websocket|polling", help="By default websocket.")] = None,
) -> None:
    """Run a bridge until Ctrl-C; the same as python -m broadcaster.bridge.

    With --from URL --event NAME it is also connected to that server, and each payload that it emits is accepted as an event, like
    one that came through a door. EXPR is JMESPath over the payload; a text in single quotes stands for itself. What the server
    emits while no bridge is connected is lost: run two.
    """
    given: dict[str, Any] = {"event": event, "namespace": namespace, "type": type, "source": source, "time": time, "data": data}
    given |= {"transport": transport, "auth": auth, "key": key or None}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not servers:
        raise typer.BadParameter(f"--{min(given)} needs --from URL")
    sources = [_source(server, given) for server in servers or ()]
    # By name, as Celery loads workers: this package does not know the processes that are built on it.
    import_module("broadcaster.bridge.__main__").run(sources)


def _source(server: str, given: dict[str, Any]) -> Any:
    from app.events.policy_file import read_sources
    from app.events.source_file import auth_from, name_of, source_from

    if "://" in server:
        if "event" not in given:
            raise typer.BadParameter(f"--from {server} needs --event NAME: the Socket.IO event that carries its events")
        fields = given | {"url": server} | ({"auth": auth_from(given["auth"])} if "auth" in given else {})
        return source_from("dedup bridge", name_of(server), fields)
    if given:
        raise typer.BadParameter(f"--{min(given)} is for --from URL; the policy file says it for {server}")
    declared = read_sources(load_settings().policies)
    if server not in declared:
        known = f"it has {', '.join(declared)}" if declared else "it has none"
        raise PolicyError(f"the policy file has no feed {server!r} ({known}); name a URL, or add [feeds.{server}]")
    return declared[server]
