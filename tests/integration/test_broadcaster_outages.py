"""The broadcaster while a store is away, answers too late, or is full; and its end."""

import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pymongo import MongoClient

from app.embedded.servers import EmbeddedServers
from app.overview import overview
from app.presence import Presence
from app.redis_client import connect as connect_redis
from app.settings import Settings
from app.stores import meta, mongo
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings
from tests.support.waiting import eventually


def event(id: str) -> dict[str, Any]:
    return {"type": "order.paid", "source": "shop", "id": id, "data": 1}


def test_it_starts_without_mongodb_and_recovers_by_itself(private_servers: EmbeddedServers, tmp_path: Path):
    settings = fresh_settings(private_servers, tmp_path, port=0, mongo_timeout_ms=1_000, redis_timeout_ms=300)
    private_servers.mongo.kill()
    with broadcaster_process(settings, tmp_path) as (process, url), httpx.Client(base_url=url, timeout=20) as http:

        def away() -> None:
            paths = ("/health/ready", "/events", "/events/id~shop~early", "/stats", "/health/live")
            with ThreadPoolExecutor() as pool:
                answers = [pool.submit(http.post, "/events", json=event("early")), *(pool.submit(http.get, path) for path in paths)]
                refused, ready, recent, story, stats, live = (answer.result() for answer in answers)
            assert [answer.status_code for answer in (refused, ready, recent, story, stats, live)] == [503, 503, 503, 503, 200, 200]
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["content-type"] == "application/problem+json"
            assert "MongoDB" in ready.json()["reasons"][0]
            assert "error" in stats.json()["ledger"]

        away()
        private_servers.mongo.start()
        eventually(lambda: http.post("/events", json=event("early")).status_code == 202, 15)
        eventually(lambda: http.get("/health/ready").status_code == 200)
        private_servers.mongo.kill()
        eventually(lambda: http.get("/health/ready").status_code == 503)
        assert http.post("/events", json=event("late")).status_code == 503
        private_servers.mongo.start()
        eventually(lambda: http.post("/events", json=event("late")).status_code == 202, 15)

        assert http.get("/health/ready").json()["sweeper"] == {"last_success_s": None}
        db = mongo.connect(settings, role="test")
        with closing(connect_redis(settings)) as redis, closing(db.client):
            Presence(redis, meta.deployment_id(db)).note_sweep()
        eventually(lambda: http.get("/health/ready").json()["sweeper"]["last_success_s"] is not None)
        private_servers.valkey.kill()
        assert http.post("/events", json=event("without redis")).status_code == 202
        ready = eventually(lambda: not (seen := http.get("/health/ready")).json()["redis"]["ok"] and seen)
        assert ready.status_code == 200
        assert http.get("/stats").json()["redis"]["ok"] is False
        assert process.terminate() == 0


def test_lost_confirmations_and_the_end_amid_a_write(start_servers: Callable[..., EmbeddedServers], tmp_path: Path):
    servers = start_servers(mongod_args=["--setParameter", "enableTestCommands=1"])
    settings = fresh_settings(servers, tmp_path, port=0, mongo_timeout_ms=1_500)
    with (
        broadcaster_process(settings, tmp_path) as (process, url),
        MongoClient(settings.mongo_url) as client,
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        inbox = client.get_default_database()["inbox"]

        def fail(mode: Any, **data: Any) -> None:
            commands = {"failCommands": ["insert", "update"], "appName": "dedup-broadcaster"}
            client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": commands | data})

        # The write holds, but its confirmation is lost, once: recognised by its _id, confirmed, stored once.
        fail({"times": 1}, writeConcernError={"code": 64, "errmsg": "waiting for replication timed out"})
        answer = http.post("/events", json=event("unconfirmed"))
        assert answer.status_code == 202
        assert [d["_id"] for d in inbox.find({"events.key": "id~shop~unconfirmed"})] == [answer.json()["batch"]]

        # The reply is lost with the connection: the repeated write is the same document.
        fail({"times": 1}, closeConnection=True)
        assert http.post("/events", json=event("cut")).status_code == 202
        assert inbox.count_documents({"events.key": "id~shop~cut"}) == 1

        # It stays unconfirmed: 503, although the event may be there; sent again with the same id it is accepted.
        fail("alwaysOn", writeConcernError={"code": 64, "errmsg": "waiting for replication timed out"})
        assert http.post("/events", json=event("unknown")).status_code == 503
        fail("off")
        assert http.post("/events", json=event("unknown")).json()["keys"] == ["id~shop~unknown"]
        assert inbox.count_documents({"events.key": "id~shop~unknown"}) in (1, 2)

        # SIGTERM while the write runs: no new connections, the producer is answered, the end comes in time.
        fail("alwaysOn", blockConnection=True, blockTimeMS=1_000)
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(http.post, "/events", json=event("last"))
            eventually(lambda: client.admin.command({"currentOp": 1, "appName": "dedup-broadcaster", "command.insert": "inbox"})["inprog"])
            process.ask_to_stop(signal.SIGTERM)
            started = time.monotonic()
            assert answered.result(15).status_code == 202
            assert process.wait(10) == 0
            assert time.monotonic() - started < 10
        fail("off")
        assert inbox.count_documents({"events.key": "id~shop~last"}) == 1


@pytest.mark.parametrize("limit", [{"inbox_max_batches": 3}, {"inbox_max_bytes": 1_000}], ids=["batches", "bytes"])
def test_a_full_inbox_is_said_and_opens_again(make_settings: Callable[..., Settings], tmp_path: Path, limit: dict[str, int]):
    settings = make_settings(port=0, **limit)
    with (
        broadcaster_process(settings, tmp_path) as (process, url),
        httpx.Client(base_url=url, timeout=20) as http,
        MongoClient(settings.mongo_url) as client,
    ):
        inbox = client.get_default_database()["inbox"]
        numbers = iter(range(10_000))
        refused = eventually(lambda: (answer := http.post("/events", json=event(str(next(numbers))))).status_code == 503 and answer)
        assert int(refused.headers["retry-after"]) > 0
        assert "inbox is full" in refused.json()["detail"]
        assert http.get("/stats").json()["inbox"]["bytes"] > 0
        ready = http.get("/health/ready")
        assert (ready.status_code, "inbox is full" in ready.json()["reasons"][0]) == (503, True)
        inbox.delete_many({})
        eventually(lambda: http.post("/events", json=event("room")).status_code == 202)
        eventually(lambda: http.get("/health/ready").status_code == 200)
        assert process.terminate() == 0


@pytest.mark.parametrize("limit", [{"failures_max": 2}, {"failures_max_bytes": 1_000}], ids=["number", "bytes"])
def test_g7_too_many_failures_close_the_doors_until_they_are_decided(
    make_settings: Callable[..., Settings], tmp_path: Path, limit: dict[str, int]
):
    """G7: failed events are never thrown away, so no more are taken in; operators make room."""
    settings = make_settings(port=0, **limit)
    with (
        broadcaster_process(settings, tmp_path) as (_, url),
        httpx.Client(base_url=url, timeout=20) as http,
        MongoClient(settings.mongo_url) as client,
    ):
        assert http.post("/events", json=event("first")).status_code == 202
        failures = client.get_default_database()["failures"]
        failures.insert_many([{"_id": f"k{n}#1d", "v": 1, "key": f"k{n}", "state": "dead", "body": {"data": "x" * 600}} for n in range(2)])
        numbers = iter(range(10_000))
        refused = eventually(lambda: (answer := http.post("/events", json=event(str(next(numbers))))).status_code == 503 and answer)
        assert refused.headers["retry-after"] == "10"
        assert "too many events have failed" in refused.json()["detail"]
        assert "dedup failures" in refused.json()["detail"]
        assert http.get("/health/ready").status_code == 503
        db = mongo.connect(settings, role="test")
        with closing(db.client):
            assert overview(db, settings)["full"] == refused.json()["detail"]
        failures.delete_many({})
        eventually(lambda: http.post("/events", json=event("room")).status_code == 202)


def test_it_ends_in_time_although_a_client_never_finishes_its_request(make_settings: Callable[..., Settings], tmp_path: Path):
    with broadcaster_process(make_settings(port=0), tmp_path) as (process, url):
        place = urlsplit(url)
        with closing(socket.create_connection((place.hostname, place.port), timeout=10)) as slow:
            slow.sendall(b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            eventually(lambda: httpx.get(url + "/health/live").status_code == 200)
            process.ask_to_stop(signal.SIGINT)
            assert slow.recv(64).startswith(b"HTTP/1.1 503")
            assert process.wait(10) == 0
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    assert lines[-1]["event"] == "broadcaster.stopped"
