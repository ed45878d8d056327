"""WebSockets within bounds: no client keeps the event loop to itself, or makes us write without end.

uvicorn parses whatever one read brings at a time, and in Python: 256 KiB of the smallest frames are more than a second's work, in which
nobody else is served. Guarantees: what arrives is parsed in pieces of ``PIECE_BYTES``, the next one when the messages of the last have been
taken; a client that does not read our pongs is cut; text that is not UTF-8 ends its connection, and is counted.
"""

from asyncio import Transport
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from broadcaster.heads import Rubbish
from broadcaster.limits import network_of

PIECE_BYTES = 8 * 1024
MAX_UNWRITTEN_BYTES = 8 * 1024 * 1024
"""More than the largest message that we send, and than a client's queue holds."""


class _Gate:
    """A transport that resumes reading only when the protocol has no piece left."""

    def __init__(self, transport: Transport, resume: Callable[[], None]) -> None:
        self._transport = transport
        self.resume_reading = resume

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, piece by piece.

    Args:
        options: uvicorn's.
        on_rubbish: told of clients that are cut.
    """

    def __init__(self, *, on_rubbish: Rubbish = lambda _client, _why: None, **options: Any) -> None:
        super().__init__(**options)
        self._on_rubbish = on_rubbish
        self._unread = bytearray()
        self._scheduled = False
        self._paused = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn uses it
        """A client has connected."""
        self._socket = transport
        super().connection_made(_Gate(transport, self._taken))  # type: ignore[arg-type]  # it is one where it matters

    def data_received(self, data: bytes) -> None:
        """Take what arrived; it is parsed now as far as it fits into one piece."""
        self._unread += data
        if not self._scheduled and not self.read_paused:
            self._parse()

    def handle_ping(self) -> None:
        """Answer a ping, unless too many answers lie unread."""
        if self._socket.get_write_buffer_size() > MAX_UNWRITTEN_BYTES:
            self._cut("it sends pings and does not read the pongs")
        else:
            super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        """Hand a message over."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._cut("text that is not UTF-8")
                return
        super().send_receive_event_to_app()

    def _taken(self) -> None:
        """The application has taken the messages so far."""
        if self._unread:
            self._schedule()
        elif self._paused and not self._socket.is_closing():
            self._paused = False
            self._socket.resume_reading()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._parse)

    def _parse(self) -> None:
        self._scheduled = False
        if self._socket.is_closing():
            self._unread.clear()
            return
        piece = bytes(self._unread[:PIECE_BYTES])
        del self._unread[:PIECE_BYTES]
        if self._unread:
            self._pause()
        super().data_received(piece)
        if self.read_paused:
            self._pause()
        else:
            self._taken()

    def _pause(self) -> None:
        if not self._paused and not self._socket.is_closing():
            self._paused = True
            self._socket.pause_reading()

    def _cut(self, why: str) -> None:
        self._on_rubbish(network_of(self.client[0]) if self.client else "", why)
        self._unread.clear()
        self._socket.abort()
