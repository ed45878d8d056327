"""``dedup up``: everything on this machine, until Ctrl-C."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import Interrupted, Signals, environment, home_folder, names_servers, put, say
from app.settings import PREFIX, Settings, load_settings

if TYPE_CHECKING:
    from app.stack import Stack

_LOOK_EVERY_S = 0.5


def up(
    listeners: Annotated[int, typer.Option(min=0, max=64, help="How many listeners; 0 to start them by hand in other terminals.")] = 3,
    home: Annotated[Path | None, typer.Option(help="Folder of data and logs [default: DEDUP_HOME, or .dedup].")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of the broadcaster [default: 4000, or the next free one].")
    ] = None,
    flower_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of Flower [default: 5555, or the next free one].")
    ] = None,
) -> None:
    """Start servers, broadcaster, bridge, listeners and Flower; stay until Ctrl-C, then stop them in order.

    Where DEDUP_REDIS_URL, DEDUP_BROKER_URL and DEDUP_MONGO_URL are set, those servers are used, and no others started. Without
    them, Valkey and MongoDB run with their data in the home folder; they are for trying out, not for production. A process that
    ends by itself is started again, up to five times a minute.

    By hand: 'dedup up --listeners 0', and in other terminals, in the same folder: celery -A app worker -n listener-1@%h

    With --home FOLDER, other commands find this deployment where DEDUP_HOME=FOLDER is set, as in: DEDUP_HOME=FOLDER dedup status
    """
    from app.stack import Stack

    settings, embedded = plan(home=home, port=port, flower_port=flower_port)
    stack = Stack(settings, embedded=embedded, listeners=listeners, cwd=Path.cwd(), report=say)
    with Signals().caught() as signals:
        signals.hurry = stack.hurry
        try:
            stack.start()
            _tell(stack)
            while True:
                stack.look_after()
                time.sleep(_LOOK_EVERY_S)
        except Interrupted:
            say("stopping (once more to stop at once)")
        finally:
            signals.ending()
            stack.stop()
    if stack.given_up:
        raise typer.Exit(1)


def plan(*, home: Path | None, port: int | None, flower_port: int | None) -> tuple[Settings, bool]:
    """The settings of all processes, and whether their servers are embedded.

    A port that somebody asked for is insisted on; a default one gives way to the next that is free.

    Raises:
        SettingsError: they are malformed, or name half a set of servers.
        ServerStartError: a port that was asked for is taken, or servers run in that home already.
    """
    from app.stack import placeholder_urls

    env = environment()
    embedded = not names_servers(env)
    overrides: dict[str, Any] = placeholder_urls() if embedded else {}
    if home:
        overrides["home"] = home.absolute()
    settings = load_settings(**overrides)
    if embedded:
        _refuse_second(settings.home)
    broadcaster_port = _port(port, settings.port, PREFIX + "PORT" in env, "the broadcaster", taken=None)
    return (
        replace(
            settings,
            home=settings.home.absolute(),
            port=broadcaster_port,
            flower_port=_port(flower_port, settings.flower_port, PREFIX + "FLOWER_PORT" in env, "Flower", taken=broadcaster_port),
        ),
        embedded,
    )


def _refuse_second(home: Path) -> None:
    from app.embedded.servers import running_servers
    from app.errors import ServerStartError

    info = running_servers(home)
    if info and info.owner.alive:
        raise ServerStartError(
            f"servers run in {home} already (process {info.owner.pid}): stop them there with Ctrl-C or 'dedup servers stop', "
            "or give this one another --home"
        )


def _port(option: int | None, setting: int, was_set: bool, who: str, *, taken: int | None) -> int:
    from app.embedded.ports import free_port, is_free
    from app.errors import ServerStartError
    from app.stack import next_free_port

    wanted = option or setting
    if wanted == 0:
        return free_port()
    if is_free(wanted) and wanted != taken:
        return wanted
    if option or was_set:
        raise ServerStartError(f"port {wanted} for {who} is taken by another program: stop that, or choose another port")
    found = next_free_port(wanted + 1)
    if found == taken:
        found = next_free_port(found + 1)
    say(f"port {wanted} is taken: {who} gets {found}")
    return found


def _tell(stack: "Stack") -> None:
    servers = stack.servers
    other = elsewhere(stack.settings.home)
    rows = {
        "Broadcaster": stack.broadcaster_url,
        "Flower": stack.flower_url,
        "Listeners": ", ".join(stack.listeners) or f"none; start some with: {other}celery -A app worker -n listener-1@%h",
        "Valkey": f"127.0.0.1:{servers.valkey.port}" if servers else "as set by DEDUP_REDIS_URL and DEDUP_BROKER_URL",
        "MongoDB": f"127.0.0.1:{servers.mongo.nodes[0].port}" if servers else "as set by DEDUP_MONGO_URL",
        "Data, logs": _short(stack.settings.home),
    }
    for name, value in rows.items():
        put(f"{name:<12} {value}")
    put("")
    put(f"Feed it: {other}dedup publish FILE, or POST to /events. Look: {other}dedup status. Stop: Ctrl-C.")


def elsewhere(home: Path) -> str:
    """What a command in this folder must begin with to mean the deployment in ``home``; empty where it means that one anyway."""
    if home.absolute() == home_folder().absolute():
        return ""
    return f"{PREFIX}HOME={shlex.quote(_short(home))} "


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
