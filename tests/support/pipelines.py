"""Listeners in this process, on real stores: what tests of ``workers.pipeline`` stand on."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from bson.binary import Binary
from pymongo import MongoClient
from pymongo.database import Database
from redis import Redis

from app.claims.store import ClaimStore, new_claim_id
from app.events.event import Event
from app.messages import Delivery, announcement, delivery, read_delivery
from app.settings import Settings
from app.stores.failures import Failures, Origin
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.mongo import Document
from app.stores.progress import finished
from app.stores.records import Entry, entry_of, inbox_document, new_batch_id, utc_now
from workers.handlers import Context, Handler, Registry
from workers.pipeline import process
from workers.runtime import Runtime
from workers.tally import Tally

T = TypeVar("T")

TYPE = "order.placed"
HOUR_MS = 3_600_000


def entry(key: str, digest: str = "d1", *, type: str = TYPE, data: Any = None) -> Entry:
    """An event as the stores hold it."""
    return entry_of(Event(key=key, digest=digest, type=type, source="test", id=key, time=None, data=data or {"digest": digest}, extra={}))


def count_effect(event: Event, context: Context) -> None:
    """The usual handler: one countable effect per event; without ``session=``, as a user would write it."""
    context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


def raises(*errors: Exception | None) -> Callable[[Event, Context], None]:
    """A handler that has its effect, and then raises one error after the other; None and what comes behind the last: nothing."""
    rest = list(errors)

    def function(event: Event, context: Context) -> None:
        count_effect(event, context)
        error = rest.pop(0) if rest else None
        if error is not None:
            raise error

    return function


def always(error: Exception) -> Callable[[Event, Context], None]:
    """A handler that has its effect, and then raises this error each time."""

    def function(event: Event, context: Context) -> None:
        count_effect(event, context)
        raise error

    return function


@dataclass(slots=True, kw_only=True)
class Plant:
    """A deployment: its stores, its listeners, and hands that play door, sweeper and fate.

    Attributes:
        settings: of all listeners.
        db: the database.
        redis: strings decoded.
        claims: as somebody outside the listeners sees them.
    """

    settings: Settings
    db: Database[Document]
    redis: Redis
    claims: ClaimStore
    DEPLOYMENT: ClassVar[str] = "test"
    runtimes: list[Runtime] = field(default_factory=list)
    batches: dict[str, list[Entry]] = field(default_factory=dict)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    releases: list[Callable[[], None]] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------------------ listeners

    def listener(self, name: str = "listener-1", *handlers: Handler | Callable[..., Any], settings: Settings | None = None) -> Runtime:
        """A listener with these handlers; a bare function handles all events of ``TYPE``."""
        registry = Registry()
        for number, one in enumerate(handlers):
            registry.add(one if isinstance(one, Handler) else Handler(name=f"{name}-{number}", pattern=TYPE, function=one))
        runtime = Runtime.build(settings or self.settings, name, handlers=registry)
        self.runtimes.append(runtime)
        return runtime

    def elsewhere(self, function: Callable[[], T]) -> T:
        """Call a function in another thread: in a handler's own, the driver admits no client but the transaction's."""
        return self.threads.submit(function).result(30)

    def start(self, runtime: Runtime, message: Delivery) -> "Future[Tally]":
        """``process`` in a thread of its own."""
        return self.threads.submit(process, runtime, message)

    def gate(self) -> "Gate":
        """A place in a handler at which it waits; opened at the latest when the test ends."""
        made = Gate()
        self.releases.append(made.open)
        return made

    def close(self) -> None:
        """Let all threads end, close all clients."""
        for release in self.releases:
            release()
        self.threads.shutdown(wait=True, cancel_futures=True)
        for runtime in self.runtimes:
            runtime.close()

    # ----------------------------------------------------------------------------------------------------- door and sweeper

    def accept(self, *entries: Entry, forwards: int = 1, accepted_at: datetime | None = None) -> Delivery:
        """Store a batch, and hand it out for the first time."""
        batch = new_batch_id()
        at = accepted_at or utc_now()
        self.inbox.write([inbox_document(batch, entries, door="test", accepted_at=at)])
        self.batches[batch] = list(entries)
        return self.message(entries, batch=batch, forwards=forwards, accepted_at=at)

    def message(
        self,
        entries: Sequence[Entry],
        *,
        batch: str | None,
        forwards: int = 1,
        accepted_at: datetime | None = None,
        deployment: str = DEPLOYMENT,
    ) -> Delivery:
        """A task's message about these events."""
        announced = announcement(batch, [(e.key, e.digest, e.type) for e in entries], accepted_at or utc_now())
        return self.read(delivery([announced], deployment=deployment, seq=1, forwards=forwards))

    def accept_apart(self, *batches: Sequence[Entry], accepted_at: Sequence[datetime] = (), forwards: int = 1) -> Delivery:
        """Store several batches, and hand them out in one delivery."""
        names = [new_batch_id() for _ in batches]
        at = accepted_at or [utc_now()] * len(batches)
        named = list(zip(names, batches, at, strict=True))
        self.inbox.write([inbox_document(name, entries, door=f"door of {entries[0].key}", accepted_at=at) for name, entries, at in named])
        self.batches |= {name: list(entries) for name, entries, _ in named}
        announced = [announcement(name, [(e.key, e.digest, e.type) for e in entries], at) for name, entries, at in named]
        return self.read(delivery(announced, deployment=self.DEPLOYMENT, seq=1, forwards=forwards))

    @staticmethod
    def read(message: dict[str, Any]) -> Delivery:
        """A message as a listener reads it."""
        return read_delivery(message)

    def retry(self, *entries: Entry) -> Delivery:
        """A delivery of failures that are due now."""
        self.make_due()
        return self.message(entries, batch=None)

    def unfinished(self) -> set[tuple[str, str]]:
        """(key, digest) pairs of the inbox that are in neither the ledger nor the failures."""
        pairs = {(e["key"], e["digest"]) for d in self.db["inbox"].find() for e in d["events"]}
        return pairs - finished(pairs, ledger=Ledger(self.db), failures=Failures(self.db))

    @property
    def inbox(self) -> Inbox:
        """The inbox."""
        return Inbox(self.db)

    # ----------------------------------------------------------------------------------------------------------------- fate

    def expire_leases(self) -> None:
        """Let the lease of every claim run out now."""
        self._rewrite(deadline_ms=-HOUR_MS, token_us=0)

    def turn_clock_back(self) -> None:
        """The Redis server's clock goes an hour back: all that is stored lies in the future."""
        self._rewrite(deadline_ms=HOUR_MS, token_us=HOUR_MS * 1000)
        self.db["failures"].update_many({}, {"$inc": {"token": HOUR_MS * 1000}})

    def _rewrite(self, *, deadline_ms: int, token_us: int) -> None:
        for name in self.redis.keys("dedup:{*}:[^=]*"):
            parts = (self.redis.get(name) or "").split("|")
            if parts[0] == "P":
                parts[3], parts[4] = str(int(parts[3]) + token_us), str(int(parts[4]) + deadline_ms)
                self.redis.set(name, "|".join(parts), keepttl=True)

    def make_due(self) -> None:
        """Let the pause of every failure be over."""
        past = utc_now() - timedelta(hours=1)
        self.db["failures"].update_many({"state": "retrying"}, {"$set": {"due_at": past, "sent_until": None}})

    # -------------------------------------------------------------------------------------------------------------- results

    def ledger(self) -> dict[str, str]:
        """Committed digests by key."""
        return {d["_id"]: d["digest"] for d in self.db["events"].find()}

    def failures(self) -> dict[tuple[str, str], str]:
        """States of failures by (key, digest)."""
        return {(d["key"], d["digest"]): d["state"] for d in self.db["failures"].find()}

    def starts(self) -> dict[tuple[str, str], int]:
        """Solo runs that have not ended, by (key, digest)."""
        return {(d["key"], d["digest"]): d["starts"] for d in self.db["failures"].find()}

    def failure(self, key: str, digest: str = "d1") -> Document:
        """One failure's document."""
        found = self.db["failures"].find_one({"key": key, "digest": digest})
        assert found is not None, f"no failure of {key} with {digest}"
        return found

    def effects(self) -> dict[str, int]:
        """How often each key had its effect."""
        return {d["_id"]: d["n"] for d in self.db["effects"].find()}

    def claim_states(self) -> dict[str, str]:
        """``processing by listener-1``, ``done by listener-2`` by key."""
        keys = [name.partition("}:")[2] for name in self.redis.keys("dedup:{*}:[^=]*")]
        return {k: f"{f.state} by {f.owner}" for k, f in zip(keys, self.claims.inspect(keys), strict=True) if f is not None}


class Gate:
    """Where a handler waits until the test lets it go on."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()

    def pass_through(self) -> None:
        """Say that somebody is here, and wait, at most 30 s."""
        self._entered.set()
        assert self._open.wait(30), "nobody opened the gate"

    def wait_entered(self) -> None:
        """Wait until somebody is here."""
        assert self._entered.wait(10), "nobody came to the gate"

    def open(self) -> None:
        """Let all through, now and later."""
        self._open.set()


@contextmanager
def plant_on(settings: Settings, db: Database[Document], redis: Redis) -> Iterator[Plant]:
    """A plant that is closed at the end."""
    Ledger(db).ensure_indexes()
    Failures(db).ensure_indexes()
    for name in ("inbox", "effects"):
        db.create_collection(name)
    with Redis.from_url(settings.redis_url) as client:
        made = Plant(settings=settings, db=db, redis=redis, claims=ClaimStore.of(settings, client, Plant.DEPLOYMENT))
        try:
            yield made
        finally:
            made.close()


@contextmanager
def patient_plant(make_settings: Callable[..., Settings], overrides: dict[str, Any]) -> Iterator[Plant]:
    """A plant with clients of its own, where nothing that failed comes again by itself within a test, unless ``overrides`` say so."""
    settings = make_settings(**({"backoff_ms": 60_000, "backoff_max_ms": 60_000} | overrides))
    with (
        MongoClient(settings.mongo_url, tz_aware=True) as mongo,
        Redis.from_url(settings.redis_url, decode_responses=True) as redis,
        plant_on(settings, mongo.get_default_database(), redis) as made,
    ):
        yield made


# ----------------------------------------------------------------------------------------------------- somebody else's hands


def claim_by_hand(plant: Plant, key: str, digest: str = "d1", *, owner: str = "listener-9", session: str = "") -> str:
    """Somebody claims a key and does nothing. Returns the claim id."""
    claim_id = new_claim_id()
    [answer] = plant.claims.claim([key], [digest], claim_id=claim_id, owner=owner, lease_ms=60_000, sessions=[session])
    assert answer.outcome == "won"
    return claim_id


def commit_by_hand(plant: Plant, key: str, digest: str, **more: object) -> None:
    """Somebody else's commit."""
    plant.db["events"].insert_one({"_id": key, "v": 1, "digest": digest, "listener": "somebody", "claim_id": "another", **more})


def store_starts(plant: Plant, key: str, starts: int, *, digest: str = "d1") -> None:
    """A failure whose solo runs began ``starts`` times and never ended; due now."""
    failures = Failures(plant.db)
    origin = Origin(batch=None, accepted_at=utc_now(), listener="listener-8", token=1)
    failures.record_start(entry(key, digest), origin, due_ms=0)
    plant.db["failures"].update_one({"key": key, "digest": digest}, {"$set": {"starts": starts}})
    plant.make_due()


def end_all_transactions(plant: Plant) -> None:
    """What MongoDB does to transactions that live too long."""
    sessions = plant.db.client.admin.aggregate([{"$currentOp": {"idleSessions": True, "allUsers": True}}])
    lsids = [op["lsid"]["id"] for op in sessions if "transaction" in op and "lsid" in op]
    if lsids:
        plant.db.client.admin.command("killSessions", [{"id": Binary(bytes(lsid), 4)} for lsid in lsids])


def document_of(plant: Plant, message: Delivery) -> Document:
    """The inbox document of a batch that was accepted here, as it was then."""
    return inbox_document(message.batch, plant.batches[message.batch], door="test", accepted_at=message.batches[0].accepted_at)
