"""Rooms by event type: who hears what, over real connections; also from JavaScript."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import socketio

from app.embedded.servers import EmbeddedServers
from broadcaster.bridge.client import OrderedClient
from broadcaster.rooms import MAX_PATTERNS, MAX_TYPES
from tests.support.broadcasters import broadcaster_process
from tests.support.node import socket_io_client
from tests.support.servers import fresh_settings, remove_data
from tests.support.waiting import eventually

AUTH = {"token": "s3cret"}
SCRIPT = Path(__file__).parents[1] / "support" / "client.cjs"


@pytest.fixture(scope="module")
def url(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broadcaster with a token."""
    folder = tmp_path_factory.mktemp("broadcaster")
    settings = replace(fresh_settings(servers, folder, port=0), token=AUTH["token"])
    with broadcaster_process(settings, folder) as (_, started):
        yield started
    remove_data(settings)


@pytest.fixture
def publish(url: str) -> Iterator[Callable[..., None]]:
    """Publishes one event of each type named; the last one ends what is waited for."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {AUTH['token']}"}, timeout=20) as http:

        def post(*kinds: str) -> None:
            for kind in kinds:
                http.post("/events", json={"type": kind, "source": "s", "id": str(id(object())) + kind}).raise_for_status()

        yield post


class Client:
    """A client that notes the types it hears."""

    def __init__(self, url: str, **auth: Any) -> None:
        self.heard: list[str] = []
        self.socket = OrderedClient(timeout_s=10)
        self.socket.on("event", lambda event: self.heard.append(event["type"]))
        self.socket.connect(url, auth=AUTH | auth, transports=["websocket"], wait_timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disconnect()

    def say(self, name: str, data: Any = None) -> dict[str, Any]:
        answered: list[dict[str, Any]] = []
        done = threading.Event()
        self.socket.emit(name, data, callback=lambda answer: (answered.append(answer), done.set()))
        assert done.wait(10)
        return answered[0]

    def hears(self, *kinds: str) -> None:
        """Exactly these, in this order, of what was published so far."""
        eventually(lambda: self.heard == list(kinds), 10, lambda: self.heard)
        self.heard.clear()


def test_the_first_subscription_narrows_and_later_ones_add(url, publish):
    with Client(url) as client, Client(url) as other:
        publish("flight.departed", "order.paid")
        client.hears("flight.departed", "order.paid")

        assert client.say("subscribe", "flight.*") == {"ok": True, "types": ["flight.*"]}
        publish("order.paid", "flight.departed", "flight.landed", "flights", "flight.")
        client.hears("flight.departed", "flight.landed", "flight.")

        assert client.say("subscribe", ["order.paid", "flight.landed"]) == {
            "ok": True,
            "types": ["flight.*", "flight.landed", "order.paid"],
        }
        publish("flight.landed", "order.sent", "order.paid")
        client.hears("flight.landed", "order.paid")
        other.hears(
            *["flight.departed", "order.paid", "order.paid", "flight.departed", "flight.landed", "flights", "flight."],
            *["flight.landed", "order.sent", "order.paid"],
        )


def test_unsubscribing_takes_away_and_everything_can_be_had_again(url, publish):
    with Client(url) as client:
        assert client.say("unsubscribe", "order.paid") == {"ok": True, "types": ["*"]}, "it hears everything still"
        client.say("subscribe", ["a", "b*"])
        assert client.say("unsubscribe", ["b*", "never"]) == {"ok": True, "types": ["a"]}
        publish("b1", "a")
        client.hears("a")
        assert client.say("unsubscribe") == {"ok": True, "types": []}
        publish("a")
        assert client.say("subscribe", "*") == {"ok": True, "types": ["*"]}
        publish("b1")
        client.hears("b1")
        client.say("unsubscribe", "*")
        client.say("subscribe", "end")
        publish("a", "end")
        client.hears("end")


def test_types_can_be_named_at_the_connection(url, publish):
    with Client(url, types=["order.*"]) as client:
        publish("flight.departed", "order.paid")
        client.hears("order.paid")
    refused = socketio.Client(reconnection=False)
    with pytest.raises(socketio.exceptions.ConnectionError):
        refused.connect(url, auth=AUTH | {"types": [5]}, wait_timeout=10)
    refused.disconnect()


@pytest.mark.parametrize(
    "named", [None, [], 5, [5], {"a": 1}, [["a"]], "", "x" * 513, "a\u0000", "\ud800", b"bytes", ["t"] * (MAX_TYPES + 1)]
)
def test_what_cannot_be_subscribed_to_is_refused_and_changes_nothing(url, publish, named):
    with Client(url) as client:
        answer = client.say("subscribe", named)
        assert (answer["ok"], answer["status"]) == (False, 422)
        assert answer["detail"]
        publish("anything")
        client.hears("anything")


def test_patterns_of_all_clients_are_bounded_and_those_of_clients_that_left_make_room(url, publish):
    clients = [Client(url, types="none") for _ in range(MAX_PATTERNS // (MAX_TYPES - 1) + 1)]
    try:
        answers = [client.say("subscribe", [f"{n}.{m}.*" for m in range(MAX_TYPES - 1)]) for n, client in enumerate(clients)]
        assert [answer["ok"] for answer in answers] == [True] * (len(clients) - 1) + [False]
        clients[0].socket.disconnect()
        publish("other")  # looking for who hears it finds whose patterns nobody has any more
        eventually(lambda: (publish("other"), clients[-1].say("subscribe", [f"x.{m}.*" for m in range(MAX_TYPES - 1)]))[1]["ok"])
        publish("x.5.y")
        clients[-1].hears("x.5.y")
    finally:
        for client in clients:
            client.socket.disconnect()


def test_a_client_that_reads_nothing_holds_up_nobody_in_its_room(url, publish):
    """G7: its queue has an end; the others in the same room hear everything in time."""
    deaf = OrderedClient(timeout_s=10)
    stop = threading.Event()
    deaf.on("event", lambda _: stop.wait(60))  # blocks its reader
    deaf.connect(url, auth=AUTH | {"types": ["big.*"]}, transports=["websocket"], wait_timeout=10)
    with Client(url, types=["big.*"]) as client, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {AUTH['token']}"}) as http:
        for n in range(80):  # 20 MB
            http.post("/events", json={"type": "big.one", "source": "s", "id": f"big-{n}", "data": "x" * 250_000}).raise_for_status()
            client.hears("big.one")
        assert http.get("/stats").json()["socketio"]["dropped"] > 0
    stop.set()
    deaf.disconnect()


def test_a_javascript_client_hears_everything_then_its_rooms(url, publish):
    node, modules = socket_io_client()
    with subprocess.Popen(
        [node, SCRIPT, url, AUTH["token"]], env={"NODE_PATH": str(modules)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdin
        assert script.stdout

        def said() -> Any:
            assert script.stdout
            return json.loads(script.stdout.readline() or "null")

        try:
            assert said() == {"connected": True}
            publish("flight.departed")
            assert said()["event"]["type"] == "flight.departed"
            script.stdin.write('["subscribe", ["order.*"]]\n')
            script.stdin.flush()
            assert said() == {"answer": {"ok": True, "types": ["order.*"]}}
            publish("flight.departed", "order.paid")
            event = said()["event"]
            assert (event["type"], event["source"]) == ("order.paid", "s")
            assert event["key"].startswith("id~s~")
            script.stdin.write('["unsubscribe"]\n')
            script.stdin.flush()
            assert said() == {"answer": {"ok": True, "types": []}}
            script.stdin.close()
            assert script.wait(10) == 0
        finally:
            script.kill()
