"""``dedup demo``, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import eventually

DEDUP = Path(sys.executable).with_name("dedup")


def clean_environment() -> dict[str, str]:
    """What a user has: none of our settings, and a Python that buffers its output."""
    own = ("DEDUP_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)} | {"COLUMNS": "60"}


def processes_in(folder: Path) -> list[str]:
    """Processes that work in the folder or were told of it; those that have ended and wait for their parent are left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            works_in = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command or works_in.startswith(str(folder)):
            found.append(f"{entry.name} {command}")
    return found


def test_six_hundred_flights_are_each_processed_once_and_nothing_stays_behind(tmp_path):
    # Given variables and settings of the user's own, which the demo must leave alone
    (tmp_path / ".env").write_text("DEDUP_MONGO_URL=mongodb://127.0.0.1:1/precious\nDEDUP_HANDLERS=does.not.exist\n")

    # When
    command = [DEDUP, "demo", "--events", "600", "--listeners", "2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=280, check=False)

    # Then
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {name: result[name] for name in ("accepted", "processed", "won", "skipped", "lost", "twice", "unfinished", "failures")} == {
        "accepted": 600, "processed": 600, "won": 600, "skipped": 600, "lost": 0, "twice": 0, "unfinished": 0, "failures": 0,
    }  # fmt: skip
    assert sum(counts["won"] for counts in result["by_listener"].values()) == 600
    assert result["seconds"] > 0
    assert result["events_per_s"] > 0
    assert "600 events · 2 listeners · 600 processed once · 600 skipped · 0 lost · 0 twice" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert processes_in(tmp_path) == []
    assert not (tmp_path / ".dedup/demo/mongo").exists()


def test_a_demo_that_is_interrupted_takes_everything_down(tmp_path):
    # Given
    demo = subprocess.Popen(
        [DEDUP, "demo", "--listeners", "1"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually((tmp_path / ".dedup/demo/logs/listener-1.log").exists, timeout_s=60)
        assert len(processes_in(tmp_path)) > 3

        # When
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()

    # Then
    assert demo.returncode == 128 + signal.SIGTERM
    eventually(lambda: not processes_in(tmp_path), message=lambda: processes_in(tmp_path))
