"""Hears what listeners tell (:mod:`app.outcomes`), and tells them that somebody watches.

Guarantees: a thread while it runs and none otherwise; an outage of Redis or MongoDB is said in ``error``, and what was lost is not
asked for again. Not guaranteed: that every outcome is heard.
"""

import asyncio
import threading
import time
from collections.abc import Callable

import structlog

from app.errors import TransientError
from app.outcomes import WATCHED_MS, Told, channel, decoded, watched_key
from app.redis_client import Client, translated

POLL_S = 0.5
AGAIN_S = 1.0

log = structlog.get_logger(__name__)


class Relay:
    """Belongs to one event loop, in which ``on_told`` is called.

    Args:
        client: of the claims' Redis.
        deployment: reads the deployment's id; blocks; raises a TransientError while MongoDB is away.
        on_told: called with everything that is heard.
    """

    def __init__(self, client: Client, deployment: Callable[[], str], on_told: Callable[[Told], None]) -> None:
        self._client = client
        self._deployment = deployment
        self._on_told = on_told
        self._stop: threading.Event | None = None
        self.error = ""

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._stop is not None

    def start(self) -> None:
        """Begin to listen."""
        if self._stop is None:
            self._stop = threading.Event()
            arguments = (self._stop, asyncio.get_running_loop())
            threading.Thread(target=self._run, args=arguments, name="outcomes-relay", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; the thread ends by itself, soon."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def _run(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        while not stop.is_set():
            try:
                self._listen(stop, loop)
            except TransientError as error:
                self._say(str(error))
                stop.wait(AGAIN_S)

    def _listen(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        deployment = self._deployment()
        with translated(), self._client.pubsub(ignore_subscribe_messages=True) as hearing:  # type: ignore[no-untyped-call]
            hearing.subscribe(channel(deployment))
            say_at = 0.0
            while not stop.is_set():
                if time.monotonic() >= say_at:
                    self._client.set(watched_key(deployment), 1, px=WATCHED_MS)
                    say_at = time.monotonic() + WATCHED_MS / 3000
                    self._say("")
                message = hearing.get_message(timeout=POLL_S)
                told = decoded(message["data"]) if message else None
                if told is not None and not stop.is_set():
                    try:
                        loop.call_soon_threadsafe(self._on_told, told)
                    except RuntimeError:  # the loop has ended
                        return

    def _say(self, error: str) -> None:
        if bool(error) != bool(self.error):
            log.warning("outcomes.unheard", error=error) if error else log.info("outcomes.heard")
        self.error = error
