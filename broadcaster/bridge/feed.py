"""Listening to a broadcaster: a Socket.IO client on the namespace ``/bridge``.

Guarantees: it connects again, with jitter, for as long as it is not stopped, and says once that it waits. Not guaranteed: that
every announcement arrives; what is missed is in the inbox. An announcement of a version that this process does not know is
refused, loudly, and left to a bridge or sweeper that knows it.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from socketio.exceptions import ConnectionError as SocketError

from app.messages import Announcement, read_announcements
from broadcaster.bridge.client import OrderedClient
from broadcaster.bridge.outage import Outage

log: Any = structlog.get_logger()

NAMESPACE = "/bridge"
EVENT = "batches"
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0
_CONNECT_TIMEOUT_S = 5
_FAULTS_TOLD = 100
"""Different ones that are said, each once."""


class Feed:
    """One broadcaster, as a source of announcements.

    Args:
        url: of the broadcaster.
        token: bearer token, or empty.
        accept: called with the announcements of each message, on a thread of the client's.
    """

    def __init__(self, url: str, token: str, accept: Callable[[list[Announcement]], None]) -> None:
        self.url = url
        self._token = token
        self._accept = accept
        self._outage = Outage(f"broadcaster {url}")
        self._lost = threading.Event()
        self._refused: set[str] = set()
        self._client = OrderedClient(timeout_s=_CONNECT_TIMEOUT_S)
        self._client.on(EVENT, self._on_batches, namespace=NAMESPACE)
        self._client.on("disconnect", self._on_disconnect, namespace=NAMESPACE)

    @property
    def connected(self) -> bool:
        """Whether announcements can arrive now."""
        return NAMESPACE in self._client.namespaces

    def run(self, stop: threading.Event) -> None:
        """Stay connected until told to stop."""
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            if self._connect():
                pause_s = _FIRST_PAUSE_S
                while not self._lost.wait(0.5) and self.connected and not stop.is_set():
                    pass
                self._client.disconnect()
                if not stop.is_set():
                    self._outage.note("the connection was lost")
            stop.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def close(self) -> None:
        """End the connection, from any thread."""
        self._lost.set()

    def _connect(self) -> bool:
        self._lost.clear()
        try:
            self._client.connect(
                self.url,
                auth={"token": self._token} if self._token else None,
                transports=["websocket"],
                namespaces=[NAMESPACE],
                wait_timeout=_CONNECT_TIMEOUT_S,
            )
        except (SocketError, OSError, ValueError) as error:
            self._outage.note(error)
            return False
        self._outage.over()
        log.info("bridge.connected", broadcaster=self.url)
        return True

    def _on_disconnect(self, *_reason: object) -> None:
        self._lost.set()

    def _on_batches(self, received: object) -> None:
        if isinstance(received, bytes):
            received = msgspec.msgpack.decode(received)
        announced, faults = read_announcements(received)
        for fault in faults:
            if fault not in self._refused and len(self._refused) < _FAULTS_TOLD:
                self._refused.add(fault)
                log.error("bridge.refused", broadcaster=self.url, reason=fault)
        if announced:
            self._accept(announced)
