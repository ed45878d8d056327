"""What clients send to ``/socket.io/``, looked at before engine.io and python-socketio read it.

Those two take a request's body as long as it is, keep attachments without end, and end a connection with an exception when a packet
is none. Guarantees: what reaches them is an engine.io packet by its form, and no longer than ``MAX_CLIENT_PACKET``; a client that
sends something else is disconnected, alone, and counted; a polling client's body arrives within ``READ_TIMEOUT_S``; so many clients
as ``MAX_CLIENTS``, and of one address half of them. Not here: what a packet of the right form holds (:mod:`broadcaster.sockets`).

Source: https://github.com/socketio/engine.io-protocol (version 4), https://github.com/socketio/socket.io-protocol (version 5)
"""

import asyncio
import re
from collections.abc import Callable

from broadcaster.limits import client_of
from broadcaster.problems import problem
from broadcaster.refusals import Refusals
from broadcaster.sockets import MAX_CLIENT_PACKET, Asgi, Message, Receive, Send, SocketServer

PATH = "/socket.io/"
READ_TIMEOUT_S = 30.0
MAX_CLIENTS = 5_000
_PACKET = re.compile(r"4[0-6]|[12356](?:probe)?\Z").match
"""A message with a Socket.IO packet type, or one of engine.io's own: close, ping, pong, upgrade, noop."""
_BASE64 = re.compile(r"b[A-Za-z0-9+/]*={0,2}\Z").match
"""A binary message as polling clients send it."""
_SEPARATOR = "\x1e"
_GONE: Message = {"type": "websocket.disconnect", "code": 1007}


class CheckPackets:
    """ASGI: lets well-formed packets through to Socket.IO. Belongs to one event loop."""

    def __init__(self, app: Asgi, server: SocketServer, refusals: Refusals, *, max_clients: int = MAX_CLIENTS) -> None:
        self._app = app
        self._server = server
        self._refusals = refusals
        self._max_clients = max_clients

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] not in ("http", "websocket") or not f"{scope['path']}/".startswith(PATH):
            await self._app(scope, receive, send)
            return
        if b"sid=" not in scope["query_string"] and (why := self._no_room_for(client_of(scope))):
            await self._turn_away(scope, receive, send, why)
        elif scope["type"] == "websocket":
            await self._app(scope, self._checked(scope, receive), send)
        elif scope["method"] == "POST":
            await self._post(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _no_room_for(self, client: str) -> str:
        if len(self._server.eio.sockets) >= self._max_clients:
            return "more Socket.IO clients are connected than there is room for"
        if self._server.connected_from(client) >= self._max_clients // 2:
            return "more Socket.IO clients of this address are connected than one may have"
        return ""

    async def _turn_away(self, scope: Message, receive: Receive, send: Send, why: str) -> None:
        if scope["type"] == "http":
            await problem(503, why, headers={"Retry-After": "10"})(scope, receive, send)
            return
        self._refusals.note("socket.io", "503", client=client_of(scope), detail=why)
        await receive()
        await send({"type": "websocket.close", "code": 1013, "reason": why[:100]})

    def _checked(self, scope: Message, receive: Receive) -> Receive:
        """Messages of a WebSocket until one is no packet."""
        ended = False

        async def receive_checked() -> Message:
            nonlocal ended
            if ended:
                return _GONE
            message = await receive()
            text = message.get("text")
            if message["type"] == "websocket.receive" and text is not None and not _PACKET(text):
                ended = True
                self._refusals.note("socket.io", "rubbish", client=client_of(scope), detail="a message that is no packet")
                _cut(scope)
                return _GONE
            return message

        return receive_checked

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        """A polling client's packets."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await _read(receive)
        except TimeoutError:
            await problem(408, f"the body did not arrive within {READ_TIMEOUT_S:g} s")(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > MAX_CLIENT_PACKET:
            await problem(413, f"a request may have {MAX_CLIENT_PACKET} bytes", headers={"Connection": "close"})(scope, receive, send)
            return
        if not _is_payload(body):
            self._refusals.note("socket.io", "rubbish", client=client_of(scope), detail="a payload that is none")
            await problem(400, "the body is no engine.io payload")(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        whole = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self._app(whole, _once(body, receive), send)


def _is_payload(body: bytes) -> bool:
    try:
        packets = body.decode().split(_SEPARATOR)
    except UnicodeDecodeError:
        return False
    return len(packets) <= 16 and all(_PACKET(packet) or _BASE64(packet) for packet in packets)


async def _read(receive: Receive) -> bytes | None:
    """A body, or as much of it as is too much; None when the client went away."""
    chunks: list[bytes] = []
    size = 0
    more = True
    while more and size <= MAX_CLIENT_PACKET:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        more = message.get("more_body", False)
    return b"".join(chunks)


def _once(body: bytes, receive: Receive) -> Receive:
    """A body as the only message, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_next


def _cut(scope: Message) -> None:
    """Drop the connection, where :class:`~broadcaster.sockets.CutStalledClients` has said how."""
    cut: Callable[[], None] | None = scope.get("cut")
    if cut is not None:
        cut()
