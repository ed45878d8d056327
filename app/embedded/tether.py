"""Ties a process to the life of the one that started it.

On Linux the kernel sends a signal to a process when its parent goes, however it goes (``prctl(PR_SET_PDEATHSIG)``). Guaranteed:
what was started through this file does not outlive its parent, SIGKILL included. Not guaranteed: anything on other systems,
where ``die_with_parent`` does nothing, and anything about grandchildren, for which a fork clears the setting; a pool's child
calls ``die_with_parent`` itself.

The setting is made after the fork and kept over the exec, so this file is also a program, run between the two:
``python -I -S tether.py SIGNAL PARENT_PID PROGRAM ARGUMENTS…``. That takes about 15 ms and, unlike ``preexec_fn``, is safe in a
process with threads. It imports the standard library only.

The kernel watches the parent's *thread* that forked, not the process: ``app.embedded.process`` starts everything from one
thread that never ends.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Source: prctl(2)

NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""Exit codes of a program that could not be run, as in a shell."""


def die_with_parent(signum: int = signal.SIGKILL, *, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent goes; it gets it at once when that is already gone.

    Args:
        signum: the signal.
        parent: pid of the parent that is meant, where the caller knows it; by default whoever the parent is now.
    """
    if sys.platform != "linux":
        return
    import ctypes  # it costs 5 ms

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signum)


def main(argv: list[str]) -> int:
    """Set the signal, then become the program; returns only when that fails."""
    signum, parent, program = int(argv[0]), int(argv[1]), argv[2:]
    die_with_parent(signum, parent=parent)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
