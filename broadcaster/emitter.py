"""What the broadcaster says over Socket.IO once a batch is in the inbox.

| namespace | event | argument | for |
|---|---|---|---|
| ``/`` | ``event`` | one accepted event: ``key, digest, type, source``, and ``id, time, data`` and other attributes where it has them | any client; by type, where it subscribed (:mod:`broadcaster.rooms`) |
| ``/bridge`` | ``batches`` | a list of announcements (:mod:`app.messages`), as msgpack in one binary argument | bridges |

Guarantees: nothing is said that a majority does not hold; no producer and no client waits for a client; what waits here is bounded.
Not guaranteed: that anybody hears it. What a bridge misses, the sweeper sends.
"""

import asyncio
import base64
import hmac
from collections import deque
from typing import Any

import msgspec
import structlog
from socketio.exceptions import ConnectionRefusedError as Refused

from app.errors import InvalidEvent
from app.events.event import Event
from broadcaster.ingress import Stored
from broadcaster.rooms import NAMESPACE as EVENTS
from broadcaster.rooms import Rooms
from broadcaster.sockets import SocketServer

BRIDGES = "/bridge"
WAITING_BATCHES = 256
"""Batches that wait to be told; older ones are dropped."""
MESSAGE_EVENTS = 2_000
"""Most events announced in one message to the bridges."""
CHUNK_EVENTS = 100
"""After so many events the loop turns, so that a bulk request does not hold up a single one."""

log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class Emitter:
    """Says what was stored. Belongs to one event loop.

    Args:
        server: the Socket.IO server; its connect handlers are set here.
        token: required from every client when it is not empty.
    """

    def __init__(self, server: SocketServer, *, token: str) -> None:
        self._server = server
        self._token = token.encode()
        self._unannounced: list[Stored] = []
        self._untold: deque[Stored] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.sent = 0
        self.dropped = 0
        """Messages that found no room at a client, and batches that found none here."""
        self._rooms = Rooms(server)
        server.on("connect", self.let_in, namespace=BRIDGES)
        server.on("connect", self._welcome, namespace=EVENTS)

    def start(self) -> None:
        """Begin to speak."""
        self._task = asyncio.get_running_loop().create_task(self._tell())

    async def stop(self) -> None:
        """Stop speaking; what waits is left to the sweeper."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def push(self, stored: list[Stored]) -> None:
        """Take batches over; never waits. Bridges hear of them in the loop's next turn, after the producers."""
        if not self._unannounced:
            asyncio.get_running_loop().call_soon(self._announce)
        self._unannounced.extend(stored)
        self._untold.extend(stored)
        while len(self._untold) > WAITING_BATCHES:
            self._untold.popleft()
            self.dropped += 1
        self._more.set()

    def clients(self) -> dict[str, int]:
        """Number of connected clients by namespace."""
        return {namespace: len(self._server.members(namespace)) for namespace in (EVENTS, BRIDGES)}

    async def _welcome(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
        await self.let_in(sid, environ, auth)
        try:
            self._rooms.welcome(sid, auth)
        except InvalidEvent as error:
            raise Refused(str(error)) from None

    async def let_in(self, _sid: str, environ: dict[str, Any], auth: Any) -> None:
        """A connect handler: refuse a client that does not know the token."""
        if not self._token:
            return
        given = auth.get("token") if isinstance(auth, dict) else None
        if not isinstance(given, str):
            given = str(environ.get("HTTP_AUTHORIZATION", "")).removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token):
            raise Refused("a valid token is required")

    def _announce(self) -> None:
        """Announce to the bridges what was stored since the last turn, in as few messages as fit."""
        batches, self._unannounced = self._unannounced, []
        bridges = self._server.members(BRIDGES)
        if not bridges:
            return
        message: list[dict[str, Any]] = []
        events = 0
        for batch in batches:
            message.append(batch.announcement())
            events += len(batch.events)
            if events >= MESSAGE_EVENTS:
                self._announce_to(bridges, message)
                message, events = [], 0
        if message:
            self._announce_to(bridges, message)

    async def _tell(self) -> None:
        """Tell the clients of the main namespace what they hear, batch by batch."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._untold:
                batch = self._untold.popleft()
                for start in range(0, len(batch.events), CHUNK_EVENTS):
                    if not self._server.members(EVENTS):
                        break
                    audience: dict[str, list[str]] = {}
                    for event in batch.events[start : start + CHUNK_EVENTS]:
                        if event.type not in audience:
                            audience[event.type] = self._rooms.audience(event.type)
                        if clients := audience[event.type]:
                            self._count(clients, self._server.send_json(clients, EVENTS, _encode(["event", as_message(event)])))
                    await asyncio.sleep(0)

    def _announce_to(self, bridges: list[str], message: list[dict[str, Any]]) -> None:
        self._count(bridges, self._server.send_binary(bridges, BRIDGES, "batches", _pack(message)))

    def _count(self, clients: list[str], dropped: int) -> None:
        self.sent += len(clients) - dropped
        self.dropped += dropped


def as_message(event: Event) -> dict[str, Any]:
    """An event as clients see it: flat as in CloudEvents, with key and digest; binary data as ``data_base64``."""
    message: dict[str, Any] = event.extra | {"key": event.key, "digest": event.digest, "type": event.type, "source": event.source}
    if event.id is not None:
        message["id"] = event.id
    if event.time is not None:
        message["time"] = event.time
    if isinstance(event.data, bytes):
        message["data_base64"] = base64.b64encode(event.data).decode()
    else:
        message["data"] = event.data
    return message
