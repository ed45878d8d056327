"""Results as JSON files in ``results/bench/``, which git ignores: what was found, on which machine, with which versions, by which command."""

import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from app import __version__
from bench.measures import Options, Result
from bench.rig import ROOT

FOLDER = ROOT / "results" / "bench"
PACKAGES = ("celery", "kombu", "redis", "hiredis", "pymongo", "python-socketio", "uvicorn", "uvloop", "msgspec")


def record(result: Result, options: Options, *, seconds: float) -> dict[str, Any]:
    """Everything about a result."""
    return asdict(result) | {
        "mode": options.mode,
        "command": command(result.name, options),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
    }


def command(name: str, options: Options) -> str:
    """The command that takes the figures again."""
    flags = ([f"--{options.mode}"] if options.mode != "default" else []) + ([f"--runs {options.runs}"] if options.runs else [])
    return " ".join(["python -m bench", name, *flags])


def machine() -> dict[str, Any]:
    """What this runs on; the load is that of the last minute, at the end of the benchmark, and mostly its own."""
    return {
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """What it was taken with."""
    return {"dedup": __version__, "commit": _commit(), "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def save(found: dict[str, Any]) -> Path:
    """Write a result down; one of ``--quick`` apart from those for the record."""
    folder = FOLDER / "quick" if found["mode"] == "quick" else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['name']}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return path


def saved() -> dict[str, dict[str, Any]]:
    """The results for the record, by benchmark."""
    return {path.stem: msgspec.json.decode(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit, with ``+`` when files of the repository have changed since."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout.strip()
