"""``dedup servers``: Valkey and MongoDB alone, until Ctrl-C."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import Interrupted, Signals, home_folder, put, put_json, say
from app.settings import PREFIX, load_settings

if TYPE_CHECKING:
    from app.embedded.serverinfo import ServerInfo

servers = typer.Typer(
    help="Run Valkey and MongoDB alone, for trying out and for tests.", no_args_is_help=False, rich_markup_mode=None, add_completion=False
)

Home = Annotated[Path | None, typer.Option(help="Folder of their data [default: DEDUP_HOME, or .dedup].")]

_LOOK_EVERY_S = 0.5


@servers.callback(invoke_without_command=True)
def default(context: typer.Context, home: Home = None) -> None:
    """Run Valkey and MongoDB alone until Ctrl-C; they are for trying out and for tests, not for production."""
    if context.invoked_subcommand is None:
        start(home)


@servers.command()
def start(home: Home = None) -> None:
    """Start both, and stay until Ctrl-C. Processes of this project find them when they run in the same folder."""
    from app.embedded.servers import EmbeddedServers
    from app.service import cut_off
    from app.stack import placeholder_urls

    settings = load_settings(**placeholder_urls())
    both = EmbeddedServers(_folder(home), transaction_lifetime_s=settings.transaction_lifetime_s)
    with Signals().caught() as signals:
        signals.hurry = lambda: cut_off(both.processes)
        try:
            info = both.start()
            for name, url in info.urls.items():
                put(f"{PREFIX}{name.upper()}={url}")
            say("both run; Ctrl-C stops them")
            while True:
                if dead := both.dead():
                    say(f"{' and '.join(dead)} ended; starting again on the same data")
                    both.revive()
                time.sleep(_LOOK_EVERY_S)
        except Interrupted:
            say("stopping")
        finally:
            signals.ending()
            both.stop()


@servers.command()
def status(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Say whether they run, and where; exit code 1 when they do not."""
    from app.embedded.servers import running_servers

    folder = _folder(home)
    info = running_servers(folder)
    if as_json:
        put_json({"running": info is not None, "home": str(folder), **(_facts(info) if info else {})})
    elif info:
        put(f"running, started by process {info.owner.pid}, with their data in {folder}")
        for name, url in info.urls.items():
            put(f"{PREFIX}{name.upper()}={url}")
    else:
        put(f"no servers run in {folder}")
    if not info:
        raise typer.Exit(1)


@servers.command()
def stop(home: Home = None) -> None:
    """Stop them, wherever they were started, and all that was started with them; harmless when they do not run."""
    import os
    import signal

    from app.embedded.serverinfo import recorded_servers
    from app.errors import ServerStartError

    folder = _folder(home)
    info = recorded_servers(folder)
    if info is None or not (info.owner.alive or any(process.alive for process in info.processes)):
        say(f"no servers run in {folder}")
        return
    chosen = [info.owner] if info.owner.alive else [process for process in info.processes if process.alive]
    for process in chosen:
        os.kill(process.pid, signal.SIGTERM)
    give_up_at = time.monotonic() + 60
    while any(process.alive for process in (*chosen, *info.processes)):
        if time.monotonic() > give_up_at:
            raise ServerStartError(f"the servers of {folder} did not stop within a minute; they belong to process {info.owner.pid}")
        time.sleep(0.1)
    say("stopped")


def _folder(home: Path | None) -> Path:
    return (home or home_folder()).absolute()


def _facts(info: "ServerInfo") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(info)
