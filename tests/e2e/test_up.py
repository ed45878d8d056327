"""``dedup up``, as a user runs it: it works, it mends itself, and whatever ends it, nothing stays behind."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from app.embedded.ports import free_port
from app.embedded.serverinfo import ServerInfo, running_servers
from tests.e2e.test_demo import DEDUP, clean_environment, processes_in
from tests.support.waiting import eventually

START_S = 60.0


def _take_terminal() -> None:
    """In the child: a session of its own, controlled by the terminal, so that closing it hangs the session up."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Up:
    """A ``dedup up`` in a folder of its own, on a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = clean_environment() | {"DEDUP_PORT": str(free_port()), "DEDUP_FLOWER_PORT": str(free_port())}
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = -1

    def start(self, listeners: int) -> ServerInfo:
        """Start it, and wait until all of it runs."""
        self._terminal, end = pty.openpty()
        self._process = subprocess.Popen(
            [DEDUP, "up", "--listeners", str(listeners)], cwd=self.folder, env=self.env, stdin=end, stdout=end, stderr=end,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - this process has no threads that hold locks
        )  # fmt: skip
        os.close(end)
        return eventually(self._running, timeout_s=START_S, message=self.said)

    def _running(self) -> ServerInfo | None:
        assert self.process.poll() is None, self.said()
        info = running_servers(self.folder / ".dedup")
        return info if info and info.flower_url else None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process
        return self._process

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Another command in another terminal of the same folder."""
        return subprocess.run([DEDUP, *arguments], cwd=self.folder, env=clean_environment(), input=stdin, capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip

    def said(self) -> str:
        """What is on the terminal so far and was not read before."""
        os.set_blocking(self._terminal, False)
        said = b""
        try:
            while piece := os.read(self._terminal, 65_536):
                said += piece
        except OSError:
            pass
        return said.decode(errors="replace")

    def close_terminal(self) -> None:
        """As when a window is closed."""
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def pid_of(self, words: str) -> int:
        return next((int(line.split()[0]) for line in processes_in(self.folder) if words in line), 0)


@pytest.fixture
def up(tmp_path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    if made._process and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    made.close_terminal()


def test_it_works_mends_itself_and_stops_in_order(up):
    # Given everything running, and a listener and Valkey killed
    info = up.start(listeners=1)
    with urlopen(f"{info.flower_url}/healthcheck", timeout=10) as answer:
        assert answer.status == 200
    os.kill(up.pid_of("worker -n listener-1@"), signal.SIGKILL)
    os.kill(next(process.pid for process in info.processes if process.name == "valkey"), signal.SIGKILL)
    eventually(
        lambda: (found := running_servers(up.folder / ".dedup")) and found.processes != info.processes, timeout_s=30, message=up.said
    )

    # When events are published
    published = up.run("publish", "-", "--json", stdin="".join(json.dumps({"type": "t", "id": f"{n}"}) + "\n" for n in range(700)))

    # Then all of them are processed, and the commands say so
    assert published.returncode == 0, published.stderr
    assert json.loads(published.stdout)["accepted"] == 700
    audited = up.run("audit", "--wait", "40", "--json")
    assert (audited.returncode, json.loads(audited.stdout)["processed"]) == (0, 700), audited.stdout + audited.stderr
    assert up.run("inspect", "id~default~699").returncode == 0
    status = json.loads(up.run("status", "--json").stdout)
    assert [one["name"] for one in status["listeners"]] == ["listener-1"]
    refused = up.run("up")
    assert (refused.returncode, "run in" in refused.stderr) == (1, True), refused.stderr

    # When Ctrl-C is pressed
    up.process.send_signal(signal.SIGINT)

    # Then it ends in order, and nothing stays
    assert up.process.wait(60) == 0
    assert processes_in(up.folder) == []
    assert running_servers(up.folder / ".dedup") is None
    said = up.said()
    assert "listener-1 ended by SIGKILL" in said
    assert "listener-1 is started again" in said


def test_a_closed_terminal_takes_everything_down(up):
    up.start(listeners=0)
    assert len(processes_in(up.folder)) > 4
    up.close_terminal()
    assert up.process.wait(60) == 0  # in order, although there is nobody to tell
    assert processes_in(up.folder) == []


def test_killed_itself_it_leaves_nothing_and_starts_again_on_its_data(up):
    # Given a running system with something processed
    up.start(listeners=1)
    assert up.run("publish", "-", stdin='{"type": "t", "id": "1"}\n').returncode == 0
    assert up.run("audit", "--wait", "30").returncode == 0

    # When it is killed
    up.process.kill()
    up.process.wait()

    # Then every child ends, the listener's pool too
    eventually(lambda: not processes_in(up.folder), timeout_s=15, message=lambda: processes_in(up.folder))
    assert "no servers" in up.run("status").stderr

    # And it starts again with its data, and a second Ctrl-C is not waited for
    up.close_terminal()
    up.start(listeners=0)
    assert json.loads(up.run("audit", "--json").stdout)["processed"] == 1
    up.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    up.process.send_signal(signal.SIGTERM)
    up.process.wait(60)
    assert time.monotonic() - started < 30
    eventually(lambda: not processes_in(up.folder), message=lambda: processes_in(up.folder))
