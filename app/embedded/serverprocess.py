"""What both embedded servers have in common: one child process that is launched, stopped, killed, paused and launched again."""

import os
from collections.abc import Sequence
from pathlib import Path

from app.embedded.diagnosis import explain
from app.embedded.ports import choose_port
from app.embedded.process import ManagedProcess


class ServerProcess:
    """A server with a folder of its own; its port is kept there, so that it comes back where it was.

    Attributes:
        folder: its data, log and port.
        name: what messages call it.
        port: where it listens; 0 before the first launch.
        process: the child process, None before the first launch.
    """

    patience_s = 10.0
    """How long an orderly end may take by default."""

    def __init__(self, folder: Path, *, name: str, port: int | None) -> None:
        self.folder = folder
        self.name = name
        self.port = 0
        self.process: ManagedProcess | None = None
        self._given_port = port

    def prepare(self) -> Path:
        """Choose the port, make the folder of its data, and return that.

        Raises:
            ServerStartError: the port is taken.
            OSError: the folder cannot be written.
        """
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        self.port = choose_port(self.folder / "port", self._given_port)
        return data.absolute()

    def run(self, binary: Path, arguments: Sequence[str], *, log: str) -> None:
        """Start the program without waiting for it."""
        port = self.port
        self.process = ManagedProcess(
            self.name,
            [str(binary), *arguments],
            log=self.folder / log,
            env=os.environ | {"LC_ALL": "C"},  # mongod aborts when the locale's name is not known
            explain=lambda code, said: explain(code, said, binary=binary, folder=self.folder, port=port),
        ).start()

    def stop(self, deadline_s: float | None = None) -> None:
        """Let it end in order; harmless when it does not run."""
        if self.process:
            self.process.terminate(deadline_s=self.patience_s if deadline_s is None else deadline_s)

    def kill(self) -> None:
        """SIGKILL: Valkey may lose its last second's writes, MongoDB nothing that was acknowledged by a majority."""
        if self.process:
            self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: the port stays open, but nothing answers."""
        self.child().pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.child().resume()

    def child(self) -> ManagedProcess:
        """The process that was launched last."""
        assert self.process, "launch() comes first"
        return self.process
