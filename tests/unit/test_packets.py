"""What clients send to Socket.IO, before the libraries read it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from socketio import packet as socketio_packet

from broadcaster import packets
from broadcaster.packets import CheckPackets
from broadcaster.refusals import Refusals
from broadcaster.sockets import MAX_CLIENT_PACKET, READ_LATER_CHARACTERS, Unread, _Packet

SOCKET = {"type": "websocket", "path": "/socket.io/", "query_string": b"EIO=4", "client": ("10.0.0.1", 1), "headers": []}
POST = SOCKET | {"type": "http", "method": "POST", "query_string": b"sid=a"}


def run(scope: dict[str, Any], *messages: dict[str, Any], sockets: int = 0, of_client: int = 0) -> tuple[list[Any], list[Any], Refusals]:
    """Serve one connection or request: what reached the application, what was sent, and what was counted."""
    reached: list[Any] = []
    sent: list[Any] = []
    waiting = list(messages)
    refusals = Refusals()

    async def app(inner: Any, receive: Any, _send: Any) -> None:
        reached.append(inner)
        while True:
            message = await receive()
            reached.append(message)
            if message["type"].endswith("disconnect") or not message.get("more_body", inner["type"] == "websocket"):
                return

    async def receive() -> Any:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    server: Any = SimpleNamespace(eio=SimpleNamespace(sockets=dict.fromkeys(range(sockets))), connected_from=lambda _: of_client)

    async def main() -> None:
        async with asyncio.timeout(5):
            await CheckPackets(app, server, refusals, max_clients=10)(scope, receive, send)

    asyncio.run(main())
    return reached, sent, refusals


def body(*chunks: bytes, more: bool = False) -> list[dict[str, Any]]:
    last = len(chunks) - 1
    return [{"type": "http.request", "body": chunk, "more_body": more or n < last} for n, chunk in enumerate(chunks)]


@pytest.mark.parametrize("text", ["2probe", "3", "5", "1", "40", '42["a"]', "40/bridge,", '451-["a",{"_placeholder":true,"num":0}]'])
def test_packets_reach_the_library(text):
    message = {"type": "websocket.receive", "text": text}
    reached, _, refusals = run(SOCKET, message, {"type": "websocket.disconnect"})
    assert reached[1] == message
    assert not refusals.view()
    assert run(POST, *body(text.encode()))[0][1]["body"] == text.encode()


@pytest.mark.parametrize("text", ["", "0", "0{}", "4", "47", "49", "7", "x", "b!", "2x", "4[", "٤٢", "\0", "42\n"[:0]])
def test_what_is_no_packet_ends_the_connection(text):
    reached, _, refusals = run(SOCKET, {"type": "websocket.receive", "text": text})
    assert reached[1]["type"] == "websocket.disconnect"
    assert refusals.view() == {"socket.io": {"rubbish": 1}}
    reached, sent, _ = run(POST, *body(text.encode()))
    assert (reached, sent[0]["status"]) == ([], 400)


def test_a_polling_body_arrives_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch):
    reached, _, _ = run(POST | {"headers": [(b"content-length", b"999"), (b"x", b"y")]}, *body(b"4", b"0\x1e", b"2"))
    assert reached[0]["headers"] == [(b"x", b"y"), (b"content-length", b"4")]
    assert reached[1]["body"] == b"40\x1e2"
    assert run(POST, *body(b"4" + b"2" * MAX_CLIENT_PACKET))[1][0]["status"] == 413
    assert run(POST, *body(*[b"4" * 100_000] * 11, more=True))[1][0]["status"] == 413
    assert run(POST, *body(b"\x1e".join([b"2"] * 16)))[0]
    assert run(POST, *body(b"\x1e".join([b"2"] * 17)))[1][0]["status"] == 400
    assert run(POST, *body(b"4"), {"type": "http.disconnect"})[1][0]["status"] == 400
    assert run(POST, {"type": "http.disconnect"})[:2] == ([], [])
    monkeypatch.setattr(packets, "READ_TIMEOUT_S", 0.01)
    assert run(POST, *body(b"4", more=True))[1][0]["status"] == 408


def test_so_many_clients_and_of_one_address_half_of_them():
    opened = {"type": "websocket.connect"}
    gone = {"type": "websocket.disconnect"}
    assert len(run(SOCKET, opened, gone, sockets=9, of_client=4)[0]) == 3
    for full in ({"sockets": 10, "of_client": 0}, {"sockets": 5, "of_client": 5}):
        reached, sent, refusals = run(SOCKET, opened, gone, **full)
        assert (reached, sent[0]["type"], refusals.view()) == ([], "websocket.close", {"socket.io": {"503": 1}})
        reached, sent, _ = run(SOCKET | {"type": "http", "method": "GET"}, **full)
        assert (reached, sent[0]["status"]) == ([], 503)
        assert run(POST, *body(b"2"), **full)[0], "who is in stays in"


def test_other_paths_are_left_alone():
    reached, _, _ = run(POST | {"path": "/events"}, *body(b"rubbish"))
    assert reached[1]["body"] == b"rubbish"


# ------------------------------------------------------------------------------------------------ long events are read later


@given(
    id_=st.none() | st.integers(0, 10**12),
    name=st.sampled_from(["publish", "subscribe", "event"]),
    namespace=st.sampled_from([None, "/bridge"]),
    data=st.text(max_size=20),
    long=st.booleans(),
)
def test_a_packet_says_the_same_whether_it_is_read_now_or_later(id_, name, namespace, data, long):
    argument = {"data": data + "x" * (READ_LATER_CHARACTERS if long else 0)}
    text = socketio_packet.Packet(socketio_packet.EVENT, data=[name, argument], namespace=namespace, id=id_).encode()
    expected = socketio_packet.Packet(encoded_packet=text)
    found = _Packet(encoded_packet=text)
    assert (found.packet_type, found.id, found.namespace, found.attachment_count) == (socketio_packet.EVENT, id_, namespace, 0)
    later = isinstance(found.data[1], Unread)
    assert later is (long and name == "publish" and namespace is None)
    read = [name, *socketio_packet.Packet.json.loads(found.data[1].text)] if later else found.data
    assert read == expected.data
