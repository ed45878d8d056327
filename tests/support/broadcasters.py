"""Real broadcaster processes, started as a user would."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.embedded.process import ManagedProcess
from app.settings import Settings
from tests.support.servers import environment
from tests.support.waiting import eventually

READY = "broadcaster.ready"


@contextmanager
def broadcaster_process(settings: Settings, folder: Path, *, env: Mapping[str, str] | None = None) -> Iterator[tuple[ManagedProcess, str]]:
    """A broadcaster that listens, and its URL; ended at the end, where the test has not done so.

    Args:
        settings: with port 0 it takes a free one.
        folder: its working folder, and that of its log.
        env: variables on top of the settings'.
    """
    process = ManagedProcess(
        "broadcaster",
        [sys.executable, "-m", "broadcaster"],
        log=folder / "broadcaster.log",
        env=environment(settings) | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
        cwd=folder,
    ).start()
    try:
        yield process, eventually(lambda: ready_url(process), 30, lambda: process.log_tail(20))
    except BaseException as error:
        error.add_note(process.log_tail(40))
        raise
    finally:
        process.terminate(deadline_s=12)


def ready_url(process: ManagedProcess) -> str:
    """Where it says that it listens, or an empty string."""
    lines = [line for line in process.log.read_text().splitlines() if READY in line]
    return str(json.loads(lines[-1])["url"]) if lines else ""
