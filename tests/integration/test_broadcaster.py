"""The broadcaster's HTTP doors, as a real process on real servers."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

import bson
import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database
from redis import Redis

from app import redis_client
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.events.values import MAX_LEVELS
from app.presence import Beat, Presence
from app.settings import Settings
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.records import utc_now
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings, remove_data
from tests.support.waiting import eventually

POLICIES = """
[types."flight.departed"]
key = ["data.carrier", "data.flight", "data.origin", "data.time_hour"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A broadcaster of this module."""

    process: ManagedProcess
    url: str
    settings: Settings
    http: httpx.Client
    database: Database[dict[str, Any]]

    def inbox(self, key: str) -> list[dict[str, Any]]:
        """The events of a key in the inbox, bodies decoded."""
        return [e for d in self.database["inbox"].find({"events.key": key}) for e in d["events"] if e["key"] == key]


@pytest.fixture(scope="module")
def broadcaster(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests here: each uses keys of its own."""
    folder = tmp_path_factory.mktemp("broadcaster")
    (folder / "policies.toml").write_text(POLICIES)
    settings = fresh_settings(servers, folder, port=0)
    with (
        broadcaster_process(settings, folder) as (process, url),
        MongoClient(settings.mongo_url, tz_aware=True) as client,
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        yield Running(process=process, url=url, settings=settings, http=http, database=client.get_default_database())
    remove_data(settings)


def event(id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "order.paid", "source": "shop", "id": id, "data": {"amount": 12}} | fields


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# ------------------------------------------------------------------------------------------------------------ accepting


def test_one_event_is_in_the_inbox_when_it_is_answered(broadcaster: Running):
    data = {"big": 2**63 - 1, "small": -(2**63), "text": "Zürich 😀", "list": [1.5, None, True], "": {"$set": {"a.b": 1}}}
    answer = broadcaster.http.post("/events", json=event("one", data=data, time="2013-01-01T10:00:00Z"))
    assert answer.status_code == 202
    body = answer.json()
    assert body["accepted"] == 1
    assert body["keys"] == ["id~shop~one"]
    document = broadcaster.database["inbox"].find_one({"_id": body["batch"]})
    assert document is not None
    assert document["door"] == "http"
    (stored,) = document["events"]
    assert stored["key"] == "id~shop~one"
    assert stored["body"] == {"source": "shop", "id": "one", "time": "2013-01-01T10:00:00Z", "data": data}


def test_a_request_of_many_is_one_batch_and_keys_keep_its_order(broadcaster: Running):
    ids = [f"many-{n}" for n in range(500)]
    answer = broadcaster.http.post("/events", json=[event(i) for i in ids]).json()
    assert answer["accepted"] == 500
    assert answer["keys"] == [f"id~shop~{i}" for i in ids]
    document = broadcaster.database["inbox"].find_one({"_id": answer["batch"]}, {"events.key": 1})
    assert document is not None
    assert {e["key"] for e in document["events"]} >= set(answer["keys"])


def test_equal_events_of_a_request_are_one(broadcaster: Running):
    answer = broadcaster.http.post("/events", json=[event("twin"), event("twin", time="2020-01-01T00:00:00Z"), event("sole")]).json()
    assert answer["accepted"] == 2
    assert answer["keys"] == ["id~shop~twin", "id~shop~sole"]
    assert len(broadcaster.inbox("id~shop~twin")) == 1


def test_requests_that_arrive_together_share_writes(broadcaster: Running):
    def publish(n: int) -> str:
        with httpx.Client(base_url=broadcaster.url, timeout=20) as http:
            return str(http.post("/events", json=[event(f"together-{n}"), event("together")]).raise_for_status().json()["batch"])

    with ThreadPoolExecutor(16) as pool:
        batches = list(pool.map(publish, range(64)))
    assert len(set(batches)) < 64
    found: list[str] = []
    for document in broadcaster.database["inbox"].find({"_id": {"$in": batches}}):
        keys = [e["key"] for e in document["events"]]
        assert len(keys) == len(set(keys))
        found += keys
    assert {key for key in found if found.count(key) == 1} == {f"id~shop~together-{n}" for n in range(64)}
    assert found.count("id~shop~together") == len(set(batches))


def test_an_event_sent_again_is_accepted_again_with_the_same_key(broadcaster: Running):
    first, second = (broadcaster.http.post("/events", json=event("again")).json() for _ in range(2))
    assert first["keys"] == second["keys"]
    assert {e["digest"] for e in broadcaster.inbox("id~shop~again")} == {broadcaster.inbox("id~shop~again")[0]["digest"]}


def test_the_idempotency_key_is_the_id_of_a_single_event(broadcaster: Running):
    plain = {"type": "order.paid", "source": "shop", "data": 1}
    answer = broadcaster.http.post("/events", json=plain, headers={"Idempotency-Key": "from-header"})
    assert answer.json()["keys"] == ["id~shop~from-header"]
    refused = broadcaster.http.post("/events", json=[plain, plain], headers={"Idempotency-Key": "from-header"})
    assert refused.status_code == 422
    assert refused.json()["field"] == "Idempotency-Key"


def test_cloudevents_in_all_modes(broadcaster: Running):
    cloud = {"specversion": "1.0", "type": "order.paid", "source": "/shop", "id": "ce-1", "subject": "x", "data": {"a": 1}}
    structured = broadcaster.http.post("/events", content=json.dumps(cloud), headers={"Content-Type": "application/cloudevents+json"})
    batch = broadcaster.http.post(
        "/events",
        content=json.dumps([cloud | {"id": "ce-2"}, cloud | {"id": "ce-3"}]),
        headers={"Content-Type": "application/cloudevents-batch+json; charset=utf-8"},
    )
    binary = broadcaster.http.post(
        "/events",
        content=b"\x00\x01",
        headers={"ce-specversion": "1.0", "ce-type": "scan", "ce-source": "/shop", "ce-id": "ce-4", "Content-Type": "image/png"},
    )
    assert [structured.status_code, batch.status_code, binary.status_code] == [202, 202, 202]
    assert broadcaster.inbox(structured.json()["keys"][0])[0]["body"]["extra"]["subject"] == "x"
    assert len(batch.json()["keys"]) == 2
    assert broadcaster.inbox(binary.json()["keys"][0])[0]["body"]["data"] == b"\x00\x01"


def test_a_burst_goes_through_the_same_door(broadcaster: Running):
    answer = broadcaster.http.post("/burst", json={"count": 700, "start": 100})
    assert answer.status_code == 202, answer.text
    assert answer.json()["accepted"] == 700
    assert len(answer.json()["batches"]) == 2
    sizes = [len(d["events"]) for d in broadcaster.database["inbox"].find({"_id": {"$in": answer.json()["batches"]}})]
    assert sorted(sizes) == [200, 500]
    assert broadcaster.http.post("/burst", json={"count": 1}).json()["start"] == 800


def test_a_client_that_leaves_at_once_has_published_all_the_same(broadcaster: Running):
    body = json.dumps(event("gone")).encode()
    with closing(connected(broadcaster)) as connection:
        connection.sendall(b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    eventually(lambda: broadcaster.inbox("id~shop~gone"))


# ------------------------------------------------------------------------------------------------------------- refusing

REFUSED: list[tuple[str, bytes | str | Any, int, int | None, str | None]] = [
    ("empty body", b"", 400, None, None),
    ("half a JSON", b'{"type": "a"', 400, None, None),
    ("not UTF-8", b'{"type": "\xff"}', 400, None, None),
    ("a number", b"12", 422, None, None),
    ("an empty list", [], 422, None, None),
    ("an element that is no object", [event("ok-1"), 5], 422, 1, None),
    ("no type", {"source": "shop", "id": "x", "data": 1}, 422, 0, "type"),
    ("a type that is no text", event("x", type=5), 422, 0, "type"),
    ("no id and no rule", {"type": "order.paid", "source": "shop", "data": 1}, 422, 0, "id"),
    ("an empty id", event(""), 422, 0, "id"),
    ("an over-long id", event("x" * 2_000), 422, 0, None),
    ("a field that the key needs", {"type": "flight.departed", "data": {"carrier": "UA"}}, 422, 0, "data.flight"),
    ("an integer over 64 bits", b'{"type":"a","source":"s","id":"1","data":{"n":9223372036854775808}}', 422, 0, "data.n"),
    ("a huge integer", b'{"type":"a","source":"s","id":"1","data":' + b"9" * 5_000 + b"}", 422, None, None),
    ("NaN", b'{"type":"a","source":"s","id":"1","data":[NaN]}', 422, 0, "data[0]"),
    ("infinity", b'{"type":"a","source":"s","id":"1","data":1e999}', 422, 0, "data"),
    ("nested too deeply", event("x", data=nested(MAX_LEVELS + 1)), 422, 0, None),
    ("nested absurdly", b'{"type":"a","source":"s","id":"1","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, None, None),
    ("NUL in a name", event("x", data={"a\0b": 1}), 422, 0, None),
    ("a lone surrogate", b'{"type":"a","source":"s","id":"1","data":"\\ud800"}', 422, 0, "data"),
    ("an unknown specversion", event("x", specversion="2.0"), 422, 0, None),
    ("one key, two payloads", [event("x"), event("y"), event("x", data=2)], 409, 2, None),
    ("an event over the limit", [event("x"), event("y", data="x" * 256 * 1024)], 413, 1, None),
    ("too many events", [event(str(n)) for n in range(501)], 413, None, None),
]


@pytest.mark.parametrize("body, status, index, field", [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_bad_input_is_refused_with_its_place(broadcaster: Running, body: Any, status: int, index: int | None, field: str | None):
    before = broadcaster.database["inbox"].count_documents({})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = broadcaster.http.post("/events", content=content, headers={"Content-Type": "application/json"})
    problem = answer.json()
    assert answer.status_code == status, problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["detail"]
    assert problem.get("index") == index
    if field is not None:
        assert problem["field"] == field
    assert broadcaster.database["inbox"].count_documents({}) == before


def test_the_limits_are_exact(broadcaster: Running):
    frame = len(json.dumps(event("fits", data=""), separators=(",", ":")))
    fits = event("fits", data="x" * (broadcaster.settings.max_event_bytes - frame))
    assert broadcaster.http.post("/events", json=fits).status_code == 202
    assert broadcaster.http.post("/events", json=fits | {"data": fits["data"] + "x"}).status_code == 413
    assert broadcaster.http.post("/events", json=event("deep", data=nested(MAX_LEVELS))).status_code == 202
    body = json.dumps(event("spaces")).encode()
    padded = body + b" " * (broadcaster.settings.max_request_bytes - len(body))
    assert broadcaster.http.post("/events", content=padded).status_code == 202
    assert broadcaster.http.post("/events", content=padded + b" ").status_code == 413


def test_events_that_bson_would_blow_up_are_refused_whole(broadcaster: Running):
    digits = [1] * 120_000  # 240 KiB of JSON, 1.5 MB of BSON
    assert len(bson.encode({"d": digits})) > 1_200_000
    few = [event(f"digits-{n}", data=digits) for n in range(2)]
    many = [event(f"more-digits-{n}", data=digits) for n in range(12)]
    assert broadcaster.http.post("/events", json=few).status_code == 202
    refused = broadcaster.http.post("/events", json=many)
    assert refused.status_code == 413
    assert "send fewer" in refused.json()["detail"]
    assert not broadcaster.inbox("id~shop~more-digits-0")


def connected(broadcaster: Running) -> socket.socket:
    place = urlsplit(broadcaster.url)
    return socket.create_connection((place.hostname, place.port), timeout=10)


def test_a_long_body_is_refused_before_it_is_sent(broadcaster: Running):
    with closing(connected(broadcaster)) as connection:
        connection.sendall(b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_body_without_end_is_refused_while_it_arrives(broadcaster: Running):
    with closing(connected(broadcaster)) as connection:
        connection.sendall(b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(broadcaster.settings.max_request_bytes // 0x100000 + 1):
            connection.sendall(chunk)
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_head_without_end_is_refused(broadcaster: Running):
    with closing(connected(broadcaster)) as connection:
        connection.sendall(b"GET /stats HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
        for _ in range(3):
            connection.sendall(b"x" * 30_000)
        assert connection.recv(64).startswith(b"HTTP/1.1 400")
    long_enough = {"X-Long": "x" * 30_000}
    assert broadcaster.http.get("/health/live", headers=long_enough).status_code == 200


@pytest.mark.parametrize(
    "method, path, kwargs, status",
    [
        ("POST", "/events", {"content": b"x=1", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 422),
        ("POST", "/events", {"content": b"x", "headers": {"Content-Encoding": "br"}}, 415),
        ("POST", "/events", {"json": event("origin"), "headers": {"Origin": "https://elsewhere.example"}}, 403),
        ("POST", "/burst", {"json": {"count": 0}}, 422),
        ("POST", "/burst", {"json": {"count": 10**9}}, 422),
        ("POST", "/burst", {"json": {"count": "5"}}, 422),
        ("POST", "/burst", {"json": [1]}, 422),
        ("POST", "/burst", {"content": b"{"}, 400),
        ("POST", "/burst", {"content": b"\xff"}, 400),
        ("POST", "/burst", {"content": b" " * 2_000}, 413),
        ("GET", "/events", {"params": {"limit": "0"}}, 422),
        ("GET", "/events", {"params": {"limit": "1001"}}, 422),
        ("GET", "/events", {"params": {"limit": "x"}}, 422),
        ("GET", "/events/", {}, 404),
        ("GET", "/events/unknown", {}, 404),
        ("GET", "/events/" + "k" * 2_000, {}, 404),
        ("GET", "/events/%00%ff", {}, 404),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", "/events", {}, 405),
    ],
)
def test_other_refusals_are_problems_too(broadcaster: Running, method: str, path: str, kwargs: dict[str, Any], status: int):
    answer = broadcaster.http.request(method, path, **kwargs)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


# -------------------------------------------------------------------------------------------------------------- reading


def commit(broadcaster: Running, key: str, **fields: Any) -> None:
    """Put a document into the ledger, as a listener would."""
    now = utc_now()
    document = {
        "_id": key,
        "v": 1,
        "digest": "1d",
        "type": "order.paid",
        "body": {"source": "shop", "id": "i", "data": {"n": bson.Int64(5)}, "extra": {"subject": "s"}},
        "listener": "listener-1",
        "claim_id": "c",
        "token": bson.Int64(7),
        "attempt": 1,
        "batch": "b",
        "accepted_at": now,
        "processed_at": now,
    }
    Ledger(broadcaster.database).insert([document | fields])


def test_the_story_of_a_key(broadcaster: Running):
    key = broadcaster.http.post("/events", json=event("50% off / ~now?")).json()["keys"][0]
    url = f"/events/{quote(key, safe='')}"
    waiting = broadcaster.http.get(url).json()
    assert (waiting["key"], waiting["state"]) == (key, "waiting")
    assert waiting["inbox"][0]["door"] == "http"
    failure = {"_id": f"{key}#1x", "v": 1, "key": key, "digest": "1x", "state": "dead", "reason": "r", "first_failed_at": utc_now()}
    failure |= {"accepted_at": utc_now(), "updated_at": utc_now(), "attempts": 5, "starts": 0, "listener": "listener-1", "batch": "b"}
    broadcaster.database["failures"].insert_one(failure | {"body": {"source": "shop", "data": b"\x00"}})
    dead = broadcaster.http.get(url).json()
    assert dead["state"] == "dead"
    assert dead["failures"][0]["reason"] == "r"
    assert dead["failures"][0]["data_base64"] == "AA=="
    commit(broadcaster, key)
    processed = broadcaster.http.get(url).json()
    assert processed["state"] == "processed"
    assert processed["event"]["token"] == 7
    assert processed["event"]["data"] == {"n": 5}
    assert processed["event"]["subject"] == "s"
    assert processed["event"]["processed_at"].endswith("Z")


def test_the_newest_events_first_by_type_and_listener(broadcaster: Running):
    for n in range(5):
        commit(broadcaster, f"list~{n}", type="listed" if n % 2 else "other", listener=f"lister-{n}")

    def keys(**params: Any) -> list[str]:
        return [e["key"] for e in broadcaster.http.get("/events", params=params).raise_for_status().json()["events"]]

    assert keys(limit=2) == ["list~4", "list~3"]
    assert keys(type="listed") == ["list~3", "list~1"]
    assert keys(listener="lister-1") == ["list~1"]
    assert keys(type="listed", listener="lister-0") == []


def test_numbers(broadcaster: Running):
    before = broadcaster.http.get("/stats").json()
    broadcaster.http.post("/events", json=[event("n-1", type="counted"), event("n-2", type="counted")]).raise_for_status()
    after = broadcaster.http.get("/stats").json()
    assert after["accepted"]["by_type"]["counted"] == 2
    assert after["accepted"]["events"] == before["accepted"]["events"] + 2
    assert eventually(lambda: broadcaster.http.get("/stats").json()["inbox"]["oldest_age_s"]) > 0
    assert after["redis"] == {"ok": True}
    eventually(lambda: broadcaster.http.get("/stats").json()["inbox"]["batches"] == broadcaster.database["inbox"].count_documents({}))


def test_numbers_of_listeners_and_queues(broadcaster: Running):
    assert broadcaster.http.get("/stats").json()["listeners"] == []
    redis = redis_client.connect(broadcaster.settings)
    presence = Presence(redis, deployment_id(broadcaster.database))
    for node, won in (("listener-1@a", 2), ("listener-1@b", 3)):
        presence.beat(Beat(node=node, listener="listener-1", pid=1, received_seq=won, won=won, skipped=1))
    with Redis.from_url(broadcaster.settings.broker_url) as broker:
        broker.rpush("events.listener-1", "x", "y")
    (listener,) = eventually(lambda: broadcaster.http.get("/stats").json()["listeners"])
    assert [listener[name] for name in ("name", "won", "skipped", "failed", "received_seq")] == ["listener-1", 5, 2, 0, 3]
    assert 0 <= listener["silent_ms"] < 10_000
    assert len(listener["nodes"]) == 2
    eventually(lambda: broadcaster.http.get("/stats").json()["queues"] == {"events.listener-1": 2, "events.recovery": 0})
    redis.close()


def test_health(broadcaster: Running):
    assert broadcaster.http.get("/health/live").json() == {"status": "live"}
    ready = broadcaster.http.get("/health/ready")
    assert (ready.status_code, ready.json()["ready"], ready.json()["reasons"]) == (200, True, [])


# ------------------------------------------------------------------------------------------------------ start and token


def test_a_taken_port_is_said_in_one_sentence(broadcaster: Running, spawn: Any):
    taken = replace(broadcaster.settings, port=urlsplit(broadcaster.url).port or 0)
    process = spawn("second", ["python", "-m", "broadcaster"], settings=taken)
    assert process.wait(20) == 1
    (line,) = process.log_tail().splitlines()
    assert "DEDUP_PORT" in line
    assert str(taken.port) in line


def test_outside_loopback_a_token_is_required_at_start(broadcaster: Running, spawn: Any):
    process = spawn("open", ["python", "-m", "broadcaster"], settings=replace(broadcaster.settings, host="0.0.0.0", port=0))
    assert process.wait(20) == 1
    (line,) = process.log_tail().splitlines()
    assert "DEDUP_TOKEN" in line


def test_without_servers_it_says_what_to_do(spawn: Any):
    process = spawn("lost", ["python", "-m", "broadcaster"])
    assert process.wait(20) == 1
    (line,) = process.log_tail().splitlines()
    assert "dedup up" in line


def test_outside_loopback_every_route_but_health_wants_the_token(settings: Settings, tmp_path: Any):
    outside = replace(settings, host="0.0.0.0", port=0, token="s3cret")
    with broadcaster_process(outside, tmp_path) as (process, url), httpx.Client(base_url=url) as http:
        for path in ("/events", "/events/x", "/stats", "/openapi.json", "/nowhere"):
            refused = http.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert http.post("/events", json=event("x")).status_code == 401
        assert http.get("/health/live").status_code == 200
        assert http.get("/health/ready").status_code == 200
        http.headers["Authorization"] = "Bearer s3cret"
        assert http.post("/events", json=event("x")).status_code == 202
        assert http.get("/stats").status_code == 200
        assert http.post("/burst", json={"count": 1}).status_code == 403
        assert "s3cret" not in process.log.read_text()
