"""Says once that something is away, and once that it is back."""

import time
from typing import Any

import structlog

from app.stores.records import utc_now

log: Any = structlog.get_logger()


class Outage:
    """The state of one thing that this process waits for. For one thread.

    Args:
        what: its name in the logs.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began: float | None = None

    def note(self, error: object) -> None:
        """It did not serve; said at the first time only."""
        if self._began is None:
            self._began = time.monotonic()
            log.warning("bridge.waiting", what=self._what, since=utc_now().isoformat(), error=str(error))

    def over(self) -> None:
        """It has served."""
        if self._began is not None:
            log.info("bridge.resumed", what=self._what, after_s=round(time.monotonic() - self._began, 1))
            self._began = None
