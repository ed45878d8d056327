"""``python -m broadcaster.bridge``: run a bridge until SIGTERM, SIGINT or a closed terminal."""

import logging
import os
import signal
import sys
import time

from app import telemetry
from app.errors import DedupError
from app.settings import load_settings

_LOOK_EVERY_S = 0.1


def main() -> None:
    """Run the bridge of this process; a wrong setting ends it with one sentence and exit code 1."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: told.append(received))
    try:
        settings = load_settings()
        telemetry.configure("bridge")

        from app.celery import app
        from broadcaster.bridge.process import Bridge

        bridge = Bridge(settings, app)
    except DedupError as error:
        sys.exit(f"dedup: {error}")
    bridge.start()
    while not told:
        time.sleep(_LOOK_EVERY_S)
    bridge.stop()
    logging.shutdown()
    os._exit(0)  # at an ordinary end drivers wait for servers that are away; nothing is left to be done


if __name__ == "__main__":
    main()
