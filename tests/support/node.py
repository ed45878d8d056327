"""Node and the JavaScript Socket.IO client, which a test uses as any browser would."""

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

VERSION = "4.8.1"


def socket_io_client() -> tuple[str, Path]:
    """The node program, and the folder of modules that holds ``socket.io-client``; installed once, outside this project.

    Where node, npm or the package cannot be had, the test is skipped, and fails in CI.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node and npm are not installed (on Debian and Ubuntu: apt install nodejs npm)")
    modules, error = _installed(npm)
    if error:
        pytest.skip(f"npm cannot install socket.io-client: {error}")
    return node, modules


@functools.cache
def _installed(npm: str) -> tuple[Path, str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "dedup-tests" / f"socket.io-client-{VERSION}"
    modules = folder / "node_modules"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of this run, or another run, may be installing it
        return modules, _install(npm, folder, modules)


def _install(npm: str, folder: Path, modules: Path) -> str:
    """Install it, unless it is there; what went wrong, or an empty string."""
    if (modules / "socket.io-client" / "package.json").is_file() and (folder / "complete").is_file():
        return ""
    argv = [npm, "install", "--prefix", folder, "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", f"socket.io-client@{VERSION}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return "it takes longer than 90 s"
    if done.returncode:
        return done.stderr.strip()[-500:]
    (folder / "complete").touch()
    return ""
