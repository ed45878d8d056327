"""Every door of one real broadcaster with a token: gzip, webhooks, Socket.IO; and the rate limit that they share."""

import contextlib
import gzip
import hashlib
import hmac
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import socketio
import websocket
from pymongo import MongoClient
from pymongo.database import Database

from app import accept
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.errors import InvalidEvent
from app.publisher import Publisher, Refused
from app.settings import Settings
from tests.support.broadcasters import broadcaster_process
from tests.support.hooks import GITHUB_HOOK
from tests.support.node import socket_io_client
from tests.support.servers import fresh_settings, remove_data
from tests.support.waiting import eventually

TOKEN = "s3cret"
SCRIPT = Path(__file__).parents[1] / "support" / "client.cjs"
SECRET = "hook's secret"
POLICIES = f"""
{GITHUB_HOOK}
[hooks.open]
type = "'opened'"
id = "body.id"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A broadcaster of this module."""

    process: ManagedProcess
    url: str
    http: httpx.Client
    database: Database[dict[str, Any]]

    def stored(self, key: str) -> list[dict[str, Any]]:
        """The events of a key in the inbox, with their doors."""
        found = self.database["inbox"].find({"events.key": key})
        return [e | {"door": d["door"]} for d in found for e in d["events"] if e["key"] == key]


@pytest.fixture(scope="module")
def running(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests here: each uses keys of its own."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "policies.toml").write_text(POLICIES)
    (folder / ".env").write_text(f'GITHUB_SECRET="{SECRET}"\n')
    settings = fresh_settings(servers, folder, port=0, token=TOKEN)
    with (
        broadcaster_process(settings, folder) as (process, url),
        MongoClient(settings.mongo_url, tz_aware=True) as client,
        httpx.Client(base_url=url, timeout=20, headers={"Authorization": f"Bearer {TOKEN}"}) as http,
    ):
        yield Running(process=process, url=url, http=http, database=client.get_default_database())
    remove_data(settings)


@pytest.fixture
def client(running: Running) -> Iterator[socketio.SimpleClient]:
    """A Socket.IO client that has been let in."""
    connected = socketio.SimpleClient()
    connected.connect(running.url, auth={"token": TOKEN, "types": ["none"]}, transports=["websocket"])
    yield connected
    connected.disconnect()


def event(id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "order.paid", "source": "shop", "id": id, "data": {"amount": 12}} | fields


# ----------------------------------------------------------------------------------------------------------------- gzip


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_packed_request_is_the_same_request(running: Running, size: int):
    body = json.dumps(event(f"packed-{size}", data="x" * size)).encode()
    packed = running.http.post("/events", content=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    plain = running.http.post("/events", content=body)
    assert (packed.status_code, packed.json()["keys"]) == (202, plain.json()["keys"])
    assert len({e["digest"] for e in running.stored(packed.json()["keys"][0])}) == 1


def test_binary_cloudevents_may_be_packed_too(running: Running):
    ce = {"ce-specversion": "1.0", "ce-type": "scan", "ce-source": "/shop", "ce-id": "packed-ce", "Content-Type": "image/png"}
    answer = running.http.post("/events", content=gzip.compress(b"\x89PNG"), headers=ce | {"Content-Encoding": "gzip"})
    assert running.stored(answer.raise_for_status().json()["keys"][0])[0]["body"]["data"] == b"\x89PNG"


def test_packed_requests_are_refused_as_plain_ones(running: Running):
    def status(body: bytes) -> tuple[int, str]:
        answer = running.http.post("/events", content=body, headers={"Content-Encoding": "gzip"})
        return answer.status_code, answer.headers["content-type"]

    assert status(gzip.compress(b"{")) == (400, "application/problem+json")
    assert status(gzip.compress(b"{}")) == (422, "application/problem+json")
    assert status(b"{}") == (400, "application/problem+json")
    assert status(gzip.compress(b" " * 8 * 1024 * 1024)) == (400, "application/problem+json")
    assert status(gzip.compress(b" " * (8 * 1024 * 1024 + 1))) == (413, "application/problem+json")


@pytest.mark.parametrize("compress", [False, True])
def test_the_publisher_of_python_producers(running: Running, compress: bool):
    with Publisher(running.url, token=TOKEN, compress=compress) as publisher:
        assert publisher.send(event(f"py-{compress}")) == [f"id~shop~py-{compress}"]
        assert publisher.send_all(event(f"py-{compress}-{n}", data="x" * 500) for n in range(1_200)) == 1_200
        with pytest.raises(Refused) as refused:
            publisher.send_all([event(f"py-{compress}-last"), {"type": "order.paid"}])
        assert (refused.value.status, refused.value.index, refused.value.field) == (422, 1, "id")
    assert len(running.stored(f"id~shop~py-{compress}-1199")) == 1
    assert not running.stored(f"id~shop~py-{compress}-last")


# ------------------------------------------------------------------------------------------------------------- webhooks


def github(delivery: str, body: Any, **changes: str) -> tuple[bytes, dict[str, str]]:
    content = json.dumps(body).encode()
    mac = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": delivery, "X-Hub-Signature-256": f"sha256={mac}"}
    return content, {"Content-Type": "application/json", "Authorization": ""} | headers | changes


PUSH = {"repository": {"full_name": "octo/hello"}, "ref": "refs/heads/main", "commits": [{"id": "1"}]}


def test_github_delivers(running: Running):
    content, headers = github("d-1", PUSH)
    answers = [running.http.post("/hooks/github", content=content, headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [202, 202]
    (key,) = answers[0].json()["keys"]
    assert answers[1].json()["keys"] == [key]
    first, second = running.stored(key)
    assert (first["type"], first["door"], first["body"]["data"]) == ("github.push", "hook:github", PUSH)
    assert first["digest"] == second["digest"]


def test_github_delivers_forms(running: Running):
    """GitHub's other content type: the signature is of the form, the event is the same as that of its JSON."""
    form = urlencode({"payload": json.dumps(PUSH | {"text": "ä + & = %"}, ensure_ascii=False)}).encode()
    mac = hmac.new(SECRET.encode(), form, hashlib.sha256).hexdigest()
    content, headers = github("d-form", PUSH | {"text": "ä + & = %"})
    changes = {"Content-Type": "application/x-www-form-urlencoded", "X-Hub-Signature-256": f"sha256={mac}"}
    answer = running.http.post("/hooks/github", content=form, headers=headers | changes)
    assert answer.status_code == 202, answer.text
    assert running.http.post("/hooks/github", content=content, headers=headers).json()["keys"] == answer.json()["keys"]
    first, second = running.stored(answer.json()["keys"][0])
    assert (first["digest"], first["body"]) == (second["digest"], second["body"])
    assert running.http.post("/hooks/github", content=form + b"%20", headers=headers | changes).status_code == 401


def test_a_signature_takes_the_place_of_the_token(running: Running):
    content, headers = github("d-2", PUSH)

    def status(hook: str, content: bytes = content, **changes: str) -> int:
        answer = running.http.post(f"/hooks/{hook}", content=content, headers=headers | changes)
        assert answer.status_code == 202 or answer.headers["content-type"] == "application/problem+json"
        return answer.status_code

    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert status("github") == 202
    assert status("github", **{"X-Hub-Signature-256": ""}) == 401
    assert status("github", **{"X-Hub-Signature-256": "sha256=" + "0" * 64}) == 401
    assert status("github", **{"X-Hub-Signature-256": "sha256=" + "0" * 64}, **bearer) == 401, "the token takes no signature's place"
    assert status("github", content + b" ") == 401
    assert status("github", b"not json") == 401, "nothing is read before the signature is right"
    unsigned = {name: value for name, value in headers.items() if name != "X-Hub-Signature-256"}
    assert running.http.post("/hooks/github", content=content, headers=unsigned).status_code == 401
    assert status("open") == 401
    assert status("open", b'{"id": "1"}', **bearer) == 202
    assert status("unknown", **bearer) == 404
    assert status("unknown") == 401
    assert running.http.get("/hooks/github", headers=bearer).status_code == 405
    assert running.http.get("/hooks/github", headers={"Authorization": ""}).status_code == 401
    assert running.http.get("/stats", headers=bearer).json()["refused"]["hooks"]["401"] >= 7


def test_webhooks_are_refused_as_other_requests(running: Running):
    def status(body: Any, **changes: str) -> tuple[int, str | None]:
        content, headers = github("d-3", body, **changes)
        answer = running.http.post("/hooks/github", content=content, headers=headers)
        return answer.status_code, answer.json().get("field")

    assert status({"ref": 1}) == (422, "source")
    assert status(PUSH | {"n": 2**64}) == (422, "body.n")
    assert status(PUSH, **{"Content-Type": "application/x-www-form-urlencoded"}) == (422, "Content-Type")
    assert status(PUSH, **{"Content-Encoding": "br"}) == (415, None)
    assert status(PUSH | {"x": "y" * 300_000})[0] == 413
    content, headers = github("d-4", PUSH)
    packed = running.http.post("/hooks/github", content=gzip.compress(content), headers=headers | {"Content-Encoding": "gzip"})
    assert packed.status_code == 202, "the signature is of the unpacked body"


def test_a_secret_that_is_missing_is_said_at_start(settings: Settings, spawn: Callable[..., ManagedProcess], tmp_path: Path):
    (tmp_path / "policies.toml").write_text(POLICIES)
    process = spawn(
        "broadcaster", ["python", "-m", "broadcaster"], settings=settings, env={"DEDUP_POLICIES": str(tmp_path / "policies.toml")}
    )
    assert process.wait(20) == 1
    (line,) = process.log_tail().splitlines()
    assert "GITHUB_SECRET" in line


# ------------------------------------------------------------------------------------------------------------ Socket.IO


def test_publishing_over_socketio(running: Running, client: socketio.SimpleClient):
    one = client.call("publish", event("io-1"), timeout=10)
    assert (one["accepted"], one["keys"]) == (1, ["id~shop~io-1"])
    assert running.stored("id~shop~io-1")[0]["door"] == "socketio"
    assert running.database["inbox"].find_one({"_id": one["batch"]})
    many = client.call("publish", [event(f"io-m-{n}") for n in range(500)], timeout=10)
    assert many["accepted"] == 500
    cloud = {"specversion": "1.0", "type": "order.paid", "source": "/shop", "id": "io-ce", "subject": "s", "data_base64": "AAE="}
    answer = client.call("publish", cloud, timeout=10)
    assert running.stored(answer["keys"][0])[0]["body"]["data"] == b"\0\1"
    same = running.http.post("/events", json=event("io-1")).json()
    assert same["keys"] == one["keys"]
    assert len({e["digest"] for e in running.stored("id~shop~io-1")}) == 1


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


WRONG: list[tuple[str, Any]] = [
    ("an empty list", []),
    ("a list in the list", [[event("x")]]),
    ("no type", {"id": "x"}),
    ("no id", {"type": "a", "data": 1}),
    ("the second is wrong", [event("x"), event("y", type="")]),
    ("one key, two payloads", [event("x"), event("x", data=2)]),
    ("too many", [event(str(n)) for n in range(501)]),
    ("too large", event("x", data="x" * 256 * 1024)),
    ("over 64 bits", event("x", data=2**63)),
    ("NaN", event("x", data=float("nan"))),
    ("nested too deeply", event("x", data=nested(97))),
    ("an unknown field", event("x", color="red")),
]


@pytest.mark.parametrize("argument", [pytest.param(case[1], id=case[0]) for case in WRONG])
def test_refusals_have_the_words_of_http(running: Running, client: socketio.SimpleClient, argument: Any):
    said = client.call("publish", argument, timeout=10)
    content = json.dumps(argument).encode()
    problem = running.http.post("/events", content=content).json()
    assert set(said) == {"error"}
    assert said["error"] == {name: value for name, value in problem.items() if name not in ("type", "title")}
    assert said["error"]["status"] in (409, 413, 422)


@pytest.mark.parametrize("argument", [None, (), "event", 5, True, [1, 2], (event("x"), event("y")), b"\0", [b"\0"], event("x", data=b"\0")])
def test_what_is_no_event_gets_an_answer(client: socketio.SimpleClient, argument: Any):
    said = client.call("publish", argument, timeout=10)
    assert said["error"]["status"] == 422
    assert said["error"]["detail"]


def at_the_limits() -> list[Any]:
    """What is just within each limit, and what is just beyond it."""
    frame = len(json.dumps(event("limit", data=""), separators=(",", ":")))
    room = 256 * 1024 - frame
    cases = {
        "bytes of an event": (event("limit", data="x" * room), event("limit", data="x" * (room + 1)), 413),
        "events of a request": ([event(f"l-{n}") for n in range(500)], [event(f"l-{n}") for n in range(501)], 413),
        "levels": (event("levels", data=nested(96)), event("levels", data=nested(97)), 422),
        "bytes of an id": (event("é" * 240), event("é" * 256 + "x"), 422),
        "bytes of a key": (event("x" * 504), event("x" * 505), 422),
        "bytes of a type": (event("type", type="x" * 512), event("type", type="x" * 513), 422),
        "bytes of a source": (event("s", source="x" * 507), event("s", source="x" * 508), 422),
        "the largest integer": (event("int", data=2**63 - 1), event("int", data=2**63), 422),
        "the smallest integer": (event("int-", data=-(2**63)), event("int-", data=-(2**63) - 1), 422),
    }
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize("within, beyond, status", at_the_limits())
def test_every_door_has_the_same_limits(running: Running, client: socketio.SimpleClient, within: Any, beyond: Any, status: int):
    for events, expected in ((within, 202), (beyond, status)):
        content = json.dumps(events).encode()
        assert running.http.post("/events", content=content).status_code == expected
        assert running.http.post("/events", content=gzip.compress(content), headers={"Content-Encoding": "gzip"}).status_code == expected
        said = client.call("publish", events, timeout=10)
        assert said.get("error", {}).get("status", 202) == expected
        try:
            accept(events, db=running.database)
            found = 202
        except InvalidEvent as error:
            found = error.status
        assert found == expected


def test_a_packet_of_the_largest_size_and_one_beyond(running: Running, client: socketio.SimpleClient):
    """A WebSocket message has at most 1,000,000 bytes; its prefix, the type of the packet and the id of the answer, counts."""

    def answer(room: int) -> str:
        many = [event(f"packet-{room}-{n}", data="x" * 200_000) for n in range(4)]
        body = json.dumps(["publish", [*many, event(f"packet-{room}", data="")]], separators=(",", ":"))
        packet = f"421{body[:-4]}{'x' * (room - len(body) - 3)}{body[-4:]}"
        with contextlib.ExitStack() as closing:
            connection = websocket.create_connection(address, timeout=10)
            closing.callback(connection.sock.close)
            connection.recv()
            connection.send(f'40{{"token":"{TOKEN}","types":["none"]}}')
            connection.recv()
            connection.send(packet)
            try:
                return str(connection.recv())
            except (websocket.WebSocketException, OSError):
                return "cut"

    address = running.url.replace("http://", "ws://") + "/socket.io/?EIO=4&transport=websocket"
    assert answer(1_000_000).startswith('431[{"accepted":5')
    assert not answer(1_000_001).startswith("43")
    assert client.call("publish", event("packet"), timeout=10)["accepted"] == 1
    assert not running.stored("id~shop~packet-1000001")


def test_more_under_way_than_one_client_may_have(running: Running, client: socketio.SimpleClient):
    large = [event(f"under-way-{n}", data="x" * 1_000) for n in range(500)]
    answers: list[dict[str, Any]] = []
    for _ in range(100):
        client.client.emit("publish", (large,), callback=answers.append)
    eventually(lambda: len(answers) == 100, 20)
    refused = [a["error"] for a in answers if "error" in a]
    assert {e["status"] for e in refused} <= {429}
    assert all(e["retry_after_s"] >= 1 for e in refused)
    assert len(refused) < 100
    assert client.call("publish", event("after"), timeout=10)["accepted"] == 1


def test_a_javascript_client_publishes(running: Running):
    node, modules = socket_io_client()
    with subprocess.Popen(
        [node, SCRIPT, running.url, TOKEN], env={"NODE_PATH": str(modules)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdin
        assert script.stdout

        def say(*message: Any) -> Any:
            assert script.stdin
            assert script.stdout
            script.stdin.write(json.dumps(message) + "\n")
            script.stdin.flush()
            return json.loads(script.stdout.readline())["answer"]

        try:
            script.stdout.readline()
            say("subscribe", "nothing")
            assert say("publish", event("js-1", data={"text": "Zürich 😀"}))["keys"] == ["id~shop~js-1"]
            assert say("publish", [event(f"js-{n}", data="x" * 1_000) for n in range(100)])["accepted"] == 100
            assert say("publish", event("js-2", type=""))["error"] == {
                "status": 422,
                "detail": "type is empty",
                "index": 0,
                "field": "type",
            }
            script.stdin.close()
            assert script.wait(10) == 0
        finally:
            script.kill()
    assert running.stored("id~shop~js-1")[0]["body"]["data"] == {"text": "Zürich 😀"}


def test_without_the_token_nobody_publishes(running: Running):
    stranger = socketio.Client(reconnection=False)
    with pytest.raises(socketio.exceptions.ConnectionError):
        stranger.connect(running.url, transports=["websocket"], wait_timeout=5)
    stranger.disconnect()


def test_every_door_wants_the_token(running: Running):
    with httpx.Client(base_url=running.url, timeout=10) as stranger:
        for method, path in (("POST", "/events"), ("POST", "/burst"), ("POST", "/hooks/open"), ("GET", "/events"), ("GET", "/stats")):
            answer = stranger.request(method, path, json=event("stranger"))
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    assert not running.stored("id~shop~stranger")


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_client_that_sends_too_much_is_told_when_to_come_back(make_settings: Callable[..., Settings], tmp_path: Path):
    (tmp_path / "policies.toml").write_text(POLICIES)
    settings = make_settings(port=0, client_events_per_s=200.0, client_burst=300, policies=tmp_path / "policies.toml")
    with (
        broadcaster_process(settings, tmp_path, env={"GITHUB_SECRET": SECRET}) as (process, url),
        httpx.Client(base_url=url, timeout=20) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        client = socketio.SimpleClient()
        client.connect(url, transports=["websocket"])
        batch = [event(f"limited-{n}") for n in range(250)]
        assert [http.post("/events", json=batch).status_code for _ in range(2)] == [202, 202]
        refused = http.post("/events", json=event("one more"))
        assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
        assert 1 <= int(refused.headers["retry-after"]) <= 3
        said = client.call("publish", event("one more"), timeout=10)["error"]
        assert (said["status"], said["retry_after_s"]) == (429, int(refused.headers["retry-after"]))
        assert said["detail"] == refused.json()["detail"]
        content, headers = github("d-9", PUSH)
        assert http.get("/stats").json()["refused"]["events"]["429"] == 1
        eventually(lambda: http.post("/events", json=event("one more")).status_code == 202, 10)
        assert http.post("/hooks/github", content=content, headers=headers).status_code == 202
        client.disconnect()
        assert pool.submit(process.terminate).result() == 0
