"""``python -m broadcaster.bridge``: run a bridge until SIGTERM, SIGINT or a closed terminal."""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from app import telemetry
from app.arguments import take_none
from app.errors import DedupError
from app.events.sources import Source
from app.settings import load_settings, variables

_LOOK_EVERY_S = 0.1
_HELP = (
    "Forwards accepted events to the listeners' queues, and sends again what nobody finishes, until Ctrl-C or SIGTERM. It is set by DEDUP_ "
    "variables, in the environment or in .env; docs/settings.md has all of them. 'dedup bridge' is the same with options, for foreign feeds."
)


def main() -> None:
    """Run the bridge of this process; a wrong setting ends it with one sentence and exit code 1, an argument with 2."""
    take_none("python -m broadcaster.bridge", _HELP, sys.argv[1:])
    try:
        run()
    except DedupError as error:
        sys.exit(f"dedup: {error}")


def run(sources: Sequence[Source] = ()) -> None:
    """Run a bridge until a signal asks it to end, then end the process.

    Args:
        sources: foreign servers to listen to; ``dedup bridge --from`` names them.

    Raises:
        DedupError: the settings or the policy file are wrong.
    """
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: told.append(received))
    settings = load_settings()
    telemetry.configure("bridge")

    from app.celery import app
    from broadcaster.bridge.process import Bridge

    bridge = Bridge(settings, app, sources, variables())
    bridge.start()
    while not told:
        time.sleep(_LOOK_EVERY_S)
    bridge.stop()
    logging.shutdown()
    os._exit(0)  # at an ordinary end drivers wait for servers that are away; nothing is left to be done


if __name__ == "__main__":
    main()
