"""Run a command and see to it that nothing which it started outlives it: ``python .ci/contain.py COMMAND ...``.

Whatever the command's processes leave behind is adopted by this one, in whatever session or group it is, named, and stopped;
the exit status is then 1, otherwise the command's own. SIGTERM stops them all. Linux only (``PR_SET_CHILD_SUBREAPER``).
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 5.0
"""How long a process may take to notice that its parent has gone."""
STOP_S = 10.0
"""How long it may take to end after SIGTERM, before SIGKILL."""


def main(command: list[str]) -> int:
    """Run ``command``; the exit status to end with."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGTERM, _stop_at_once)
    child = subprocess.Popen(command)
    status = _status_of(child.pid)
    child.returncode = status
    if _gone_within(GRACE_S):
        return status
    print(f"processes that outlived {' '.join(command)!r}:", file=sys.stderr)
    for pid in descendants():
        print(f"  {pid} {_command_line(pid)}", file=sys.stderr)
    _stop_all()
    return status or 1


def descendants() -> list[int]:
    """The living processes below this one, zombies left out."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _status_of(child: int) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _gone_within(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _stop_all() -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in descendants():
            try:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if _gone_within(STOP_S):
            return


def _stop_at_once(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _stop_all()
    sys.exit(143)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "(gone meanwhile)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
