"""What hostile and broken clients do at the doors; each attack is a function of the broadcaster's URL, and takes seconds at most.

They open few connections and send much: the tests run beside others on a small machine.
"""

import base64
import contextlib
import gzip
import itertools
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import websocket

Attack = Callable[[str], None]
ATTACKER = "127.0.0.2"
"""The attackers' address; good clients have another."""
SECONDS = 1.0
"""How long a flood lasts, at least."""


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A TCP connection to the broadcaster."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=10, source_address=(ATTACKER, 0)) as connection:
        yield connection


def client(url: str, timeout_s: float = 20, **options: Any) -> httpx.Client:
    """An HTTP client at the attackers' address."""
    return httpx.Client(base_url=url, timeout=timeout_s, transport=httpx.HTTPTransport(local_address=ATTACKER), **options)


@contextmanager
def raw_websocket(url: str, *, let_in: bool = True) -> Iterator[websocket.WebSocket]:
    """An engine.io connection over WebSocket, in the namespace ``/`` if it is let in."""
    with connected(url) as tcp:
        where = url.replace("http://", "ws://") + "/socket.io/?EIO=4&transport=websocket"
        connection = websocket.create_connection(where, timeout=10, socket=tcp)
        connection.recv()
        if let_in:
            connection.send('40{"types":["nothing"]}')
            assert connection.recv().startswith("40")
        yield connection


def sent_or_cut(connection: socket.socket | websocket.WebSocket, data: bytes | str) -> bool:
    """Send; whether the other side still takes it."""
    with contextlib.suppress(OSError, websocket.WebSocketException):
        if isinstance(connection, socket.socket):
            connection.sendall(data if isinstance(data, bytes) else data.encode())
        elif isinstance(data, bytes):
            connection.send_binary(data)
        else:
            connection.send(data)
        return True
    return False


def again_and_again(seconds: float = SECONDS, *, least: int = 0) -> Iterator[int]:
    """Count for so long, and so far at least: on a busy machine a second is not much."""
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number >= least and time.monotonic() >= end:
            return
        yield number


def flood(connection: socket.socket | websocket.WebSocket, data: bytes | str, seconds: float = SECONDS, *, least: int = 0) -> None:
    """Send the same again and again, reading nothing."""
    sock = connection if isinstance(connection, socket.socket) else connection.sock
    sock.settimeout(0.3)
    for _ in again_and_again(seconds, least=least):
        if not sent_or_cut(connection, data):
            return


# ----------------------------------------------------------------------------------------------------------------- HTTP


def bytes_that_are_no_http(url: str) -> None:
    """Noise, TLS, half requests, smuggled ones."""
    noise = random.Random(1)
    pieces = [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\0" * 1_000,
        b"GET",
        b"POST /events HTTP/1.1\r\nContent-Length: 5\r\n",
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\n{",
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST /events HTTP/9.9\r\n\r\n",
        b"POST \xff\xfe HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /events/%ff%00%2e%2e/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET /socket.io/?EIO=3&transport=polling HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        *[noise.randbytes(noise.randrange(1, 3_000)) for _ in range(60)],
    ]
    for piece in pieces:
        with connected(url) as connection:
            sent_or_cut(connection, piece)


def heads_and_bodies_without_end(url: str) -> None:
    """A head, a chunked body, and a long body that claims to be short enough."""
    with connected(url) as connection:
        flood(connection, b"GET /stats HTTP/1.1\r\nX-A: " + b"x" * 65_536)
    for path in (b"/events", b"/hooks/open", b"/burst", b"/socket.io/?EIO=4&transport=polling&sid=x"):
        with connected(url) as connection:
            sent_or_cut(connection, b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            flood(connection, b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 0.5)


def slow_bodies(url: str) -> None:
    """Bodies of almost the largest size that never end: they hold memory, and must not hold all of it."""
    head = b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 8388608\r\n\r\n"
    with contextlib.ExitStack() as open_connections:
        for _ in range(10):
            connection = open_connections.enter_context(connected(url))
            connection.settimeout(2)
            sent_or_cut(connection, head + b" " * 8_388_600)
        time.sleep(SECONDS)


def gzip_bombs(url: str) -> None:
    """A gigabyte in a megabyte; and bombs at the webhooks and in a loop."""
    bomb = gzip.compress(bytes(256 * 1024 * 1024), 9)
    headers = {"Content-Encoding": "gzip"}
    with client(url) as http:
        for path in ("/events", "/hooks/open", "/burst", "/events", "/events"):
            assert http.post(path, content=bomb, headers=headers).status_code == 413
        assert http.post("/events", content=bomb[:-1_000], headers=headers).status_code == 413
        assert http.post("/events", content=gzip.compress(gzip.compress(b"{}")), headers=headers).status_code == 400


def json_that_is_expensive(url: str) -> None:
    """The largest bodies that cost the most to read."""
    size = 8 * 1024 * 1024 - 200
    head = b'{"type":"a","source":"s","id":"1","data":'
    deep = b'{"a":' * 50_000
    bodies = [
        head + b"[" + b"[]," * (size // 3 - 50) + b"1]}",
        b"[" + b"{}," * (size // 3 - 50) + b"{}]",
        b"[" + b",".join(head.replace(b'"1"', b'"%d"' % n) + b"[" + b"[]," * 5_000 + b"1]}" for n in range(490)) + b"]",
        head + b'"' + b"\\u0000" * (size // 6 - 50) + b'"}',
        head + deep,
        head + b"9" * (size - 200) + b"}",
    ]
    with client(url, 30) as http:
        for body in bodies:
            assert http.post("/events", content=body, headers={"Content-Type": "application/json"}).status_code in (400, 413, 422, 503)


def wrong_signatures(url: str) -> None:
    """Webhooks that nobody signed."""
    with client(url) as http:
        for _ in again_and_again(least=60):
            signature = {"X-Hub-Signature-256": f"sha256={os.urandom(32).hex()}"}
            assert http.post("/hooks/github", content=b"{}" * 1_000, headers=signature).status_code == 401


def answers_that_nobody_reads(url: str) -> None:
    """Pipelined requests whose answers are left lying."""
    body = b'{"type":"flood","source":"s","id":"1"}'
    publish = b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for request in (publish, b"GET /stats HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
        with connected(url) as connection:
            flood(connection, request * 100)


def many_requests(url: str) -> None:
    """As many bad requests as one client manages."""

    def bad(_number: int) -> None:
        with client(url) as http:
            for _ in again_and_again(least=40):
                assert http.post("/events", content=b"{").status_code == 400

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bad, range(4)))


# ------------------------------------------------------------------------------------------------------------ Socket.IO


def packets_that_are_none(url: str) -> None:
    """Rubbish as text and binary, before and after entering a namespace; each on a connection of its own."""
    noise = random.Random(2)
    packets: list[str | bytes] = [
        "",
        "x",
        "b",
        "bAA",
        "0",
        "1",
        "2",
        "3",
        "5",
        "6",
        "4",
        "44",
        "4" * 10_000,
        "40",
        "40/bridge",
        "40/admin,",
        "40" + "/x" * 10_000,
        '40{"token":{}}',
        '40{"types":[["a"]]}',
        "41",
        "42",
        "42[]",
        "42{}",
        '42"x"',
        "42[5]",
        "42[null]",
        "42[{}]",
        "42[[]]",
        '42["event"',
        '42["publish"]',
        '42["publish",1,2,3]',
        "42" + "9" * 99 + '["publish",{}]',
        "42" + "9" * 200 + '["publish",{}]',
        '42["connect"]',
        '42["disconnect"]',
        '42["\\ud800"]',
        '42["publish",' + "[" * 100_000,
        '42["publish",' + "[" * 50_000 + "]" * 50_000 + "]",
        "43[]",
        "430[]",
        "44{}",
        '451-["publish",{"_placeholder":true,"num":5}]',
        '450-["publish"]',
        '459999999999-["publish"]',
        '4517-["publish"]',
        "46[]",
        "461-[]",
        "47",
        b"",
        b"\0",
        b"\xff" * 1_000,
        "x" * 1_100_000,
        b"x" * 1_100_000,
        *[noise.randbytes(50) for _ in range(10)],
        *["42" + noise.randbytes(20).decode("latin-1") for _ in range(20)],
    ]
    for packet in packets:
        for let_in in (False, True):
            with contextlib.suppress(OSError, websocket.WebSocketException), raw_websocket(url, let_in=let_in) as connection:
                sent_or_cut(connection, packet)
                sent_or_cut(connection, b"\x00\xff")


def frames_that_are_none(url: str) -> None:
    """WebSocket itself: reserved bits and opcodes, lengths that lie, text that is not UTF-8, fragments without end."""
    frames = [
        b"\xff\xff\xff\xff",
        b"\x81\x05hello",  # not masked
        b"\x83\x80\0\0\0\0",
        b"\xf1\x80\0\0\0\0",
        b"\x81\xff" + struct.pack(">Q", 2**63) + b"\0\0\0\0",
        b"\x81\xff" + struct.pack(">Q", 2**40) + b"\0\0\0\0" + b"x" * 1_000,
        b"\x81\x84\0\0\0\0\xff\xfe\xff\xfe",
        b"\x80\x81\0\0\0\0x",
        b"\x89\xfe\x01\x00\0\0\0\0" + b"x" * 256,
    ]
    for frame in frames:
        with raw_websocket(url) as connection:
            sent_or_cut(connection.sock, frame)
    with raw_websocket(url) as connection:
        sent_or_cut(connection.sock, b"\x01\x80\0\0\0\0")
        flood(connection.sock, b"\x00\xff" + struct.pack(">Q", 65_536) + b"\0\0\0\0" + b"x" * 65_536, 0.5)


def attachments_without_end(url: str) -> None:
    """An event that announces many attachments, which come and come."""
    for announced in ("9999999999", "17", "16"):
        with raw_websocket(url) as connection:
            sent_or_cut(connection, f'45{announced}-1["publish",{{"_placeholder":true,"num":0}}]')
            flood(connection, b"x" * 900_000, 0.5)


def one_attachment_many_times(url: str) -> None:
    """A small packet that stands for terabytes."""
    with raw_websocket(url) as connection:
        placeholders = ",".join(['{"_placeholder":true,"num":0}'] * 15_000)
        sent_or_cut(connection, f'451-1["publish",{{"type":"a","source":"s","id":"1","data":[{placeholders}]}}]')
        sent_or_cut(connection, b"x" * 400_000)
        assert '"status":422' in connection.recv().replace(" ", "")


def answers_over_socketio_that_nobody_reads(url: str) -> None:
    """Each message asks for an answer."""
    for message in ('421["publish",{}]', '421["subscribe",5]', "40/admin,", '421["publish",{"type":"flood","source":"s","id":"1"}]'):
        with raw_websocket(url) as connection:
            flood(connection, message, least=500)


def the_smallest_frames(url: str) -> None:
    """Frames of two bytes, each of which is a packet: reading them costs a thousand times what sending them does."""
    for frame in (b"\x81\x81\0\0\0\x003", b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 30):
        with raw_websocket(url) as connection:
            flood(connection.sock, frame * 10_000)


def pings_that_nobody_reads(url: str) -> None:
    """Ping frames, whose pongs are left lying."""
    ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
    with raw_websocket(url) as connection:
        flood(connection.sock, ping * 500, 2.0)


def large_packets(url: str) -> None:
    """Messages of the largest size that cost the most to read."""
    with raw_websocket(url) as connection:
        flood(connection, '421["publish",[' + "[]," * 330_000 + "1]]")
    with raw_websocket(url) as connection:
        flood(connection, '421["publish",{"type":"a","id":"1","source":"s","data":[' + "{}," * 300_000 + "1]}]")


def polling(url: str) -> None:
    """Rubbish over long polling, and sessions that nobody uses."""
    noise = random.Random(3)
    with client(url, params={"EIO": "4", "transport": "polling"}) as http:
        for body in (
            b"",
            b"\xff",
            b"x",
            b"d=4",
            b"4\x1e" * 100,
            b"42[]",
            b"b" + base64.b64encode(b"x" * 1_000),
            b"b%%%",
            b"40\x1e42[5]",
            b"x" * 1_100_000,
            *[noise.randbytes(30) for _ in range(20)],
        ):
            session = json.loads(http.get("/socket.io/").text[1:])["sid"]
            assert http.post("/socket.io/", params={"sid": session}, content=body).status_code in (200, 400, 413)
        for _ in range(300):
            assert http.get("/socket.io/").status_code in (200, 503)
        for method, params in (
            ("PUT", {}),
            ("DELETE", {}),
            ("GET", {"transport": "x"}),
            ("GET", {"EIO": "9"}),
            ("GET", {"j": "x"}),
            ("POST", {}),
        ):
            assert http.request(method, "/socket.io/", params=params).status_code < 500


ATTACKS: list[Attack] = [
    bytes_that_are_no_http,
    heads_and_bodies_without_end,
    slow_bodies,
    gzip_bombs,
    json_that_is_expensive,
    wrong_signatures,
    answers_that_nobody_reads,
    many_requests,
    packets_that_are_none,
    frames_that_are_none,
    attachments_without_end,
    one_attachment_many_times,
    answers_over_socketio_that_nobody_reads,
    the_smallest_frames,
    pings_that_nobody_reads,
    large_packets,
    polling,
]


class Neighbour:
    """A good client that publishes all the while, and notes how long each answer took."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="neighbour")
        self.answers: list[tuple[int, float]] = []
        self.keys: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        run = os.urandom(4).hex()
        with httpx.Client(base_url=self._url, timeout=30) as http:
            while not self._stop.wait(0.02):
                started = time.monotonic()
                event = {"type": "good", "source": "neighbour", "id": f"{run}-{len(self.answers)}", "data": 1}
                answer = http.post("/events", json=event)
                self.answers.append((answer.status_code, time.monotonic() - started))
                self.keys += answer.json().get("keys", [])

    @property
    def slowest_s(self) -> float:
        """The longest that an answer took."""
        return max(seconds for _, seconds in self.answers)

    def usual_s(self, share: float = 0.95) -> float:
        """So long took this share of the answers at most."""
        return sorted(seconds for _, seconds in self.answers)[int(len(self.answers) * share) - 1]
