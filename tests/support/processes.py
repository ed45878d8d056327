"""Processes of this project, started for tests."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.embedded.process import ManagedProcess
from app.settings import Settings
from tests.support.servers import environment


class Processes:
    """Starts processes, and kills them in the end.

    Args:
        folder: where they work, and where their logs are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[ManagedProcess] = []

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        settings: Settings | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> ManagedProcess:
        """Start one.

        Args:
            name: of the process; its log is ``<folder>/<name>.log``.
            argv: program and arguments; ``python`` is this interpreter, other bare names are looked up beside it first.
            settings: given to it as ``DEDUP_`` variables.
            env: variables on top of that.
            options: what else ``ManagedProcess`` takes; by default it works in ``folder``, where there is no policy file.
        """
        process = ManagedProcess(
            name,
            [_program(argv[0]), *argv[1:]],
            log=self._folder / f"{name}.log",
            env=environment(settings) | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
            **({"cwd": self._folder} | options),
        )
        self._started.append(process)
        return process.start()

    def kill(self, each: Callable[[ManagedProcess], object] = lambda _process: None) -> None:
        """Kill all of them, the last first; ``each`` is called with each one then."""
        for process in reversed(self._started):
            process.kill()
            each(process)


def _program(name: str | Path) -> str:
    if str(name) == "python":
        return sys.executable
    beside = Path(sys.executable).with_name(str(name))
    return str(beside) if beside.exists() else str(name)
