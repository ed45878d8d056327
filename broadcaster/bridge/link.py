"""A connection to a Socket.IO server that comes back.

Guarantees: it is made again, with jitter and growing pauses, for as long as nobody stops it; that it is waited for is said once. Not
guaranteed: that what the server sends meanwhile arrives.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

from socketio.exceptions import ConnectionError as SocketError

from broadcaster.bridge.client import OrderedClient
from broadcaster.bridge.outage import Outage

CONNECT_TIMEOUT_S = 5


class Link:
    """One client's connection to one namespace.

    Args:
        client: connects with it, and nobody else does.
        namespace: what is to be connected.
        what: the server's name in the logs.
        options: of the client's ``connect``.
        on_connected: called each time that it is there.
        pause_s: the first pause between two attempts, and the longest.
        look_s: time between two looks whether it is still there.
    """

    def __init__(
        self,
        client: OrderedClient,
        namespace: str,
        what: str,
        options: dict[str, Any],
        *,
        on_connected: Callable[[], None],
        pause_s: tuple[float, float],
        look_s: float,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._options = {"namespaces": [namespace], "wait_timeout": CONNECT_TIMEOUT_S} | options
        self._on_connected = on_connected
        self._first_pause_s, self._longest_pause_s = pause_s
        self._look_s = look_s
        self._outage = Outage(what)
        self._lost = threading.Event()
        client.on("disconnect", self._on_disconnect, namespace=namespace)

    @property
    def connected(self) -> bool:
        """Whether something can arrive now."""
        return self._namespace in self._client.namespaces

    def run(self, stop: threading.Event, say: Callable[[], None] = lambda: None) -> None:
        """Stay connected until told to stop.

        Args:
            stop: tells it.
            say: called at each change, and at each look.
        """
        pause_s = self._first_pause_s
        while not stop.is_set():
            if self._connect():
                pause_s = self._first_pause_s
                say()
                while not self._lost.wait(self._look_s) and self.connected and not stop.is_set():
                    say()
                self._client.disconnect()
                if not stop.is_set():
                    self._outage.note("the connection was lost")
            say()
            stop.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(self._longest_pause_s, pause_s * 2)

    def close(self) -> None:
        """End the connection, from any thread."""
        self._lost.set()

    def _connect(self) -> bool:
        self._lost.clear()
        try:
            self._client.connect(**self._options)
        except (SocketError, OSError, ValueError) as error:
            self._outage.note(error)
            return False
        self._outage.over()
        self._on_connected()
        return True

    def _on_disconnect(self, *_reason: object) -> None:
        self._lost.set()
