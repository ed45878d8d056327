"""A TCP proxy in the test's own process: cuts connections, refuses new ones, swallows, or stops at a chosen word."""

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Listens on a port of its own and passes everything on to another one, until it is told otherwise.

    Attributes:
        url_port: where it listens.
        stop_before: of what clients send, pass on only what comes before these bytes; from then on nothing passes either way.
        stopped_at: set once ``stop_before`` has been seen.
    """

    def __init__(self, port: int) -> None:
        """Listen, and pass everything on to this port of this machine."""
        self._port = port
        self.stop_before: bytes | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url_port: int = self._listening.getsockname()[1]
        self.stopped_at = threading.Event()
        self._refusing = False
        self._swallowing = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listening.close()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._refusing = True
        with self._lock:
            open_, self._open = self._open, set()
        for one in open_:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def mend(self) -> None:
        """Pass on again."""
        self._refusing = False
        self._swallowing.clear()

    def swallow(self) -> None:
        """Keep connections open, and pass nothing on any more: as when a cable is pulled."""
        self._swallowing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = None if self._refusing else self._connected()
            if server is None:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _connected(self) -> socket.socket | None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port), timeout=5)
        except OSError:
            return None
        server.settimeout(None)
        return server

    def _pass_on(self, giver: socket.socket, taker: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := giver.recv(65_536):
                if from_client and self.stop_before is not None and self.stop_before in data:
                    taker.sendall(data[: data.index(self.stop_before)])
                    self._swallowing.set()
                    self.stopped_at.set()
                elif not self._swallowing.is_set():
                    taker.sendall(data)
        for one in (giver, taker):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
