"""What was sent, and is not yet noted in the inbox.

A note comes a moment after the sending: by then most batches are finished and gone, and noting costs MongoDB a look into an index instead of a
write. Those of a quarter of a second come together. Until then a batch is *held* in the intake, so that the sweeper of this process leaves it to its
listeners. One whose note is lost with this process looks as if it had never been sent, and is sent once more.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from app.errors import TransientError
from app.stores.inbox import Inbox
from broadcaster.bridge.intake import Intake
from broadcaster.bridge.outage import Outage

log: Any = structlog.get_logger()

AFTER_S = 1.0
MAX_BATCHES = 50_000
"""So many wait at most while MongoDB is away; the oldest are given up to the sweeper."""


class Notes:
    """For one thread.

    Args:
        inbox: where forwarding is noted.
        intake: holds the batches until they are noted.
        after_s: time between sending and noting; a quarter more for the first of those that are noted together.
        clock: seconds, never going back.
    """

    def __init__(self, inbox: Inbox, intake: Intake, *, after_s: float = AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._inbox = inbox
        self._intake = intake
        self._after_s = after_s
        self._clock = clock
        self._waiting: deque[tuple[float, str, int]] = deque()
        self._mongo = Outage("mongodb")

    def add(self, sent: Iterable[tuple[str, int]]) -> None:
        """Batches that were sent, as ``(batch id, seq)``."""
        due = self._clock() + self._after_s
        self._waiting.extend((due, batch, seq) for batch, seq in sent)

    def write_due(self, *, all_: bool = False) -> None:
        """Note those whose time has come, or all of them; what MongoDB does not take now waits."""
        now = self._clock()
        if not all_ and (not self._waiting or now < self._waiting[0][0] + self._after_s / 4):
            return
        due: list[tuple[float, str, int]] = []
        while self._waiting and (all_ or self._waiting[0][0] <= now):
            due.append(self._waiting.popleft())
        if not due:
            return
        try:
            self._inbox.mark_forwarded((batch, seq) for _, batch, seq in due)
        except TransientError as error:
            self._mongo.note(error)
            self._waiting.extendleft(reversed(due))
            self._give_up([self._waiting.popleft()[1] for _ in range(len(self._waiting) - MAX_BATCHES)])
        except BaseException:
            self._give_up([batch for _, batch, _ in due])
            raise
        else:
            self._mongo.over()
            self._intake.release(batch for _, batch, _ in due)

    def _give_up(self, batches: list[str]) -> None:
        if batches:
            log.warning("batch.not_noted", batches=len(batches), first=batches[0])
            self._intake.release(batches)
