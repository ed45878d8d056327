"""The live page's server side: its files, what it is told over Socket.IO, and the routes for failures."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis
import websocket
from pymongo import MongoClient
from socketio.exceptions import ConnectionError as SocketConnectionError

from app.claims.store import ClaimStore
from app.embedded.servers import EmbeddedServers
from app.events.event import Event
from app.outcomes import Told, channel, encoded, watched_key
from app.redis_client import connect
from app.settings import Settings, database_of
from app.stores.failures import Failures, Origin
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.records import entry_of, utc_now
from broadcaster.bridge.client import OrderedClient
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings, remove_data
from tests.support.waiting import eventually

TOKEN = "s3cret"


@pytest.fixture(scope="module")
def running(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str]]:
    """A broadcaster with a token."""
    folder = tmp_path_factory.mktemp("live")
    settings = fresh_settings(servers, folder, port=0, token=TOKEN, retention_s=172_800)
    with broadcaster_process(settings, folder) as (_, url):
        yield settings, url
    remove_data(settings)


@pytest.fixture
def db(running) -> Iterator[Any]:
    client: MongoClient[Any]
    with MongoClient(running[0].mongo_url, tz_aware=True) as client:
        yield client[database_of(running[0].mongo_url)]


@pytest.fixture
def redis_of(running) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(running[0].redis_url) as client:
        yield client


@pytest.fixture
def http(running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running[1], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as client:
        yield client


class TestFiles:
    def test_the_page_and_its_files_are_served_without_the_token_and_under_strict_rules(self, running):
        index = httpx.get(running[1] + "/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        names = {part.split('"')[0] for part in index.text.split("/static/")[1:]}
        assert names == {"icon.svg", "live.css", "live.js"}
        for path in ["/", *(f"/static/{name}" for name in names)]:
            found = httpx.get(running[1] + path)
            assert found.status_code == 200
            rules = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
            assert rules["default-src"] == "'none'"
            assert rules["script-src"] == rules["style-src"] == "'self'"
            assert rules["frame-ancestors"] == "'none'"
            assert found.headers["x-content-type-options"] == "nosniff"

    def test_nothing_in_the_page_comes_from_elsewhere_or_is_inline(self, running):
        text = httpx.get(running[1] + "/").text
        assert "http:" not in text
        assert "https:" not in text
        assert "<style" not in text
        assert " style=" not in text
        assert not re.search(r"\son[a-z]+=", text)
        assert text.count("<script") == 1

    def test_a_file_that_has_not_changed_is_not_sent_again(self, running):
        first = httpx.get(running[1] + "/static/live.js")
        again = httpx.get(running[1] + "/static/live.js", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "content-security-policy" in again.headers

    @pytest.mark.parametrize("name", ["..%2fserver.py", "%2e%2e/server.py", "nothing.js", "", "live.js%00", "..\\server.py"])
    def test_no_other_file_is_served(self, running, name):
        found = httpx.get(f"{running[1]}/static/{name}")
        assert found.status_code in (401, 404)
        assert b"class Server" not in found.content


class Page(OrderedClient):
    """A Socket.IO client on ``/watch`` that notes what it hears."""

    def __init__(self, url: str, token: str | None = TOKEN) -> None:
        super().__init__(timeout_s=10)
        self.heard: list[tuple[str, Any]] = []
        self.on("*", lambda name, data: self.heard.append((name, data)), namespace="/watch")
        self.connect(url, namespaces=["/watch"], auth={"token": token} if token else None, wait_timeout=10)

    def of(self, name: str) -> list[Any]:
        return [data for heard, data in self.heard if heard == name]


@pytest.fixture
def open_page(running) -> Iterator[Callable[..., Page]]:
    opened: list[Page] = []

    def make(**options: Any) -> Page:
        opened.append(Page(running[1], **options))
        return opened[-1]

    yield make
    for page in opened:
        page.disconnect()


class TestWatching:
    def test_only_who_knows_the_token_is_told(self, running, open_page):
        for token in (None, "wrong"):
            with pytest.raises(SocketConnectionError, match="/watch"):
                open_page(token=token)

    def test_a_browser_s_page_of_another_site_is_not_let_in(self, running):
        url = running[1].replace("http:", "ws:") + "/socket.io/?EIO=4&transport=websocket"
        with pytest.raises(websocket.WebSocketBadStatusException):
            websocket.create_connection(url, origin="https://elsewhere.example", timeout=10)

    def test_a_page_hears_the_state_and_what_is_accepted_and_done(self, http, db, redis_of, open_page):
        # Given an open page
        page = open_page()
        eventually(lambda: page.of("state"))
        deployment = deployment_id(db)
        eventually(lambda: redis_of.exists(watched_key(deployment)), message="listeners are told that somebody watches")
        eventually(lambda: redis_of.pubsub_numsub(channel(deployment))[0][1])

        # When an event is accepted, and a listener tells of it
        [key] = http.post("/events", json={"type": "t", "source": "live", "id": "1"}).raise_for_status().json()["keys"]
        redis_of.publish(channel(deployment), encoded(Told(listener="listener-9", won=1, events=[(key, "won", "")])))

        # Then
        eventually(lambda: any(frame["outcomes"] for frame in page.of("frame")), message=lambda: page.heard)
        frames = page.of("frame")
        assert {"key": key, "type": "t"} in [event for frame in frames for event in frame["events"]]
        assert [[key, "listener-9", "won", ""]] == [outcome for frame in frames for outcome in frame["outcomes"]]
        eventually(lambda: page.of("state")[-1]["accepted"]["events"] >= 1)
        assert page.of("state")[-1]["outcomes"]["ok"] is True

    def test_rubbish_in_the_channel_is_passed_over(self, db, redis_of, open_page):
        page = open_page()
        deployment = deployment_id(db)
        eventually(lambda: redis_of.pubsub_numsub(channel(deployment))[0][1])
        for rubbish in (b"\xff", b"{}", b'{"listener": "a", "events": [[1]]}', b"9" * 100_000):
            redis_of.publish(channel(deployment), rubbish)
        redis_of.publish(channel(deployment), encoded(Told(listener="listener-8", skipped=1)))
        eventually(lambda: any("listener-8" in frame["counts"] for frame in page.of("frame")), message=lambda: page.heard)

    def test_when_the_last_page_is_closed_listeners_are_not_asked_any_more(self, db, redis_of, open_page):
        page = open_page()
        deployment = deployment_id(db)
        eventually(lambda: redis_of.pubsub_numsub(channel(deployment))[0][1])
        page.disconnect()
        eventually(lambda: not redis_of.pubsub_numsub(channel(deployment))[0][1])
        eventually(lambda: not redis_of.exists(watched_key(deployment)), 8)
        again = open_page()  # and it begins anew for the next one
        eventually(lambda: redis_of.exists(watched_key(deployment)) and again.of("state"))


def failed(db: Any, key: str, state: str = "dead", digest: str = "1a", data: Any = None) -> None:
    event = Event(key=key, digest=digest, type="t", source="s", id=None, time=None, data=data, extra={})
    origin = Origin(batch="b", accepted_at=utc_now(), listener="listener-1", token=1)
    Failures(db).record_final([(entry_of(event), origin, state, {"reason": f"it is {state}"})])


def committed(db: Any, key: str, digest: str = "0a") -> None:
    entry = entry_of(Event(key=key, digest=digest, type="t", source="s", id=None, time=None, data={"old": True}, extra={}))
    document = {
        "_id": key,
        "v": 1,
        "digest": digest,
        "type": "t",
        "body": entry.body,
        "listener": "listener-2",
        "claim_id": "c",
        "token": 1,
    }
    Ledger(db).insert([document | {"attempt": 1, "batch": "b", "accepted_at": utc_now(), "processed_at": utc_now()}])


class TestFailures:
    def test_they_are_listed_latest_first_without_content(self, http, db):
        db.failures.delete_many({})
        for number in range(3):
            failed(db, f"list-{number}", "dead" if number else "stale", data="secret" * 100)
        answer = http.get("/failures", params={"limit": 2}).json()
        assert [one["key"] for one in answer["failures"]] == ["list-2", "list-1"]
        assert answer["more"] is True
        assert "secret" not in str(answer)
        only = http.get("/failures", params={"state": "stale"}).json()
        assert ([one["key"] for one in only["failures"]], only["more"]) == (["list-0"], False)
        assert http.get("/failures", params={"type": "other"}).json()["failures"] == []

    @pytest.mark.parametrize("query", ["state=nonsense", "limit=0", "limit=501", "limit=x", f"type={'t' * 300}"])
    def test_questions_that_make_no_sense_are_refused(self, http, query):
        assert http.get(f"/failures?{query}").status_code == 422

    def test_each_decision_does_what_it_says(self, http, db):
        failed(db, "again")
        failed(db, "gone")
        for key in ("new", "old"):
            committed(db, key)
            failed(db, key, "conflict", data={"new": True})

        def decide(decision: str, key: str) -> str:
            answer = http.post("/failures/decisions", json={"decision": decision, "key": key, "digest": "1a"})
            return str(answer.raise_for_status().json()["done"])

        assert "tried again" in decide("retry", "again")
        assert db.failures.find_one({"key": "again"})["state"] == "retrying"
        assert decide("discard", "gone") == "discarded"
        gone = db.events.find_one({"_id": "gone"})
        assert gone["discarded"] is True
        assert gone["expires_at"] > utc_now() + timedelta(hours=47), "for as long as the policy says"
        assert "accepted" in decide("accept-new", "new")
        assert db.events.find_one({"_id": "new"})["body"]["data"] == {"new": True}
        assert "stands" in decide("keep-old", "old")
        assert db.events.find_one({"_id": "old"})["rejected"] == ["1a"]
        assert db.failures.count_documents({"key": {"$in": ["gone", "new", "old"]}}) == 0

    def test_a_decision_that_came_too_late_is_told_in_a_sentence(self, http, db):
        answer = http.post("/failures/decisions", json={"decision": "discard", "key": "never failed", "digest": "1a"})
        assert answer.status_code == 409
        assert "there is no failure of never failed" in answer.json()["detail"]
        failed(db, "only dead")
        answer = http.post("/failures/decisions", json={"decision": "keep-old", "key": "only dead", "digest": "1a"})
        assert answer.status_code == 409
        assert "not in conflict" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "body, status",
        [
            (b"{", 400),
            (b"\xff", 400),
            (b"[]", 422),
            (b"{}", 422),
            (b'{"decision": "destroy", "key": "k", "digest": "1"}', 422),
            (b'{"decision": "retry", "key": {"$ne": ""}, "digest": "1"}', 422),
            (b'{"decision": "retry", "key": "", "digest": "1"}', 422),
            (b'{"decision": "retry", "key": "k", "digest": "1", "more": 1}', 422),
            (b'{"decision": "retry", "key": "' + b"k" * 5_000 + b'", "digest": "1"}', 413),
        ],
    )
    def test_bodies_that_are_no_decision_are_refused(self, http, body, status):
        answer = http.post("/failures/decisions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"

    def test_neither_another_site_nor_a_form_nor_a_stranger_can_decide(self, running, db):
        failed(db, "mine")
        body = {"decision": "discard", "key": "mine", "digest": "1a"}
        known = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{running[1]}/failures/decisions"
        assert httpx.post(url, json=body, headers=known | {"Origin": "https://elsewhere.example"}).status_code == 403
        assert httpx.post(url, json=body, headers=known | {"Origin": "null"}).status_code == 403
        for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            assert httpx.post(url, json=body, headers=known | {"Content-Type": media}).status_code == 415
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.get(url, headers=known).status_code == 405
        assert db.failures.count_documents({"key": "mine"}) == 1


class TestStory:
    def test_an_event_that_waits_says_who_has_it_now(self, http, db, redis_of, running):
        [key] = http.post("/events", json={"type": "t", "source": "live", "id": "waits"}).raise_for_status().json()["keys"]
        story = http.get(f"/events/{key}").json()
        assert (story["state"], story["claim"]) == ("waiting", None)
        client = connect(running[0])
        store = ClaimStore.of(running[0], client, deployment_id(db))
        store.claim([key], [story["inbox"][0]["digest"]], claim_id="c1", owner="listener-5", lease_ms=60_000)
        assert http.get(f"/events/{key}").json()["claim"]["owner"] == "listener-5"
        client.close()

    def test_the_newest_events_can_be_had_without_their_content(self, http, db):
        committed(db, "brief")
        [found] = [one for one in http.get("/events", params={"brief": True, "limit": 50}).json()["events"] if one["key"] == "brief"]
        assert "data" not in found
        assert found["listener"] == "listener-2"
