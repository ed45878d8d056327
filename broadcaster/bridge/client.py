"""A Socket.IO client that reads in order, and no more than it can hold.

Guarantees: handlers run one after the other on the thread that reads, so a slow one slows the server down instead of filling
memory; a binary event and its attachments, which travel as messages of their own, stay together; a message longer than
``MAX_MESSAGE_BYTES`` ends the connection before it is read (WebSocket only); what is no Socket.IO is counted and passed over; a server
that vanished without a goodbye is noticed by its silence, and nothing of its connection is left open.

An event for which the server wants an acknowledgement gets it when the handler says so, from whatever thread; and only on the connection
on which it came, for its number means another event on the next one.

python-socketio's own client starts a thread for every message: their order, and with it an event's attachments, is left to chance.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import engineio
import socketio
import structlog
from engineio import base_client
from socketio.exceptions import ConnectionError as SocketError
from websocket import WebSocket, WebSocketPayloadException
from websocket._abnf import continuous_frame, frame_buffer

from app.settings import without_user
from app.telemetry import name_of

log: Any = structlog.get_logger()

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_SILENCE_S = 120.0
"""A server that has not been heard of for longer is taken for gone, whatever it says about its pings."""
MIN_PING_S = 0.5
"""Shorter times between pings are no times."""
_LOGGED_EVERY = 1_000


Acknowledge = Callable[[], None]
"""Says to the server that an event is taken; does nothing where it did not ask, or where its connection is over."""
Heard = Callable[[list[Any], Acknowledge], None]
"""Takes the arguments of an event."""


def _nothing() -> None:
    return None


class OrderedClient(socketio.Client):  # type: ignore[misc]  # untyped library
    """A client for one connection at a time; whoever uses it connects again.

    Attributes:
        rubbish: messages that were no Socket.IO packet.
        message_bytes: length of the message in hand, attachments included; for handlers.
    """

    _binary_packet: Any
    namespaces: dict[str, str]

    def __init__(self, *, timeout_s: float) -> None:
        self.rubbish = 0
        self.message_bytes = 0
        self._heard: dict[tuple[str, str], Heard] = {}
        self._connection = 0
        self._acknowledging = threading.Lock()
        self._socket: _BoundedWebSocket | None = None
        self._dropped = False
        super().__init__(
            reconnection=False,
            handle_sigint=False,
            request_timeout=timeout_s,
            websocket_extra_options={
                "skip_utf8_validation": True,  # done byte by byte in Python; and the text is decoded later anyway
                "class_": self._open_socket,
            },
        )

    def hear(self, event: str, namespace: str, handler: "Heard") -> None:
        """Call this for an event; it acknowledges by itself, now or later."""
        self._heard[namespace, event] = handler

    def connect(self, *arguments: Any, **options: Any) -> None:
        """Connect; what was to be said on the last connection is not said on this one.

        Raises:
            socketio.exceptions.ConnectionError, OSError: it did not come about, whatever the server answered; nothing of it is left, and the
                next call begins anew.
        """
        with self._acknowledging:
            self._connection += 1
            with contextlib.suppress(queue.Empty):
                while True:
                    self.eio.queue.get_nowait()
        self._dropped = False
        try:
            super().connect(*arguments, **options)
            self._must_be_there()
        except Exception as error:
            self.eio.abandon()
            if self._socket is not None:
                self._socket.shutdown()  # type: ignore[no-untyped-call]  # untyped library
            if isinstance(error, SocketError):
                raise SocketError(f"{without_user(self.connection_url)}: {_reason(error)}") from error
            if isinstance(error, OSError):
                raise
            raise SocketError(f"the server's handshake is none: {error!r}"[:200]) from error

    def _handle_event(self, namespace: str | None, id: int | None, data: list[Any]) -> None:
        handler = self._heard.get((namespace or "/", data[0]))
        if handler is None:
            super()._handle_event(namespace, id, data)
            return
        handler(data[1:], _nothing if id is None else partial(self._acknowledge, self._connection, namespace, id))

    def _acknowledge(self, connection: int, namespace: str | None, id: int) -> None:
        with self._acknowledging:
            if connection == self._connection:
                self._send_packet(self.packet_class(socketio.packet.ACK, namespace=namespace, id=id, data=[]))

    def _must_be_there(self) -> None:
        if self._dropped:
            self.connected = False
            self.namespaces.clear()
            raise SocketError("the server let this client in and ended the connection at once")

    def _handle_eio_disconnect(self, reason: str) -> None:
        self._dropped = True  # the library passes over a connection's end while it has not noted its beginning
        super()._handle_eio_disconnect(reason)

    def _open_socket(self, *arguments: Any, **options: Any) -> "_BoundedWebSocket":
        self._socket = _BoundedWebSocket(*arguments, **options)
        return self._socket

    def _engineio_client_class(self) -> Callable[..., engineio.Client]:
        return lambda **options: _EngineClient(self._note_rubbish, **options)

    def _handle_eio_message(self, data: str | bytes) -> None:
        self.message_bytes = len(data) + (self.message_bytes if self._binary_packet else 0)
        super()._handle_eio_message(data)

    def _note_rubbish(self, error: Exception) -> None:
        if self.rubbish % _LOGGED_EVERY == 0:
            log.warning("bridge.rubbish", server=self.connection_url, error=name_of(error), before=self.rubbish)
        self.rubbish += 1
        self._binary_packet = None


def _reason(error: SocketError) -> str:
    """What the library says, and what it leaves out: it answers every socket that does not open with 'Connection error'."""
    told = str(error)
    below = error.__cause__.__context__ if error.__cause__ else None
    if below is None or str(below) in told:
        return told
    return f"{told} ({str(below).partition(' -+-+- ')[0][:200]})"  # what follows the mark are the answer's headers and body


class _EngineClient(engineio.Client):  # type: ignore[misc]  # untyped library
    ping_interval: float
    ping_timeout: float

    def __init__(self, on_rubbish: Callable[[Exception], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_rubbish = on_rubbish

    def abandon(self) -> None:
        """Forget a connection that did not come about; the library takes one whose handshake failed half-way for connected, for ever."""
        if self in base_client.connected_clients:
            base_client.connected_clients.remove(self)
        self._reset()

    def _trigger_event(self, event: str, *args: Any, **kwargs: Any) -> Any:
        if event == "connect":  # the time-outs of reading and writing follow from these two, and are set after this
            self.ping_interval = min(max(self.ping_interval, MIN_PING_S), MAX_SILENCE_S / 2)
            self.ping_timeout = min(max(self.ping_timeout, MIN_PING_S), MAX_SILENCE_S / 2)
        if event == "disconnect" and self.reason.TRANSPORT_ERROR in args and self.ws is not None:
            self.ws.shutdown()  # a server that fell silent: the client gives the connection up, and leaves it open
        if event != "message" or event not in self.handlers:
            return super()._trigger_event(event, *args, **kwargs)
        try:
            return self.handlers[event](*args)
        except Exception as error:  # noqa: BLE001 - the edge to somebody else's server: whatever it sent, the next message counts
            self._on_rubbish(error)
            return None


class _BoundedFrames(frame_buffer):
    def recv_length(self) -> None:
        super().recv_length()
        _refuse_over(self.length or 0)


class _BoundedMessages(continuous_frame):
    def add(self, frame: Any) -> None:
        _refuse_over(len(frame.data) + (len(self.cont_data[1]) if self.cont_data else 0))
        super().add(frame)


class _BoundedWebSocket(WebSocket):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.frame_buffer = _BoundedFrames(self._recv, skip_utf8_validation=True)
        self.cont_frame = _BoundedMessages(fire_cont_frame=False, skip_utf8_validation=True)

    def recv_data_frame(self, control_frame: bool = False) -> Any:
        try:
            return super().recv_data_frame(control_frame)
        except WebSocketPayloadException:
            WebSocket.shutdown(self)  # type: ignore[no-untyped-call]  # the client gives the connection up, and leaves it open
            raise


def _refuse_over(size: int) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise WebSocketPayloadException(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
