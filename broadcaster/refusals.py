"""What the doors refuse, counted and said.

Guarantees: every refusal counts; a flood of them makes one line in the log per kind and ``SAY_EVERY_S``, with their number; what is
remembered does not grow with what clients send. Not here: what a producer is told (:mod:`broadcaster.problems`).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

import structlog

from broadcaster.limits import client_of
from broadcaster.sockets import Asgi, Message, Receive, Send

SAY_EVERY_S = 10.0
_DOORS = ("events", "hooks", "burst", "socket.io")
_ALWAYS = frozenset({401, 403, 413, 429, 431})
"""Statuses that count for requests that only read, too."""

log = structlog.get_logger(__name__)


class Refusals:
    """Counts by door and kind, such as ``("events", "422")``. Belongs to one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def note(self, door: str, kind: str, *, client: str, detail: str = "") -> None:
        """Count one.

        Args:
            door: one of a few names.
            kind: a status, or one of a few words.
            client: who it was, for the log.
            detail: what is said about it in the log.
        """
        what = (door, kind)
        self._counts[what] += 1
        now = self._clock()
        said_at, count = self._said.get(what, (float("-inf"), 0))
        if now - said_at >= SAY_EVERY_S:
            log.warning("door.refused", door=door, kind=kind, client=client, detail=detail[:200], count=self._counts[what] - count)
            self._said[what] = (now, self._counts[what])

    def view(self) -> dict[str, dict[str, int]]:
        """The counts by door and kind."""
        found: dict[str, dict[str, int]] = {}
        for (door, kind), count in sorted(self._counts.items()):
            found.setdefault(door, {})[kind] = count
        return found


class CountRefusals:
    """ASGI: counts requests that are answered with an error. Questions about unknown keys and the like are none."""

    def __init__(self, app: Asgi, refusals: Refusals) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._note(scope, message["status"])
            await send(message)

        await self._app(scope, receive, send_and_count)

    def _note(self, scope: Message, status: int) -> None:
        if scope["method"] in ("GET", "HEAD") and status not in _ALWAYS:
            return
        door = scope["path"].split("/", 2)[1] if scope["path"].startswith("/") else ""
        self._refusals.note(
            door if door in _DOORS else "other", str(status), client=client_of(scope), detail=f"{scope['method']} {scope['path'][:100]}"
        )


class Throttle(logging.Filter):
    """Lets a library say the same thing once per ``SAY_EVERY_S``: what it says about rubbish, it says for every piece of it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is to be written; one that is says how many were not."""
        now = self._clock()
        text = str(record.msg).partition("\n")[0]
        said_at, kept_back = self._said.get(text, (float("-inf"), 0))
        if now - said_at < SAY_EVERY_S:
            self._said[text] = (said_at, kept_back + 1)
            return False
        if len(self._said) >= 1_000:  # texts with something of the client's in them
            self._said.clear()
        self._said[text] = (now, 0)
        if kept_back:
            record.msg = f"{record.msg} ({kept_back} more were not written)"
        return True
