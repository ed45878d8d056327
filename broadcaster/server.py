"""The broadcaster's parts put together, and the server that runs them.

Start: the port is taken before anything else, so that a second broadcaster says so at once. MongoDB and Redis may be away: the
server starts, says 503, and recovers by itself.
End (SIGTERM, SIGINT, SIGHUP): no new connections, goodbye to Socket.IO clients, the requests under way are answered, the write under way
ends; all within ``END_S``, or the process is cut off, which harms nothing that was acknowledged.
"""

import asyncio
import errno
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import FrameType

import socketio
import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app import __version__
from app.errors import ServerStartError, SettingsError, TransientError
from app.events.hooks import Hook
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.settings import Settings
from app.stores.inbox import Inbox
from app.stores.mongo import connect
from app.totals import Histogram
from broadcaster import problems
from broadcaster.doors import Doors
from broadcaster.emitter import Emitter
from broadcaster.frames import BoundedWebSocket
from broadcaster.guard import Guard
from broadcaster.heads import BoundedHeads
from broadcaster.ingress import Ingress, Stored
from broadcaster.live.failures import FailureRoutes
from broadcaster.live.page import Page
from broadcaster.live.watchers import Watchers
from broadcaster.metrics.deployment import DeploymentLook
from broadcaster.metrics.families import Here
from broadcaster.metrics.requests import CountRequests, Requests
from broadcaster.metrics.route import Metrics
from broadcaster.packets import CheckPackets
from broadcaster.publishing import Publishing
from broadcaster.reads import Reads
from broadcaster.reception import Reception
from broadcaster.refusals import CountRefusals, Refusals, Throttle
from broadcaster.sockets import MAX_CLIENT_PACKET, Asgi, CutStalledClients, SocketServer
from broadcaster.stats import Accepted, Report
from broadcaster.watch import InboxWatch
from broadcaster.webhooks import Webhooks

END_S = 9.5
ANSWER_S = 6.5
"""Of these, for the requests under way."""
GOODBYE_S = 1.0
KEEP_ALIVE_S = 65
BACKLOG = 1_024
SWITCH_S = 0.0005
"""A thread that reads a large request lets the event loop go on after this time. With Python's 5 ms every turn of the loop took 9 ms
while an 8 MiB request was read, with this 2 ms."""

_SAY_LESS = ("uvicorn.error", "engineio", "socketio", "asyncio")
"""Loggers of libraries that write a line for every piece of rubbish that somebody sends."""

log = structlog.get_logger(__name__)


class Broadcaster:
    """One broadcaster: doors, ingress, emitter, and the ASGI application ``asgi`` that serves them.

    Args:
        settings: of this process.
        policies: of the deployment.
        hooks: the webhooks of the policy file.
        variables: the environment, which holds the hooks' secrets.

    Raises:
        SettingsError: no token outside loopback.
        PolicyError: a hook's secret is missing.
    """

    def __init__(
        self, settings: Settings, policies: Policies, hooks: Mapping[str, Hook] | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        if settings.token == "" and not settings.loopback:
            raise SettingsError(f"set DEDUP_TOKEN: outside loopback ({settings.host}) the broadcaster's doors need a bearer token")
        self._db = connect(settings, role="broadcaster")
        self._accepted = Accepted()
        self.refusals = Refusals()
        self._sockets = SocketServer(lambda client, why: self.refusals.note("socket.io", "rubbish", client=client, detail=why))
        self._emitter = Emitter(self._sockets, token=settings.token)
        self._ingress = Ingress(
            Inbox(self._db).write,
            max_events=settings.max_batch_events,
            repeat_for_s=settings.mongo_timeout_ms / 1000,
            on_stored=self._stored,
        )
        self._watch = InboxWatch(self._db, self._ingress, settings)
        parser = EventParser(policies, settings)
        self._reception = Reception(self._ingress, settings)
        webhooks = Webhooks(hooks or {}, variables or {}, self._reception, parser)
        Publishing(self._sockets, self._reception, parser, self.refusals)
        report = Report(self._db, settings, self._accepted, self._emitter, self._watch, self.refusals)
        self._watchers = Watchers(self._sockets, report, self._db, settings, self._emitter.let_in)
        api = FastAPI(title="broadcaster", version=__version__, docs_url=None, redoc_url=None, lifespan=self._life)
        api.include_router(Doors(self._reception, self._ingress, parser, settings).router())
        api.include_router(webhooks.router())
        api.include_router(Reads(self._db, report, self._ingress, settings).router())
        self._requests = Requests()
        self._deployment_look = DeploymentLook(self._db, settings)
        api.include_router(Metrics(self._deployment_look, self._here, settings).router())
        api.include_router(FailureRoutes(self._db, self._reception, policies).router())
        api.include_router(Page().router())
        problems.install(api)
        both = CheckPackets(socketio.ASGIApp(self._sockets, other_asgi_app=api), self._sockets, self.refusals)
        guarded = Guard(both, token=settings.token, open_paths=webhooks.signed_paths, local=settings.loopback)
        self.asgi: Asgi = CutStalledClients(CountRequests(CountRefusals(guarded, self.refusals), self._requests))

    def _stored(self, batches: list[Stored]) -> None:
        self._accepted.count(batches)
        self._emitter.push(batches)
        self._watchers.push(batches)
        for batch in batches:
            log.debug("batch.accepted", batch=batch.batch, events=len(batch.events), door=batch.door)

    def _here(self) -> Here:
        """This process's own numbers, for the metrics."""
        try:
            self._ingress.check_open()
            accepting = True
        except TransientError:
            accepting = False
        return Here(
            accepting=accepting,
            accepted_events=self._accepted.events,
            accepted_batches=self._accepted.batches,
            requests=dict(self._requests.counts),
            durations={door: Histogram(list(h.buckets), h.seconds) for door, h in self._requests.durations.items()},
            refused=self.refusals.view(),
            clients=self._emitter.clients(),
            sent=self._emitter.sent,
            dropped=self._emitter.dropped,
        )

    async def hang_up(self) -> None:
        """Say goodbye to Socket.IO clients, and wait no longer for bodies that have not arrived."""
        self._reception.budget.close()
        await self._sockets.hang_up()

    @asynccontextmanager
    async def _life(self, _api: FastAPI) -> AsyncIterator[None]:
        self._emitter.start()
        self._watchers.start()
        watch = asyncio.create_task(self._watch.run())
        try:
            yield
        finally:
            await self._ingress.close()
            watch.cancel()
            await asyncio.wait([watch])
            await self._emitter.stop()
            await self._watchers.stop()
            self._reception.close()
            self._deployment_look.close()
            self._db.client.close()


class Server(uvicorn.Server):
    """uvicorn, with a goodbye to Socket.IO clients and an end that comes in time."""

    def __init__(self, broadcaster: Broadcaster, listening: socket.socket, settings: Settings) -> None:
        def rubbish(client: str, why: str) -> None:
            broadcaster.refusals.note("connection", "rubbish", client=client, detail=why)

        super().__init__(
            uvicorn.Config(
                broadcaster.asgi,
                lifespan="on",
                http=functools.partial(BoundedHeads, on_rubbish=rubbish),  # type: ignore[arg-type]  # called, nothing else
                ws=functools.partial(BoundedWebSocket, on_rubbish=rubbish),  # type: ignore[arg-type]  # the same
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(ANSWER_S),
                ws_max_size=MAX_CLIENT_PACKET,
                ws_per_message_deflate=False,
            )
        )
        self._broadcaster = broadcaster
        self._listening = listening
        self._url = url_of(listening, settings.host)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say where."""
        await super().startup(sockets)
        if self.started:
            log.info("broadcaster.ready", url=self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, answer what is under way, leave."""
        log.info("broadcaster.stopping")
        for server in self.servers:
            server.close()
        await self._broadcaster.hang_up()
        await self._end_websockets()
        await super().shutdown(sockets)
        log.info("broadcaster.stopped")

    async def _end_websockets(self) -> None:
        """Wait for WebSockets to close, then cut them: uvicorn's own shutdown fails on one that is half closed."""
        deadline = asyncio.get_running_loop().time() + GOODBYE_S
        while left := [c for c in self.server_state.connections if isinstance(c, WebSocketsSansIOProtocol)]:
            if asyncio.get_running_loop().time() > deadline:
                for connection in left:
                    connection.transport.abort()
            await asyncio.sleep(0.02)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to end: begin, and see to it that the end comes."""
        if not self.should_exit:
            timer = threading.Timer(END_S, os._exit, (1,))
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)

    def serve_until_signal(self) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, _ignore)  # uvicorn raises the signal again once it has ended in order
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self.handle_exit)
        # A bulk request makes thousands of objects that all live until its end: with Python's threshold of 700 the collector
        # takes a fifth of the time, and finds nothing.
        throttle = Throttle()
        for name in _SAY_LESS:
            logging.getLogger(name).addFilter(throttle)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        sys.setswitchinterval(SWITCH_S)
        self.run(sockets=[self._listening])


def _ignore(_sig: int, _frame: FrameType | None) -> None:
    return None


def listen(settings: Settings) -> socket.socket:
    """Take the port.

    Raises:
        ServerStartError: it is taken, or may not be had; the text names the remedy.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerStartError(
            f"the broadcaster cannot listen on {where} ({error.strerror}): set DEDUP_HOST to an address of this machine"
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ServerStartError(
                f"port {settings.port} is taken: stop what listens on {where}, or set DEDUP_PORT to another port (0 for any)"
            ) from error
        if error.errno == errno.EACCES:
            raise ServerStartError(
                f"port {settings.port} needs more rights than this user has: set DEDUP_PORT to a port above 1023"
            ) from error
        raise ServerStartError(f"the broadcaster cannot listen on {where} ({error.strerror}): set DEDUP_HOST and DEDUP_PORT") from error
    return listening


def url_of(listening: socket.socket, host: str) -> str:
    """Where clients on this machine reach it."""
    port = listening.getsockname()[1]
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
