"""From a failed start's exit code and log to one sentence with the remedy.

The phrases were taken from Valkey 9.1, mongod 6.0 and the GNU loader; what is not known here is left to the log's end.
"""

import os
import re
import subprocess
from pathlib import Path

from app.embedded import tether
from app.embedded.binaries import OWN_SERVERS

_PACKAGES = {  # library: its package on Debian and Ubuntu, on Fedora and RHEL
    "libcurl": ("libcurl4", "libcurl"),
    "libssl": ("libssl3", "openssl-libs"),
    "libcrypto": ("libssl3", "openssl-libs"),
    "liblzma": ("liblzma5", "xz-libs"),
    "libgcc_s": ("libgcc-s1", "libgcc"),
}
_MISSING = re.compile(r"error while loading shared libraries: (\S+?): cannot open shared object file")
_TRACED = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_TOO_OLD = re.compile(r"version `([A-Z]+_[\w.]+)' not found")


def explain(code: int | None, log: str, *, binary: Path, folder: Path, port: int) -> str | None:
    """One sentence, without the server's name, or None when the cause is not known.

    Args:
        code: the exit code, minus the signal when one ended it; None when the server runs but does not answer.
        log: the end of its log.
        binary: its program.
        folder: its data folder.
        port: the port that it was to listen on.
    """
    if missing := _MISSING.search(log):
        return _libraries(missing_libraries(binary) or [missing[1]])
    if too_old := _TOO_OLD.search(log):
        return f"it needs {too_old[1].replace('_', ' ')} and this system's library is older: use a newer system, or {OWN_SERVERS}"
    if "No space left on device" in log:
        return f"the disk of {folder} is full: make room there, or set DEDUP_HOME to a folder elsewhere"
    if "Address already in use" in log:
        return f"port {port} is taken by another program: stop that, or choose another port"
    if "Another mongod instance is already running on the" in log and "Unable to lock" in log:
        return f"another mongod uses the data in {folder}: stop it, or set DEDUP_HOME to another folder"
    if "Read-only file system" in log or "Permission denied" in log:
        return f"{folder} cannot be written: correct its permissions, or set DEDUP_HOME to another folder"
    if "Bad file format reading the append only file" in log or "WT_TRY_SALVAGE" in log:
        return f"the data in {folder} is damaged: move that folder away to start empty"
    if code in (tether.NOT_FOUND, tether.NOT_EXECUTABLE):
        return f"{binary} does not run on this system: {OWN_SERVERS}"
    if code == -4:  # SIGILL: mongod 5 and later use AVX
        return f"this processor lacks instructions that it needs (AVX): {OWN_SERVERS}"
    if code == -9:
        return "it was killed from outside, perhaps because the machine ran out of memory: free some and start again"
    return None


def missing_libraries(binary: Path) -> list[str]:
    """All shared libraries that a program needs and this machine lacks; the loader's own message names only the first."""
    try:
        traced = subprocess.run(
            [binary], env=os.environ | {"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return _TRACED.findall(traced.stdout)


def _libraries(names: list[str]) -> str:
    packages = [_PACKAGES.get(name.partition(".so")[0]) for name in names]
    known = [p for p in packages if p]
    what = f"this machine lacks {'the shared library' if len(names) == 1 else 'the shared libraries'} {', '.join(names)}"
    if not known:
        return f"{what}: install what provides it, or {OWN_SERVERS}"
    debian, fedora = (" ".join(sorted({p[i] for p in known})) for i in (0, 1))
    return f"{what}: install it with 'apt install {debian}' (Debian, Ubuntu) or 'dnf install {fedora}' (Fedora, RHEL)"
