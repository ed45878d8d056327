"""The demo's producer: real flights over HTTP, first one by one at a pace to watch, then in bulk; in a thread of its own."""

import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from app.errors import DedupError
from app.publisher import Publisher
from app.samples import flights
from app.settings import MAX_BATCH_EVENTS

SINGLES = 50
"""Events that come one by one."""
SINGLES_S = 6.0
"""Time that they take together."""


class Feed(threading.Thread):
    """Sends the first ``events`` flights. Its attributes may be read from any thread.

    Attributes:
        keys: those that the broadcaster answered 202 for, in order and each once.
        bulk_from: how many were accepted before the bulk began, or None before that.
        bulk_at: when the bulk began, by the monotonic clock.
        error: what ended it early, or None.
    """

    def __init__(self, url: str, events: int) -> None:
        super().__init__(name="feed", daemon=True)
        self._url = url
        self._events = events
        self._stopping = threading.Event()
        self.keys: dict[str, None] = {}
        self.bulk_from: int | None = None
        self.bulk_at = 0.0
        self.error: DedupError | None = None

    def run(self) -> None:
        """Send everything, or end with ``error`` set."""
        try:
            with Publisher(self._url) as publisher:
                rows = flights(self._events)
                self._send_singly(publisher, min(SINGLES, self._events), rows)
                self.bulk_from, self.bulk_at = len(self.keys), time.monotonic()
                while (batch := list(islice(rows, MAX_BATCH_EVENTS))) and not self._stopping.is_set():
                    self.keys.update(dict.fromkeys(publisher.send(batch)))
        except DedupError as error:
            self.error = error

    def _send_singly(self, publisher: Publisher, count: int, rows: Iterator[dict[str, Any]]) -> None:
        started = time.monotonic()
        for number, row in enumerate(islice(rows, count), 1):
            self.keys.update(dict.fromkeys(publisher.send([row])))
            due_at = started + number * SINGLES_S / SINGLES
            if self._stopping.wait(max(0.0, due_at - time.monotonic())):
                return

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()
