"""HTTP/1.1 by as little work as possible: on two cores, what a client costs is taken from the system it measures.

Enough for a broadcaster on the loopback address, and for nothing else: responses with ``Content-Length``, connections that stay open, one
request at a time on each.
"""

import asyncio
from typing import cast
from urllib.parse import urlsplit

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class Connection(asyncio.Protocol):
    """One connection. :meth:`post` may be called again when it has answered.

    Attributes:
        closed: it was lost, or closed; a broadcaster closes one that was idle for some seconds.
    """

    def __init__(self) -> None:
        self.closed = False
        self._received = bytearray()
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def to(cls, url: str) -> "Connection":
        """Open a connection to ``http://host:port``.

        Raises:
            OSError: nobody listens.
        """
        parts = urlsplit(url)
        _, connection = await asyncio.get_running_loop().create_connection(cls, parts.hostname or "", parts.port or 80)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not say that it is one

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._received += data
        end = self._received.find(_END)
        if end < 0:
            return
        head = bytes(self._received[:end])
        at = head.lower().find(_LENGTH)
        length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._received) < end + len(_END) + length or self._waiter is None:
            return
        body = bytes(self._received[end + len(_END) :])
        self._received.clear()
        self._waiter.set_result((int(head[9:12]), body))
        self._waiter = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.closed = True
        if self._waiter is not None:
            self._waiter.set_exception(exc or ConnectionResetError("the broadcaster closed the connection"))
            self._waiter = None

    async def post(self, message: bytes) -> tuple[int, bytes]:
        """Send a whole request, as :func:`request` makes it; the status and body of its answer.

        Raises:
            OSError: the connection was lost.
        """
        assert self._transport is not None, "to() makes connections"
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._waiter

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


def request(body: bytes, path: str = "/events") -> bytes:
    """A whole POST request of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
