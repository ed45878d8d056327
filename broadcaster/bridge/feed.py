"""Listening to a broadcaster: a Socket.IO client on the namespace ``/bridge``.

Guarantees: it connects again, with jitter, for as long as it is not stopped, and says once that it waits. Not guaranteed: that
every announcement arrives; what is missed is in the inbox. An announcement of a version that this process does not know is
refused, loudly, and left to a bridge or sweeper that knows it.
"""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from app.messages import Announcement, read_announcements
from broadcaster.bridge.client import OrderedClient
from broadcaster.bridge.link import CONNECT_TIMEOUT_S, Link

log: Any = structlog.get_logger()

NAMESPACE = "/bridge"
EVENT = "batches"
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
        self._accept = accept
        self._refused: set[str] = set()
        self._client = OrderedClient(timeout_s=CONNECT_TIMEOUT_S)
        self._client.on(EVENT, self._on_batches, namespace=NAMESPACE)
        self._link = Link(
            self._client,
            NAMESPACE,
            f"broadcaster {url}",
            {"url": url, "auth": {"token": token} if token else None, "transports": ["websocket"]},
            on_connected=lambda: log.info("bridge.connected", broadcaster=url),
            pause_s=(0.1, 3.0),
            look_s=0.5,
        )

    @property
    def connected(self) -> bool:
        """Whether announcements can arrive now."""
        return self._link.connected

    def run(self, stop: threading.Event) -> None:
        """Stay connected until told to stop."""
        self._link.run(stop)

    def close(self) -> None:
        """End the connection, from any thread."""
        self._link.close()

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
