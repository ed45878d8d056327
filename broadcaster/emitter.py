"""What the broadcaster says over Socket.IO once a batch is in the inbox.

| namespace | event | argument | for |
|---|---|---|---|
| ``/`` | ``event`` | one accepted event: ``key, digest, type, source``, and ``id, time, data`` and other attributes where it has them | any client |
| ``/bridge`` | ``batches`` | a list of announcements (:mod:`app.messages`) | bridges |

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

from app.events.event import Event
from app.messages import announcement
from broadcaster.ingress import Stored
from broadcaster.sockets import SocketServer

EVENTS = "/"
BRIDGES = "/bridge"
WAITING_BATCHES = 256
"""Batches that wait to be told; older ones are dropped."""
MESSAGE_EVENTS = 2_000
"""Most events announced in one message to the bridges."""
CHUNK_EVENTS = 100
"""After so many events the loop turns, so that a bulk request does not hold up a single one."""

log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


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
        for namespace in (EVENTS, BRIDGES):
            server.on("connect", self._let_in, namespace=namespace)

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

    async def _let_in(self, _sid: str, environ: dict[str, Any], auth: Any) -> None:
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
            message.append(announcement(batch.batch, [(e.key, e.digest, e.type) for e in batch.events], batch.accepted_at))
            events += len(batch.events)
            if events >= MESSAGE_EVENTS:
                self._send(bridges, BRIDGES, ["batches", message])
                message, events = [], 0
        if message:
            self._send(bridges, BRIDGES, ["batches", message])

    async def _tell(self) -> None:
        """Tell every client of the main namespace every event, batch by batch."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._untold:
                batch = self._untold.popleft()
                for start in range(0, len(batch.events), CHUNK_EVENTS):
                    clients = self._server.members(EVENTS)
                    if not clients:
                        break
                    for event in batch.events[start : start + CHUNK_EVENTS]:
                        self._send(clients, EVENTS, ["event", as_message(event)])
                    await asyncio.sleep(0)

    def _send(self, clients: list[str], namespace: str, content: list[Any]) -> None:
        dropped = self._server.send_json(clients, namespace, _encode(content))
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
