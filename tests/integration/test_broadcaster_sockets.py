"""What the broadcaster says over Socket.IO, to real clients."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import pytest
import socketio
import websocket

from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from broadcaster.bridge.client import OrderedClient
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings, remove_data
from tests.support.waiting import eventually

TOKEN = "s3cret"


@pytest.fixture(scope="module")
def running(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ManagedProcess, str]]:
    """A broadcaster with a token."""
    folder = tmp_path_factory.mktemp("broadcaster")
    settings = replace(fresh_settings(servers, folder, port=0), token=TOKEN)
    with broadcaster_process(settings, folder) as started:
        yield started
    remove_data(settings)


@pytest.fixture
def publish(running: tuple[ManagedProcess, str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Publishes events over HTTP."""
    with httpx.Client(base_url=running[1], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as http:

        def post(*events: dict[str, Any]) -> dict[str, Any]:
            answer: dict[str, Any] = http.post("/events", json=list(events)).raise_for_status().json()
            return answer

        post.stats = lambda: http.get("/stats").json()  # type: ignore[attr-defined]
        yield post


class Listener:
    """A python-socketio client that notes what it hears."""

    def __init__(self, url: str, namespace: str, *, transports: list[str] | None = None, **connect: Any) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.client = OrderedClient(timeout_s=10)
        self.client.on("*", lambda name, data: self.heard.append((name, data)), namespace=namespace)
        self.client.connect(url, namespaces=[namespace], transports=transports, wait_timeout=10, **connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()


def event(id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "order.paid", "source": "shop", "id": id, "data": {"n": 1}} | fields


AUTH = {"auth": {"token": TOKEN}}


def test_clients_hear_every_event_and_bridges_hear_batches(running: tuple[ManagedProcess, str], publish: Callable[..., dict[str, Any]]):
    with Listener(running[1], "/", **AUTH) as client, Listener(running[1], "/bridge", **AUTH) as bridge:
        answer = publish(event("a", time="2020-01-01T00:00:00Z"), event("b", type="order.sent"))
        eventually(lambda: len(client.heard) == 2 and bridge.heard)
        assert [name for name, _ in client.heard] == ["event", "event"]
        first, second = (data for _, data in client.heard)
        assert first["key"] == "id~shop~a"
        assert {name: first[name] for name in ("type", "source", "id", "time", "data")} == event("a", time="2020-01-01T00:00:00Z")
        assert "time" not in second
        ((name, packed),) = bridge.heard
        (batch,) = msgspec.msgpack.decode(packed)
        assert name == "batches"
        assert batch["batch"] == answer["batch"]
        assert batch["keys"] == answer["keys"]
        assert batch["digests"][0] == first["digest"]
        assert (batch["types"], batch["type_of"]) == (["order.paid", "order.sent"], [0, 1])


def test_a_polling_client_hears_a_whole_request(running: tuple[ManagedProcess, str], publish: Callable[..., dict[str, Any]]):
    with Listener(running[1], "/", transports=["polling"], **AUTH) as client:
        publish(*[event(f"polled-{n}") for n in range(300)])
        eventually(lambda: len(client.heard) == 300)
        assert [data["id"] for _, data in client.heard] == [f"polled-{n}" for n in range(300)]


@pytest.mark.parametrize("namespace", ["/", "/bridge"])
def test_a_token_is_wanted_in_every_namespace(running: tuple[ManagedProcess, str], publish: Callable[..., dict[str, Any]], namespace: str):
    with Listener(running[1], namespace, headers={"Authorization": f"Bearer {TOKEN}"}) as let_in:
        for given in (None, {"token": "wrong"}, {"token": 5}, {"token": "s3crét"}, [TOKEN], "x"):
            refused = socketio.Client(reconnection=False)
            with pytest.raises(socketio.exceptions.ConnectionError):
                refused.connect(running[1], namespaces=[namespace], auth=given, wait_timeout=10, transports=["websocket"])
            refused.disconnect()
        publish(event(f"token-{namespace}"))
        eventually(lambda: let_in.heard)


def test_an_unknown_namespace_is_refused(running: tuple[ManagedProcess, str]):
    refused = socketio.Client(reconnection=False)
    with pytest.raises(socketio.exceptions.ConnectionError):
        refused.connect(running[1], namespaces=["/admin"], wait_timeout=10, **AUTH)
    refused.disconnect()


def test_rubbish_ends_only_its_own_connection(running: tuple[ManagedProcess, str], publish: Callable[..., dict[str, Any]]):
    with Listener(running[1], "/", **AUTH) as client:
        for packet in (
            "",
            "9",
            "4",
            "42",
            "4{",
            '40/bridge,{"token":',
            '42["event"',
            '451-["x",{"_placeholder":true,"num":0}]',
            "x" * 1_100_000,
        ):
            connection = raw(running[1])
            with contextlib.suppress(websocket.WebSocketException, OSError):
                connection.send(packet)
                connection.send_binary(b"\x00\xff")
            connection.close()
        publish(event("after-rubbish"))
        eventually(lambda: [data["id"] for _, data in client.heard] == ["after-rubbish"])
    assert running[0].alive


def raw(url: str) -> websocket.WebSocket:
    return websocket.create_connection(url.replace("http://", "ws://") + "/socket.io/?EIO=4&transport=websocket", timeout=10)


def test_a_client_that_reads_nothing_grows_nothing_and_delays_nobody(
    running: tuple[ManagedProcess, str], publish: Callable[..., dict[str, Any]]
):
    deaf = raw(running[1])
    deaf.send('40{"token":"s3cret"}')
    assert deaf.recv().startswith("0")
    assert deaf.recv().startswith("40")
    arrived = threading.Semaphore(0)
    with Listener(running[1], "/", **AUTH) as client:
        client.client.on("event", lambda _: arrived.release())
        for n in range(80):  # 20 MB
            publish(event(f"big-{n}", data="x" * 250_000))
            assert arrived.acquire(timeout=10)
    assert publish.stats()["socketio"]["dropped"] > 0  # type: ignore[attr-defined]
    deaf.close()


def test_it_says_goodbye_when_it_ends(make_settings: Callable[..., Any], tmp_path: Path):
    with broadcaster_process(make_settings(port=0), tmp_path) as (process, url):
        listeners = [Listener(url, "/"), Listener(url, "/bridge", transports=["polling"])]
        deaf = raw(url)  # never answers a goodbye
        assert process.terminate() == 0
        deaf.close()
        for listener in listeners:
            eventually(lambda client=listener.client: not client.connected)  # type: ignore[misc]
            listener.client.eio.queue.put(None)  # a polling client's writer would otherwise wait for half a minute
