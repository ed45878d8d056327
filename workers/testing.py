"""For users' tests: run one handler on one event, on a real MongoDB, as a listener would.

    def test_marks_an_order_as_paid():
        done = deliver(mark_paid, {"type": "order.paid", "id": "1", "data": {"order": 42}})
        assert done.outcome == "won"
        assert done.db.orders.find_one({"_id": 42})["paid"]

Without URLs, embedded servers (the extra ``embedded``) are started once in a process and stopped at its end.
"""

import atexit
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pymongo
from pymongo import MongoClient
from pymongo.database import Database

from app.embedded.servers import EmbeddedServers
from app.events.parsing import EventParser
from app.messages import announcement, delivery, read_delivery
from app.settings import Settings, database_of, load_settings
from app.stores import mongo
from app.stores.meta import deployment_id
from app.stores.mongo import Document
from app.stores.records import entry_of, inbox_document, new_batch_id, utc_now
from workers.handlers import Function, Handler, Registry, registry
from workers.pipeline import process
from workers.runtime import Runtime

_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What became of a delivery.

    Attributes:
        outcome: ``won`` (committed now), ``skipped`` (it had been before), ``failed`` (see ``failure``), ``left``.
        db: the database, to look at what the handler wrote; its client is that of all deliveries to the server, and stays
            open until the end of the process.
        key: the event's key.
        result: what the handler returned, as the ledger keeps it.
        failure: the document in ``failures``, or None.
        mongo_url, redis_url: where it happened; give them to the next ``deliver`` to go on in the same database.
    """

    outcome: Literal["won", "skipped", "failed", "left"]
    db: Database[Document]
    key: str
    result: Any
    failure: Document | None
    mongo_url: str
    redis_url: str


def deliver(
    handler: Function, event: Mapping[str, Any], *, mongo_url: str | None = None, redis_url: str | None = None, policies: Path | None = None
) -> Delivered:
    """Accept ``event``, and process it by ``handler`` alone.

    Args:
        handler: a function declared with ``@handler``, or any function of event and context (then transactional).
        event: a plain event: ``type``, ``data``, and what else the door takes; without an id it gets one.
        mongo_url: a replica set, with the database's name; by default a fresh database on an embedded one.
        redis_url: for the claim; by default an embedded one.
        policies: a policy file; by default ``policies.toml`` of the working folder, as for a listener.

    Raises:
        InvalidEvent: a door would refuse the event.
        ServerStartError: the embedded servers cannot start.
    """
    settings = _settings(mongo_url, redis_url, policies)
    declared = next((h for h in registry if h.function is handler), None)
    handlers = Registry()
    pattern = declared.pattern if declared else str(event.get("type"))
    handlers.add(Handler(name="under test", pattern=pattern, function=handler, at_least_once=bool(declared and declared.at_least_once)))
    with closing(Runtime.build(settings, "listener-1", handlers=handlers)) as runtime:
        return _delivered(runtime, event)


def _delivered(runtime: Runtime, event: Mapping[str, Any]) -> Delivered:
    settings = runtime.settings
    (parsed,) = EventParser(runtime.policies, settings).values([dict(event)], idempotency_key=secrets.token_hex(8))
    batch, now = new_batch_id(), utc_now()
    runtime.inbox.write([inbox_document(batch, [entry_of(parsed)], door="test", accepted_at=now)])
    announced = announcement(batch, [(parsed.key, parsed.digest, parsed.type)], now)
    message = delivery([announced], deployment=deployment_id(runtime.db), seq=0, forwards=1)
    tally = process(runtime, read_delivery(message))
    committed = runtime.ledger.get(parsed.key) or {}
    return Delivered(
        outcome="won" if tally.won else "failed" if tally.failed else "skipped" if tally.skipped else "left",
        db=_database(settings),
        key=parsed.key,
        result=committed.get("result"),
        failure=next((f for f in runtime.failures.of_key(parsed.key) if f["digest"] == parsed.digest), None),
        mongo_url=settings.mongo_url,
        redis_url=settings.redis_url,
    )


def _database(settings: Settings) -> Database[Document]:
    server = urlsplit(settings.mongo_url)._replace(path="/").geturl()
    if server not in _clients:
        client = _clients[server] = mongo.connect(settings, role="test").client
        atexit.register(_close, client)
    return _clients[server][database_of(settings.mongo_url)]


_clients: dict[str, MongoClient[Document]] = {}
"""By server."""


def _close(client: MongoClient[Document]) -> None:
    with pymongo.timeout(_CLOSE_S):  # the server may have gone
        client.close()


def _settings(mongo_url: str | None, redis_url: str | None, policies: Path | None) -> Settings:
    redis = redis_url or _embedded().valkey.url(0)
    url = mongo_url or _embedded().mongo.url(f"deliver_{secrets.token_hex(4)}")
    return load_settings({}, redis_url=redis, broker_url=redis, mongo_url=url, policies=policies)


@lru_cache(maxsize=1)
def _embedded() -> EmbeddedServers:
    home = Path(tempfile.mkdtemp(prefix="dedup-deliver-"))
    servers = EmbeddedServers(home)
    servers.start()

    def stop() -> None:
        servers.kill()
        shutil.rmtree(home, ignore_errors=True)

    atexit.register(stop)
    return servers
