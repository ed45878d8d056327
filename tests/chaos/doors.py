"""Producers of a chaos run, one at each door: what they send, what they were promised, and what they cannot know.

| door | promised when |
|---|---|
| HTTP, ``Publisher``, webhook | 202 |
| Socket.IO | the acknowledgement names keys |
| ``accept()`` in the producer's own transaction | the commit succeeded; one whose result stays unknown is settled by the producer's own document at the end |
| foreign feed | the server asked for an acknowledgement, and got it; what it emits without asking must be processed once where it arrives |

Every producer now and then sends again what another door has taken: it must be the same event. All of them wait while the inbox holds more
than ``CROWDED`` batches: a run is about faults, and must end on a slow machine, too.
"""

import contextlib
import hashlib
import hmac
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import socketio
import socketio.exceptions
from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from app import Publisher, accept
from app.errors import DedupError
from app.publisher import NotTaken
from app.settings import Settings, database_of
from tests.support.system import System

KINDS = ("fault.count", "fault.count", "fault.slow", "fault.mixed", "fault.wait", "plain")
CROWDED = 500
SOURCE, FEED_SOURCE = "chaos", "foreign"
HOOK_SECRET = "chaos-hook-secret"
POLICIES = """
[hooks.chaos]
type = "body.type"
source = "'chaos'"
id = "body.id"
data = "body.data"
signature = "github"
secret_env = "CHAOS_HOOK_SECRET"

[feeds.foreign]
url = "{feed_url}"
event = "happened"
type = "type"
key = "id"
data = "data"
"""
Event = dict[str, Any]


@dataclass
class Doors:
    """Feeds a system through all of its doors at once.

    Attributes:
        system: what is fed; ``system.told`` holds the promised keys with their events.
        urls: where the broadcasters are.
        feed_url: of the foreign server.
        tried: keys that were sent at all, promised or not.
        ordered: keys that went through the producer's own transactions, whatever became of these.
        took: promised keys by door.
        refused: answers that were no promise: 503, none at all, a transaction that did not commit.
    """

    system: System
    seed: int
    urls: dict[str, str]
    feed_url: str
    tried: set[str] = field(default_factory=set)
    ordered: set[str] = field(default_factory=set)
    took: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)
    crowded: threading.Event = field(default_factory=threading.Event)
    broken: list[BaseException] = field(default_factory=list)
    _number: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Feed for as long as the block runs; at its end, raise what no producer expects."""
        producers = (self._http, self._socket, self._hook, self._publisher, self._own_transaction, self._feed)
        threads = [
            threading.Thread(target=self._run, args=(produce, random.Random(self.seed + n)), name=produce.__name__)
            for n, produce in enumerate(producers)
        ]
        threads.append(threading.Thread(target=self.watch_inbox, name="watch"))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(timeout=90)
        if self.broken:
            raise self.broken[0]
        assert not [thread.name for thread in threads if thread.is_alive()], "a producer does not end"

    def _run(self, produce: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            produce(chance)
        except BaseException as error:  # noqa: BLE001 - a thread's edge: raised again by the thread that waits
            self.broken.append(error)

    def watch_inbox(self) -> None:
        """Tell producers whether the inbox is crowded, until they stop."""
        while not self.stop.wait(0.5):
            with contextlib.suppress(PyMongoError):  # they go on: what happens while MongoDB is away is what counts
                batches = self.system.db.inbox.estimated_document_count()
                (self.crowded.set if batches > CROWDED else self.crowded.clear)()

    def _go_on(self, pause_s: float) -> bool:
        """Pause before the next request, longer while the inbox is crowded; False at the end."""
        while not self.stop.wait(pause_s):
            if not self.crowded.is_set():
                return True
        return False

    # ----------------------------------------------------------------------------------------------------------- events

    def event(self, chance: random.Random) -> Event:
        """A new event."""
        with self._lock:
            self._number += 1
            number = self._number
        kind = chance.choice(KINDS)
        data: dict[str, Any] = {"n": number}
        if kind in ("fault.slow", "fault.wait"):
            data["ms"] = chance.choice([5, 20])
        if kind == "fault.mixed" and chance.random() < 0.3:
            data |= {"do": "raise", "times": 1}
        return {"type": kind, "source": SOURCE, "id": str(number), "data": data}

    def some(self, chance: random.Random) -> list[Event]:
        """A few new events, and sometimes ones again that some door has taken."""
        made = [self.event(chance) for _ in range(chance.choice([1, 1, 5, 40]))]
        return made + (self._told(chance, 10) if chance.random() < 0.2 else [])

    def _told(self, chance: random.Random, most: int) -> list[Event]:
        with self._lock:
            told = list(self.system.told.values())[-2_000:]
        return chance.sample(told, min(len(told), most))

    def _promised(self, door: str, part: list[Event], keys: list[str]) -> None:
        distinct = {event["id"]: event for event in part}
        assert len(keys) == len(distinct), "one key for each distinct event"
        with self._lock:
            new = {key: event for key, event in zip(keys, distinct.values(), strict=True) if key not in self.system.told}
            self.system.told.update(new)
            self.took[door] += len(new)

    def _sending(self, part: list[Event]) -> list[Event]:
        self.tried.update(key_of(event) for event in part)
        return part

    def _url(self, chance: random.Random) -> str:
        return chance.choice(list(self.urls.values()))

    # ------------------------------------------------------------------------------------------------------------ doors

    def _http(self, chance: random.Random) -> None:
        with httpx.Client(timeout=15) as http:
            while self._go_on(0.1):
                part = self._sending(self.some(chance))
                self._judge("http", part, lambda part=part: http.post(f"{self._url(chance)}/events", json=part))  # type: ignore[misc]

    def _hook(self, chance: random.Random) -> None:
        with httpx.Client(timeout=15) as http:
            while self._go_on(0.05):
                told = [event for event in self._told(chance, 1) if event["source"] == SOURCE] if chance.random() < 0.2 else []
                part = self._sending(told or [self.event(chance)])
                body, headers = signed(part[0])
                self._judge(
                    "hook",
                    part,
                    lambda body=body, headers=headers: http.post(f"{self._url(chance)}/hooks/chaos", content=body, headers=headers),  # type: ignore[misc]
                )

    def _judge(self, door: str, part: list[Event], send: Callable[[], httpx.Response]) -> None:
        try:
            answer = send()
        except httpx.TransportError:
            self.refused[f"{door}: no answer"] += 1
            return
        if answer.status_code == 202:
            self._promised(door, part, answer.json()["keys"])
        else:
            assert answer.status_code == 503, answer.text
            self.refused[f"{door}: 503"] += 1

    def _publisher(self, chance: random.Random) -> None:
        """Repeats by itself: what it gives up is sent on, through the other broadcaster."""
        while not self.stop.is_set():
            with Publisher(self._url(chance), patience_s=4) as publisher:
                for _ in range(20):
                    if not self._go_on(0.3):
                        break
                    part = self._sending(self.some(chance))
                    try:
                        self._promised("publisher", part, publisher.send(part))
                    except NotTaken:
                        self.refused["publisher: not taken"] += 1
                        break

    def _socket(self, chance: random.Random) -> None:
        while self._go_on(0.2):
            place = urlsplit(self._url(chance))
            try:
                # The client leaves its connection open where the server dies amid the handshake: so the connection is ours.
                with socket.create_connection((place.hostname or "", place.port or 0), timeout=15) as connection:
                    self._publish(f"http://{place.netloc}", connection, chance)
            except (OSError, socketio.exceptions.SocketIOError):
                self.refused["socket: no answer"] += 1

    def _publish(self, url: str, connection: socket.socket, chance: random.Random) -> None:
        with socketio.SimpleClient(reconnection=False, websocket_extra_options={"socket": connection}) as client:
            client.connect(url, transports=["websocket"], wait_timeout=5)
            for _ in range(50):
                if not self._go_on(0.15):
                    break
                part = self._sending(self.some(chance))
                answer = client.call("publish", part, timeout=15)
                if "keys" in answer:
                    self._promised("socket", part, answer["keys"])
                else:
                    assert answer["error"]["status"] == 503, answer
                    self.refused["socket: 503"] += 1

    # ------------------------------------------------------------------------------------------------ the own transaction

    def _own_transaction(self, chance: random.Random) -> None:
        """Orders and events commit together, or neither is there: ``chaos_orders`` says at the end which."""
        settings = self.system.settings
        client: MongoClient[dict[str, Any]]
        with MongoClient(settings.mongo_url, serverSelectionTimeoutMS=5_000, socketTimeoutMS=10_000) as client:
            while self._go_on(0.3):
                # new events alone: whether they are there must depend on this transaction, and on nothing else
                part = [self.event(chance) for _ in range(chance.choice([1, 1, 5, 40]))]
                self.ordered.update(key_of(event) for event in part)
                order = {"_id": part[0]["id"], "keys": [key_of(event) for event in part]}
                try:
                    with client.start_session() as session:
                        keys = self._order(client, session, settings, order, part, roll_back=chance.random() < 0.1)
                except (PyMongoError, DedupError) as error:
                    self.refused[f"accept: {type(error).__name__}"] += 1
                else:
                    self._promised("accept", part if keys else [], keys)

    def _order(
        self,
        client: MongoClient[dict[str, Any]],
        session: ClientSession,
        settings: Settings,
        order: dict[str, Any],
        part: list[Event],
        *,
        roll_back: bool,
    ) -> list[str]:
        """One transaction. Returns the keys that it committed; raises where it did not, or where nobody knows."""
        db = client[database_of(settings.mongo_url)]
        session.start_transaction()
        db["chaos_orders"].insert_one(order, session=session)
        keys = accept(part, db=db, session=session, settings=settings)
        if roll_back:
            session.abort_transaction()
            self.refused["accept: rolled back"] += 1
            return []
        give_up_at = time.monotonic() + 10
        while True:
            try:
                session.commit_transaction()
            except PyMongoError as error:
                if not error.has_error_label("UnknownTransactionCommitResult") or time.monotonic() > give_up_at:
                    raise
                self.refused["accept: commit tried again"] += 1
                time.sleep(0.1)
            else:
                return keys

    # --------------------------------------------------------------------------------------------------- the foreign feed

    def _feed(self, chance: random.Random) -> None:
        with httpx.Client(timeout=15) as http:
            while self._go_on(0.3):
                try:
                    self.emit(http, [self.event(chance) for _ in range(chance.choice([1, 1, 5, 40]))])
                    self._ask(http, self.event(chance) | {"source": FEED_SOURCE})
                except httpx.TransportError:
                    self.refused["feed: its server is away"] += 1

    def _ask(self, http: httpx.Client, event: Event) -> None:
        order = {"event": "happened", "payload": payload_of(event), "patience_s": 5}
        self._sending([event])
        answer = http.post(f"{self.feed_url}/ask", json=order)
        if answer.status_code == 200 and answer.json():
            self._promised("feed", [event], [key_of(event)])
        else:
            self.refused["feed: not acknowledged"] += 1

    def emit(self, http: httpx.Client, part: list[Event]) -> list[str]:
        """Let the foreign server emit events to whoever is connected; their keys."""
        payloads = [payload_of(event) for event in part]
        keys = [key_of(event | {"source": FEED_SOURCE}) for event in part]
        self.tried.update(keys)
        http.post(f"{self.feed_url}/emit", json={"event": "happened", "payloads": payloads}).raise_for_status()
        return keys


def key_of(event: Event) -> str:
    """The key that an event of these producers gets: their sources and ids need no escapes."""
    return f"id~{event['source']}~{event['id']}"


def payload_of(event: Event) -> dict[str, Any]:
    """An event as webhooks and the foreign server have it."""
    return {name: event[name] for name in ("type", "id", "data")}


def signed(event: Event) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a webhook's request."""
    body = json.dumps(payload_of(event)).encode()
    mac = hmac.new(HOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
    return body, {"Content-Type": "application/json", "X-Hub-Signature-256": f"sha256={mac}"}
