"""This process's HTTP requests, by door, method and status, and how long those took that bring events.

Guarantees: what is remembered does not grow with what clients send. Requests that end before they are read (rubbish, heads that are too
large) are not here but among the refusals (:mod:`broadcaster.refusals`).
"""

import time
from bisect import bisect_left
from collections import Counter

from app.totals import Histogram
from broadcaster.sockets import Asgi, Message, Receive, Send

BOUNDS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DOORS = frozenset({"burst", "events", "failures", "health", "hooks", "metrics", "openapi.json", "socket.io", "static", "stats"})
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_TIMED = frozenset({"events", "hooks"})


class Requests:
    """Counts. Belongs to one event loop."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.durations = {door: Histogram([0] * (len(BOUNDS_S) + 1)) for door in sorted(_TIMED)}

    def note(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        door = path.split("/", 2)[1] if path.startswith("/") else ""
        door = door if door in _DOORS else "other" if door else "page"
        self.counts[door, method if method in _METHODS else "other", status] += 1
        if method == "POST" and door in _TIMED:
            histogram = self.durations[door]
            histogram.buckets[bisect_left(BOUNDS_S, seconds)] += 1
            histogram.seconds += seconds


class CountRequests:
    """ASGI: counts the requests that pass."""

    def __init__(self, app: Asgi, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            if status:
                self._requests.note(scope["path"], scope["method"], status, time.monotonic() - began)
