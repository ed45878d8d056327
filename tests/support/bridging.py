"""What tests of bridge and sweeper share: events in the stores, listeners that only beat, and a look into queues."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from celery import Celery
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from redis import Redis

from app import redis_client
from app.claims.store import ClaimStore
from app.messages import Delivery, announcement, read_delivery
from app.naming import queue_of
from app.presence import Beat, Presence
from app.settings import Settings
from app.stores import mongo
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.records import Entry, inbox_document, new_batch_id, utc_now


@dataclass(frozen=True, slots=True)
class Sent:
    """A task message in a queue."""

    id: str
    task: str
    argsrepr: str
    delivery: Delivery


class Place:
    """The servers of one test, as a bridge sees them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.db: Database[dict[str, Any]] = mongo.connect(settings, role="test")
        self.redis: Redis = redis_client.connect(settings)
        self.broker: Redis = Redis.from_url(settings.broker_url, socket_timeout=5)
        self.app = Celery("test", broker=settings.broker_url, task_ignore_result=True)
        self.inbox, self.ledger, self.failures = Inbox(self.db), Ledger(self.db), Failures(self.db)

    @property
    def deployment(self) -> str:
        return deployment_id(self.db)

    @property
    def presence(self) -> Presence:
        return Presence(self.redis, self.deployment)

    @property
    def claims(self) -> ClaimStore:
        return ClaimStore.of(self.settings, self.redis, self.deployment)

    def close(self) -> None:
        self.redis.close()
        self.broker.close()
        self.app.close()
        self.db.client.close()

    # ------------------------------------------------------------------------------------------------------- given

    def beat(self, *listeners: str, seq: int = 0) -> None:
        """Listeners that live, and say what they have received."""
        for name in listeners:
            self.presence.beat(Beat(node=f"{name}@test", listener=name, pid=1, received_seq=seq))

    def accept(
        self, *keys: str, digest: str = "1d", at: datetime | None = None, types: Mapping[str, str] | None = None, alone: bool = False
    ) -> str:
        """A batch in the inbox, of type ``t`` where ``types`` says nothing else. Returns its id.

        Args:
            keys: of its events.
            digest: of all of them.
            at: when it was accepted; by default now.
            types: of events by key.
            alone: do not note its size, so that it travels alone.
        """
        batch = new_batch_id()
        entries = [entry(key, digest, (types or {}).get(key, "t")) for key in keys]
        document = inbox_document(batch, entries, door="test", accepted_at=at or utc_now())
        if alone:
            del document["bytes"]
        self.inbox.write([document])
        return batch

    def announced(self, batch: str, *, size: int | None = None) -> dict[str, Any]:
        """What a broadcaster says about a batch in the inbox; it travels alone where no size is given."""
        [(found, events)] = self.inbox.entries_of([batch]).items()
        return announcement(found, events, utc_now(), size=size)

    def commit(self, *keys: str, digest: str = "1d") -> None:
        """Events in the ledger."""
        self.ledger.insert(
            [{"_id": key, "v": 1, "digest": digest, "type": "t", "body": {}, "listener": "l", "claim_id": "c", "token": 1} for key in keys]
        )

    # -------------------------------------------------------------------------------------------------------- then

    def queue(self, name: str) -> list[Sent]:
        """What waits in a queue, oldest first."""
        return [_sent(raw) for raw in reversed(self.broker.lrange(name, 0, -1))]

    def of(self, listener: str) -> list[Sent]:
        """What waits for a listener."""
        return self.queue(queue_of(listener))

    def head(self, batch: str) -> dict[str, Any] | None:
        """A batch's head, or None when it is gone."""
        return self.db["inbox"].with_options(read_concern=ReadConcern("local")).find_one({"_id": batch}, {"events": 0})


def entry(key: str, digest: str = "1d", kind: str = "t", *, kib: int = 0) -> Entry:
    """An event as the stores hold it, with a text of ``kib`` KiB as data."""
    body = {"source": "test", "id": key} | ({"data": "x" * 1024 * kib} if kib else {})
    return Entry(key, digest, kind, RawBSONDocument(bson.encode(body)))


def keys_of(sent: Iterable[Sent]) -> list[list[str]]:
    """The keys of each message."""
    return [message.delivery.keys for message in sent]


@contextmanager
def place_of(settings: Settings) -> Iterator[Place]:
    """A place, closed afterwards."""
    place = Place(settings)
    try:
        yield place
    finally:
        place.close()


def _sent(raw: bytes) -> Sent:
    message = json.loads(raw)
    args, _, _ = json.loads(base64.b64decode(message["body"]))
    headers = message["headers"]
    return Sent(headers["id"], headers["task"], headers["argsrepr"], read_delivery(args[0]))
