"""Socket.IO connections that cannot grow: a queue with an end for every client, and an end for clients that take nothing.

Guarantees: per client at most ``MAX_QUEUED_BYTES`` or ``MAX_QUEUED_PACKETS`` wait, whatever it does; what does not fit is dropped for
that client alone, and counted. Answers are not dropped: a client that lets them pile up is cut, and so is one that sends what is no
Socket.IO. A WebSocket that takes nothing for ``SEND_TIMEOUT_S`` is cut. No client waits for another.
Not guaranteed: delivery. engine.io's own queue has no end, and its server waits for ever for a client that stopped reading.

Source: engine.io protocol 4 (packet type 4 is a message), Socket.IO protocol 5 (``2`` event, then ``/namespace,`` unless it is
the main one, then a JSON list; ``51-`` an event with one binary attachment, which follows): https://github.com/socketio/socket.io-protocol
"""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import engineio
import socketio
from engineio import packet as engine_packet

from app.telemetry import name_of
from broadcaster.limits import UNKNOWN, client_of

MAX_QUEUED_BYTES = 4 * 1024 * 1024
MAX_QUEUED_PACKETS = 1_000
FLOOD = 2
"""A client that has this many times as much waiting asks for answers without reading them, and is cut."""
MAX_ATTACHMENTS = 16
POLL_PACKETS = 15
"""Packets of one poll: client libraries take more than 16 in one payload for an attack."""
READ_LATER_CHARACTERS = 16 * 1024
_LATER = re.compile(r'2(?P<id>[0-9]{0,15})\["(?P<name>publish)",').match
_RESERVED = frozenset({"connect", "disconnect", "connect_error"})
SEND_TIMEOUT_S = 15.0
MAX_CLIENT_PACKET = 1_000_000
"""Largest packet from a client, in bytes."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]


class PacketQueue(asyncio.Queue[Any]):
    """A client's outgoing packets, with the bytes they hold; gives at most ``POLL_PACKETS`` at a time."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.bytes = 0
        self._given = 0

    def _put(self, item: Any) -> None:
        self.bytes += _weight(item)
        super()._put(item)

    def _get(self) -> Any:
        item = super()._get()
        self.bytes -= _weight(item)
        return item

    async def get(self) -> Any:
        """Wait for the first packet of a payload."""
        while True:
            self._given = 0
            try:
                return await super().get()
            except asyncio.QueueEmpty:  # another poll of the same client filled its payload meanwhile
                continue

    def get_nowait(self) -> Any:
        """One more packet, unless the payload is full."""
        if self._given == POLL_PACKETS:
            raise asyncio.QueueEmpty
        item = super().get_nowait()
        self._given += 1
        return item

    @property
    def full_for_events(self) -> bool:
        """Whether events are dropped; the protocol's own packets (ping, close) always fit."""
        return self.bytes > MAX_QUEUED_BYTES or self.qsize() >= MAX_QUEUED_PACKETS

    def check_flood(self) -> None:
        """Raise ValueError when there is too much even of answers, which are never dropped."""
        if self.bytes > FLOOD * MAX_QUEUED_BYTES or self.qsize() >= FLOOD * MAX_QUEUED_PACKETS:
            raise ValueError("it asks for answers and does not read them")


def _weight(item: Any) -> int:
    data = getattr(item, "data", None)
    return len(data) if isinstance(data, str | bytes) else 0


class _EngineServer(engineio.AsyncServer):  # type: ignore[misc]  # untyped library
    def create_queue(self, *_args: Any, **_kwargs: Any) -> PacketQueue:
        return PacketQueue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """The arguments of a long event as they came: a JSON array, but for the event's name."""

    text: str


class _Packet(socketio.packet.Packet):  # type: ignore[misc]  # untyped library
    """A packet that leaves long events of one name unread: reading them is a thread's business."""

    def decode(self, encoded_packet: str) -> int:
        """Read a packet; the number of its attachments."""
        if len(encoded_packet) > READ_LATER_CHARACTERS and (found := _LATER(encoded_packet)):
            self.packet_type = socketio.packet.EVENT
            self.namespace = None
            self.id = int(found["id"]) if found["id"] else None
            self.data = [found["name"], Unread(text="[" + encoded_packet[found.end() :])]
            return 0
        attachments: int = super().decode(encoded_packet)
        return attachments


packet_bytes: ContextVar[int] = ContextVar("packet_bytes", default=0)
"""Length of the packet that a handler was called for, attachments included."""

Rubbish = Callable[[str, str], None]
"""Told of a client that is cut: its address, and why."""


class SocketServer(socketio.AsyncServer):  # type: ignore[misc]  # untyped library
    """A Socket.IO server with bounded clients.

    Args:
        on_rubbish: told of packets that are none.
    """

    _binary_packet: dict[str, Any]

    def __init__(self, on_rubbish: Rubbish = lambda _client, _why: None) -> None:
        super().__init__(
            async_mode="asgi",
            logger=logging.getLogger("socketio"),
            engineio_logger=logging.getLogger("engineio"),
            max_http_buffer_size=MAX_CLIENT_PACKET,
            namespaces=["/", "/bridge", "/watch"],
            serializer=_Packet,
        )
        self._on_rubbish = on_rubbish
        self._clients: Counter[str] = Counter()
        self._lengths: dict[str, int] = {}

    def connected_from(self, client: str) -> int:
        """How many connections an address has."""
        return self._clients[client]

    def client_of(self, sid: str, namespace: str) -> str:
        """The address of a client, as rate limits know it."""
        environ = self.get_environ(sid, namespace)
        return client_of(environ["asgi.scope"]) if environ else UNKNOWN

    def _engineio_server_class(self) -> type[engineio.AsyncServer]:
        return _EngineServer

    def members(self, namespace: str, rooms: Sequence[str] | None = None) -> list[str]:
        """Engine ids of the clients that have been let into a namespace; only those in any of the rooms, where some are named."""
        found = self.manager.get_participants(namespace, rooms)
        return [engine_id for sid, engine_id in found if self.manager.is_connected(sid, namespace)]

    def send_json(self, engine_ids: list[str], namespace: str, payload: bytes) -> int:
        """Queue one event, encoded as ``["name", data]``, for several clients; returns for how many there was no room."""
        prefix = "2" if namespace == "/" else f"2{namespace},"
        return self._send(engine_ids, engine_packet.Packet(engine_packet.MESSAGE, data=prefix + payload.decode()))

    def send_binary(self, engine_ids: list[str], namespace: str, name: str, payload: bytes) -> int:
        """Queue one event whose argument is binary; the same otherwise. Its two packets go together or not at all."""
        prefix = "51-" if namespace == "/" else f"51-{namespace},"
        head = f'{prefix}["{name}",{{"_placeholder":true,"num":0}}]'
        return self._send(
            engine_ids,
            engine_packet.Packet(engine_packet.MESSAGE, data=head),
            engine_packet.Packet(engine_packet.MESSAGE, data=payload),
        )

    def _send(self, engine_ids: list[str], *packets: engine_packet.Packet) -> int:
        dropped = 0
        for engine_id in engine_ids:
            client = self.eio.sockets.get(engine_id)
            if client is None or client.closed or client.closing:
                continue
            if client.queue.full_for_events:
                dropped += 1
            else:
                for packet in packets:
                    client.queue.put_nowait(packet)
        return dropped

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        self._clients[client_of(environ["asgi.scope"])] += 1
        await super()._handle_eio_connect(eio_sid, environ)

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        """A client is gone: also end its poll, which engine.io would keep open until the next ping."""
        if (environ := self.environ.get(eio_sid)) is not None:
            address = client_of(environ["asgi.scope"])
            self._clients[address] -= 1
            if self._clients[address] <= 0:
                del self._clients[address]
        await super()._handle_eio_disconnect(eio_sid, reason)
        self._binary_packet.pop(eio_sid, None)
        self._lengths.pop(eio_sid, None)
        client = self.eio.sockets.get(eio_sid)
        if client is not None:  # after the packet that says goodbye, which comes next
            asyncio.get_running_loop().call_soon(client.queue.put_nowait, None)

    async def _handle_eio_message(self, eio_sid: str, data: str | bytes) -> None:
        """Read one message. Whatever is wrong with it is the client's doing, and ends its connection."""
        socket = self.eio.sockets.get(eio_sid)
        if socket is None or socket.closed or eio_sid not in self.environ:
            return  # it was cut, and this was under way
        try:
            socket.queue.check_flood()
            self._note_length(eio_sid, data)
            await super()._handle_eio_message(eio_sid, data)
            self._check_attachments(eio_sid)
        except Exception as error:  # noqa: BLE001 - the edge to clients: the library raises whatever a packet makes it stumble over
            await self._cut(eio_sid, name_of(error))

    def _note_length(self, eio_sid: str, data: str | bytes) -> None:
        """An event with attachments is held until all of them are here: together they are no longer than one packet may be."""
        held = eio_sid in self._binary_packet
        if held and not isinstance(data, bytes):
            raise ValueError("text where an attachment should be")
        length = len(data) + (self._lengths.get(eio_sid, 0) if held else 0)
        if length > MAX_CLIENT_PACKET:
            raise ValueError(f"a packet of more than {MAX_CLIENT_PACKET} bytes")
        self._lengths[eio_sid] = length
        packet_bytes.set(length)

    def _check_attachments(self, eio_sid: str) -> None:
        held = self._binary_packet.get(eio_sid)
        if held is not None and held.attachment_count > MAX_ATTACHMENTS:
            raise ValueError(f"more than {MAX_ATTACHMENTS} attachments")

    async def _handle_event(self, eio_sid: str, namespace: str | None, id: int | None, data: Any) -> None:
        if not (isinstance(data, list) and data and isinstance(data[0], str)):
            raise ValueError("an event without a name")
        if data[0] in _RESERVED:
            raise ValueError("an event with a reserved name")  # the library would call our handlers of connections
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace or "/")
        if sid is None or not self.manager.is_connected(sid, namespace or "/"):
            return  # the library says so in the log each time; it was refused, or has left
        await super()._handle_event(eio_sid, namespace, id, data)

    async def _cut(self, eio_sid: str, why: str) -> None:
        """End a connection that brings rubbish."""
        environ = self.environ.get(eio_sid)
        socket = self.eio.sockets.get(eio_sid)
        if environ is None or socket is None or socket.closed:
            return
        scope = environ["asgi.scope"]
        self._on_rubbish(client_of(scope), why)
        await socket.close(wait=False, abort=True, reason=self.eio.reason.SERVER_DISCONNECT)
        if scope["type"] == "websocket" and (cut := scope.get("cut")):
            cut()

    async def hang_up(self) -> None:
        """Say goodbye to every client, and end what waits for one."""
        for client in list(self.eio.sockets.values()):
            await client.close(wait=False, reason=self.eio.reason.SERVER_DISCONNECT)
        await self.shutdown()


class CutStalledClients:
    """ASGI: cuts a WebSocket whose client takes nothing for ``SEND_TIMEOUT_S``; ``scope["cut"]()`` cuts it at once."""

    def __init__(self, app: Asgi, *, timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, _unless_gone(send) if scope["type"] == "http" else send)
            return
        loop = asyncio.get_running_loop()
        scope["cut"] = lambda: _cut(send)

        async def send_or_cut(message: Message) -> None:
            timer = loop.call_later(self._timeout_s, _cut, send)
            try:
                await send(message)
            finally:
                timer.cancel()

        await self._app(scope, receive, send_or_cut)


def _unless_gone(send: Send) -> Send:
    """A ``send`` to which a client that has just gone is no error; uvloop knows of it before uvicorn does."""

    async def send_unless_gone(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError:
            transport = getattr(getattr(send, "__self__", None), "transport", None)
            if transport is None or not transport.is_closing():
                raise

    return send_unless_gone


def _cut(send: Send) -> None:
    """Drop the connection under a ``send``: uvicorn's is a method of its protocol, and a close would wait to flush."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
