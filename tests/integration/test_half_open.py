"""Connections whose other end vanishes without a goodbye, as when a cable is pulled: noticed by silence, and made again."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Self

import msgspec
import pytest
import socketio
import uvicorn
import websocket
from websockets.sync.server import ServerConnection, serve

from app.events.policies import Policies
from app.events.source_file import source_from
from app.messages import announcement
from app.settings import Settings
from app.stores import mongo
from app.stores.records import utc_now
from broadcaster.bridge import client as bridge_client
from broadcaster.bridge.client import MAX_SILENCE_S, OrderedClient
from broadcaster.bridge.feed import Feed
from broadcaster.bridge.foreign import ForeignFeed
from broadcaster.sockets import SocketServer
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

PING_S = 0.4


class Server:
    """A Socket.IO server in a thread, with short pings; reached through a proxy."""

    def __init__(self, sockets: socketio.AsyncServer) -> None:
        self.sockets = sockets
        sockets.eio.ping_interval = sockets.eio.ping_timeout = PING_S
        for namespace in ("/", "/bridge"):
            sockets.on("connect", self._connect, namespace=namespace)
        config = uvicorn.Config(socketio.ASGIApp(sockets), host="127.0.0.1", port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    async def _connect(self, sid: str, *_: object) -> None:
        async def greet() -> None:
            keys = [("k", "1d", "t")]
            await self.sockets.emit("tick", {"n": sid}, to=sid)
            await self.sockets.emit("batches", msgspec.msgpack.encode([announcement("b", keys, utc_now())]), to=sid, namespace="/bridge")

        self.sockets.start_background_task(greet)

    def clients(self, namespace: str) -> int:
        return sum(1 for _ in self.sockets.manager.get_participants(namespace, None))

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self._server.started, 10)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    @property
    def port(self) -> int:
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port


def plain_server() -> socketio.AsyncServer:
    return socketio.AsyncServer(async_mode="asgi", namespaces=["/", "/bridge"])


@contextmanager
def running(run: Callable[..., None], *arguments: Any, close: Callable[[], None]) -> Iterator[None]:
    """A feed's thread."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop, *arguments))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        close()
        thread.join(20)
        assert not thread.is_alive()
        gc.collect()  # a connection that nobody closed would warn here


def test_a_bridge_notices_a_broadcaster_that_vanished(capsys: pytest.CaptureFixture[str]):
    """G1: what is not announced meanwhile is the sweeper's; the bridge connects again when there is somebody."""
    heard: list[Any] = []
    with Server(plain_server()) as server, Proxy(server.port) as cable:
        feed = Feed(f"http://127.0.0.1:{cable.url_port}", "", heard.extend)
        with running(feed.run, close=feed.close):
            eventually(lambda: len(heard) == 1, 10)
            cable.swallow()
            eventually(lambda: not feed.connected, 20)
            cable.mend()
            eventually(lambda: len(heard) == 2 and feed.connected, 20)
    said = capsys.readouterr().out
    assert "the connection was lost" in said
    assert "bridge.resumed" in said


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_a_feed_notices_a_foreign_server_that_vanished(settings: Settings, transport: str):
    db = mongo.connect(settings, role="test")
    with Server(plain_server()) as server, Proxy(server.port) as cable:
        given = {"url": f"http://127.0.0.1:{cable.url_port}", "event": "tick", "key": "n", "transport": transport}
        feed = ForeignFeed(source_from("test", "foreign", given), settings, Policies.load(None, settings), db, lambda _: None)
        with running(feed.run, lambda: None, close=feed.close):
            eventually(lambda: feed.state().received == 1, 10)
            cable.swallow()
            eventually(lambda: not feed.connected, 30)
            cable.mend()
            eventually(lambda: feed.state().received == 2 and feed.connected, 30)
    db.client.close()


def test_the_broadcaster_lets_clients_go_that_vanished():
    """G7: they are no members of anything any more, and nothing is queued for them."""
    sockets = SocketServer()
    with (
        Server(sockets) as server,
        Proxy(server.port) as cable,
        closing(websocket.create_connection(f"ws://127.0.0.1:{cable.url_port}/socket.io/?EIO=4&transport=websocket")) as client,
    ):
        client.send("40")
        eventually(lambda: sockets.members("/"), 10)
        cable.swallow()
        eventually(lambda: not sockets.eio.sockets and not sockets.members("/"), 20)


def test_a_server_that_announces_no_pings_for_a_year_is_waited_for_no_longer_than_others(monkeypatch: pytest.MonkeyPatch):
    def silent(connection: ServerConnection) -> None:
        connection.send('0{"sid":"s","upgrades":[],"pingInterval":31536000000,"pingTimeout":31536000000}')
        connection.recv()
        connection.send('40{"sid":"t"}')
        connection.recv()

    assert MAX_SILENCE_S <= 300
    monkeypatch.setattr(bridge_client, "MAX_SILENCE_S", 0.5)
    with serve(silent, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = OrderedClient(timeout_s=5)
        client.connect(f"http://127.0.0.1:{server.socket.getsockname()[1]}", transports=["websocket"])
        eventually(lambda: not client.connected, 15)
        server.shutdown()
        thread.join(10)


def test_a_server_that_ends_the_connection_as_soon_as_it_has_let_the_client_in_is_connected_to_again(monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()
    connections: list[ServerConnection] = []

    def serve_one(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send('0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000}')
        connection.recv()
        connection.send('40/bridge,{"sid":"t"}')
        if len(connections) > 1:
            connection.recv()  # the second time the server is well

    class Late(threading.Event):
        """What the connecting thread waits on: it goes on when the connection has ended already, as on a busy machine."""

        def wait(self, timeout: float | None = None) -> bool:
            let_in = super().wait(timeout)
            if len(connections) == 1:
                ended.wait(10)
            return let_in

    with serve(serve_one, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        feed = Feed(f"http://127.0.0.1:{server.socket.getsockname()[1]}", "", lambda _announced: None)
        monkeypatch.setattr(feed._client.eio, "create_event", lambda *_arguments, **_options: Late())
        forget = feed._client._handle_eio_disconnect
        feed._client.eio.on("disconnect", lambda reason: (forget(reason), ended.set()))
        stop = threading.Event()
        running = threading.Thread(target=feed.run, args=[stop], daemon=True)
        running.start()
        eventually(lambda: len(connections) > 1 and feed.connected, 15, "a second connection")
        stop.set()
        feed.close()
        running.join(10)
        server.shutdown()
