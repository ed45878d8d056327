"""``servers.json``: where this folder's servers are, so that every other process finds them without a variable set.

Written whole and atomically by the process that starts the servers, removed when it stops them. After a SIGKILL it stays behind;
a reader recognises that, because the file names each process by pid *and* start time, so that a pid used again by another
program is not mistaken. Imports no server's client.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SERVERS_FILE = "servers.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """A process that can be told from a later one with the same pid.

    Attributes:
        name: what messages call it.
        pid: its process id.
        started: when it started, in the system's own words; compared, never read.
    """

    name: str
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; one that has ended and was not yet waited for does not."""
        return start_mark(self.pid) == self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What ``servers.json`` says.

    Attributes:
        redis_url: Valkey's database for claims.
        broker_url: Valkey's database for Celery.
        mongo_url: MongoDB, with the database's name.
        owner: the process that started the servers and will stop them.
        processes: the servers.
        broadcaster_url: where the broadcaster is, when the owner started one.
        flower_url: where Flower is, when the owner started it.
    """

    redis_url: str
    broker_url: str
    mongo_url: str
    owner: ProcessRecord
    processes: tuple[ProcessRecord, ...]
    broadcaster_url: str = ""
    flower_url: str = ""

    @property
    def urls(self) -> dict[str, str]:
        """The three server URLs by the names of their settings, as in ``load_settings(**info.urls)``."""
        return {"redis_url": self.redis_url, "broker_url": self.broker_url, "mongo_url": self.mongo_url}


def running_servers(home: Path) -> ServerInfo | None:
    """The servers of a folder, or None when none are recorded there or any of the recorded ones is gone."""
    info = recorded_servers(home)
    return info if info and all(process.alive for process in info.processes) else None


def recorded_servers(home: Path) -> ServerInfo | None:
    """What ``servers.json`` says, true or not any more; None when it is missing or damaged."""
    try:
        found: dict[str, Any] = json.loads((home / SERVERS_FILE).read_text())
        return ServerInfo(
            redis_url=str(found["redis_url"]),
            broker_url=str(found["broker_url"]),
            mongo_url=str(found["mongo_url"]),
            owner=ProcessRecord(**found["owner"]),
            processes=tuple(ProcessRecord(**process) for process in found["processes"]),
            broadcaster_url=str(found.get("broadcaster_url", "")),
            flower_url=str(found.get("flower_url", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_servers(home: Path, info: ServerInfo) -> None:
    """Write ``servers.json`` so that a reader sees the old or the new one, never half of it.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps({"v": 1, **asdict(info)}, indent=2)
    descriptor, name = tempfile.mkstemp(dir=home, prefix=SERVERS_FILE)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
        Path(name).replace(home / SERVERS_FILE)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def remove_servers(home: Path) -> None:
    """Remove ``servers.json``; harmless when there is none."""
    (home / SERVERS_FILE).unlink(missing_ok=True)


def record_of(name: str, pid: int) -> ProcessRecord:
    """The record of a process that runs now."""
    return ProcessRecord(name=name, pid=pid, started=start_mark(pid) or "gone")


def start_mark(pid: int) -> str | None:
    """When a process started, in the system's own words; None when no process of that pid runs."""
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
        state, _, mark = listed.strip().partition(" ")
        return mark.strip() if mark and not state.startswith("Z") else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # Source: proc(5): field 3 is the state, field 22 the start in clock ticks since boot.
    return f"{boot}/{fields[19]}" if fields[0] not in "ZX" else None
