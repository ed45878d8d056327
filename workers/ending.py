"""The end of a listener, told to whoever is at work: finish the slice in hand, leave the rest.

Celery's warm shutdown waits for the running task. A delivery of slow events may take minutes, so the main process sets a mark that
its pool's children see (memory shared by the fork), and that threads of the same process see anyway; the pipeline looks at it
between two slices. What is left waits in the inbox, and the sweeper sends it again.

Guaranteed: once begun, it stays begun for the life of the process. Not guaranteed: that a child which was spawned, not forked,
hears of it; it then works its delivery to the end.
"""

import mmap


class Ending:
    """A mark that is set once. Make it before the fork."""

    def __init__(self) -> None:
        self._mark = mmap.mmap(-1, 1)

    def begin(self) -> None:
        """Say that this listener ends. Safe in a signal handler."""
        self._mark[0] = 1

    def begun(self) -> bool:
        """Whether this listener ends."""
        return self._mark[0] == 1


ending = Ending()
"""Of this listener: made when the module is imported, before the pool forks."""
