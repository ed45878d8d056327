"""``dedup``: the commands, and the one place where their errors become a sentence and an exit code.

Exit codes: 0 done; 1 an error, said in one sentence on standard error, or a check that failed; 2 wrong usage; 128 + n ended by
signal n.
"""

import os
import sys
from typing import Annotated, NoReturn

import typer

from app.cli.audit import audit
from app.cli.bridge import bridge
from app.cli.demo import demo
from app.cli.doctor import doctor
from app.cli.edge import Interrupted, say
from app.cli.failures import failures
from app.cli.inspect import inspect
from app.cli.listeners import listeners
from app.cli.pauses import pause, resume
from app.cli.publish import publish
from app.cli.reprocess import reprocess
from app.cli.servers import servers
from app.cli.status import status
from app.cli.up import up
from app.cli.usage import make_plain
from app.errors import DedupError

cli = typer.Typer(
    name="dedup",
    help="Events from several listeners, each processed once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from app import __version__

        typer.echo(f"dedup {__version__}")
        raise typer.Exit


@cli.callback()
def main(
    _version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    """Events from several listeners, each processed once."""


for command in (up, demo, publish, status, inspect, audit, doctor, reprocess, pause, resume, bridge):
    cli.command()(command)
cli.add_typer(failures, name="failures")
cli.add_typer(listeners, name="listeners")
cli.add_typer(servers, name="servers")
make_plain(cli)


def run() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(_flushed(exit_code(sys.argv[1:])))


def exit_code(arguments: list[str]) -> int:
    """Run a command; the code to exit with."""
    try:
        cli(arguments, prog_name="dedup")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except DedupError as error:
        say(f"dedup: {error}")
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        pass  # nobody reads any more
    return 1


def _flushed(code: int) -> int:
    """The same code, with what was written gone out; nobody reading it, a closed terminal too, is nobody's error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else the interpreter tries once more, and ends with 120
    return code
