"""The whole pipeline in histories that Hypothesis makes up, on real Valkey and MongoDB.

Two to four listeners are stepped from store call to store call, in any order. In between, listeners crash in the middle of what
they do, replies are lost, servers are away, leases run out, the clock of Redis jumps, Redis loses everything or goes back to an
older state, the broker loses or repeats deliveries, and a sweeper does what the real one does. Events come with other content
under known keys; handlers raise a few times; each handled event counts an effect, and one account that they all share. An operator
has events processed again.

Held after every step: G1, an accepted event is in the inbox, in the ledger or in failures.
Held at the end, when everybody has been let go on until nothing is left to do:
* G1: nothing is in the inbox, every accepted (key, digest) is committed or quarantined;
* G2, G3: one effect per committed key, and one for each time that an operator had it processed again, none else; the account says the same;
* G5: no event is dead, attempts are no more than what handlers raised;
* G6: of several contents of a key one stands, the others are conflicts with it.

``DEDUP_HYPOTHESIS=thorough`` searches for longer.
"""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pymongo import MongoClient
from pymongo.read_concern import ReadConcern
from redis import Redis

from app.claims.store import ClaimStore
from app.errors import TransientError
from app.messages import Delivery
from app.reprocessing import ReprocessingRefused, reprocess
from app.settings import Settings
from app.stores.failures import Failures
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.progress import finished
from app.stores.records import inbox_document, new_batch_id, utc_now
from broadcaster.sweeper.lookup import forget_refuted, in_no_hands, look
from broadcaster.sweeper.retries import Retries
from tests.support.pipelines import Plant, entry
from tests.support.profiles import THOROUGH, machine_settings
from tests.support.stepping import Stepper, labelled
from workers.runtime import Runtime

HANDLED, STORED = "handled", "stored"
KEYS = {"h0": HANDLED, "h1": HANDLED, "h2": HANDLED, "h3": HANDLED, "s0": STORED, "s1": STORED}
MOST_LISTENERS = 4
QUIET_ROUNDS = 60
"""Deliveries, retries and takeovers that the longest history may need to come to rest."""

BATCHES = st.dictionaries(st.sampled_from(sorted(KEYS)), st.sampled_from(["d1", "d1", "d1", "d2"]), min_size=1, max_size=4)
"""Events of a batch: digests by key."""

_numbers = itertools.count(1)


@dataclass(kw_only=True)
class World:
    """What all histories share: servers, clients, settings."""

    settings: Settings
    mongo: MongoClient[dict[str, Any]]
    redis: Redis
    raw_redis: Redis
    bases: list[Runtime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.db = self.mongo.get_default_database()
        Ledger(self.db).ensure_indexes()
        Failures(self.db).ensure_indexes()
        for name in ("inbox", "effects"):
            self.db.create_collection(name)
        self.bases = [Runtime.build(self.settings, f"listener-{i + 1}") for i in range(MOST_LISTENERS)]

    def empty(self) -> None:
        """Nothing of the last history is left."""
        self.redis.flushdb()
        for name in ("inbox", "events", "failures", "effects"):
            self.db[name].delete_many({})


class History(RuleBasedStateMachine):
    """One history of a deployment. What is drawn never depends on what the servers did, or histories could not be repeated."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.db = world.db
        self.deployment = f"m{next(_numbers)}"
        self.claims = ClaimStore.of(world.settings, world.raw_redis, self.deployment)
        self.fate = Plant(settings=world.settings, db=world.db, redis=world.redis, claims=self.claims)
        self.inbox, self.ledger, self.failures = Inbox(self.db), Ledger(self.db), Failures(self.db)
        self.retries = Retries(world.settings, self.failures, self.ledger, self.claims)
        self.accepted: set[tuple[str, str]] = set()
        self.queues: list[list[Delivery]] = []
        self.recovery: list[Delivery] = []
        self.listeners: list[Stepper] = []
        self.lives: list[Stepper] = []
        self.raises_left: Counter[str] = Counter()
        self.raised: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.dump: dict[str, tuple[str, int]] | None = None
        self.trace: list[str] = []
        world.empty()

    # ------------------------------------------------------------------------------------------------------------- beginning

    @initialize(
        listeners=st.integers(2, MOST_LISTENERS),
        raising=st.dictionaries(st.sampled_from(["h0", "h1"]), st.integers(1, 3), max_size=2),
        batches=st.lists(BATCHES, min_size=1, max_size=3),
    )
    def begin(self, listeners, raising, batches):
        self.raises_left = Counter(raising)
        for base in self.world.bases[:listeners]:
            self.queues.append([])
            self.listeners.append(self._life(base))
        for batch in batches:
            self.accept(batch, copies=True)

    def _life(self, base: Runtime) -> Stepper:
        made = Stepper(base, self.deployment, self._handle, HANDLED)
        self.lives.append(made)
        return made

    def _handle(self, stepper: Stepper, event: Any, context: Any) -> None:
        def effects() -> None:
            for name in (event.key, "account"):
                context.db["effects"].update_one({"_id": name}, {"$inc": {"n": 1}}, upsert=True)

        stepper.call("handler", effects, lambda: labelled("TransientTransactionError"))
        if self.raises_left[event.key] > 0:
            self.raises_left[event.key] -= 1
            self.raised[event.key] += 1
            raise ValueError("as the history wants")

    # ------------------------------------------------------------------------------------------------- the door and the broker

    @rule(events=BATCHES, copies=st.booleans())
    def accept(self, events, copies):
        """A batch comes in; every listener gets a copy, or the bridge is away and nobody does."""
        entries = [entry(key, digest, type=KEYS[key]) for key, digest in events.items()]
        batch = new_batch_id()
        self.inbox.write([inbox_document(batch, entries, door="test", accepted_at=utc_now())])
        self.accepted |= set(events.items())
        if copies:
            message = self.fate.message(entries, batch=batch, deployment=self.deployment)
            self.inbox.mark_forwarded([(batch, 1)])
            for queue in self.queues:
                queue.append(message)

    @rule(again=st.booleans(), what=st.integers(0, 7), whom=st.integers(0, MOST_LISTENERS - 1))
    def broker(self, again, what, whom):
        """It loses all its messages; or it delivers again, to another listener, what somebody works on or has died with."""
        doing = [one.doing for one in self.lives if one.doing is not None]
        if again and doing:
            self.queues[whom % len(self.queues)].append(doing[what % len(doing)])
        elif not again:
            for queue in (*self.queues, self.recovery):
                queue.clear()

    # --------------------------------------------------------------------------------------------------------------- listeners

    @rule(
        who=st.integers(0, MOST_LISTENERS - 1),
        calls=st.integers(1, 15),
        then=st.sampled_from(["go", "go", "go", "lose", "away", "crash", "renew"]),
    )
    def run(self, who, calls, then):
        """A listener goes on by some calls; an idle one takes what waits for it.

        Then it pauses, or loses the reply to its next call, or finds the server away, or crashes, or its claims are renewed.
        """
        who %= len(self.listeners)
        for _ in range(calls):
            if not self._advance(who):
                return
        one = self.listeners[who]
        if one.at is None:
            return
        if then == "renew":
            one.renew()
        else:
            self._step(one, then)

    def _advance(self, who: int) -> bool:
        one = self.listeners[who]
        if one.crashed:
            return False
        if one.at is None:
            queue = self.queues[who] or self.recovery
            if not queue:
                return False
            one.begin(queue.pop(0))
        else:
            self._step(one, "go")
        return True

    def _step(self, one: Stepper, command: str) -> None:
        self.trace.append(f"{one.name}: {command} {one.at}")
        one.step(command)

    @rule()
    def restart_the_crashed(self):
        self.listeners = [self._life(base) if one.crashed else one for one, base in zip(self.listeners, self.world.bases, strict=False)]

    # ----------------------------------------------------------------------------------------------------------------- servers

    @rule(what=st.sampled_from(["loses everything", "is dumped", "goes back to its dump", "has its clock turned back"]))
    def redis(self, what):
        redis = self.world.redis
        if what == "loses everything":
            redis.flushdb()
        elif what == "is dumped":
            self.dump = {name: (redis.get(name), redis.pttl(name)) for name in redis.keys("dedup:{*}:[^=]*")}
        elif what == "goes back to its dump" and self.dump is not None:
            redis.flushdb()
            for name, (value, pttl) in self.dump.items():
                redis.set(name, value, px=max(pttl, 1))
        elif what == "has its clock turned back":
            self.dump = None  # of another time
            self.fate.turn_clock_back()

    @rule(what=st.sampled_from(["leases", "leases", "pauses of failures", "transactions of the dead"]))
    def time_is_over_for(self, what):
        if what == "leases":
            self.fate.expire_leases()
        elif what == "pauses of failures":
            self.fate.make_due()
        else:
            self._end_transactions_of_the_dead()

    def _end_transactions_of_the_dead(self) -> None:
        dead = [session for one in self.lives if one.crashed for session in one.sessions if session.in_transaction]
        if dead:
            self.world.mongo.admin.command("killSessions", [session.session_id for session in dead])

    # ----------------------------------------------------------------------------------------------------------------- sweeper

    @rule()
    def sweep(self):
        """Remove finished batches, forget refuted marks, send again what is unfinished and in no hands, send due failures."""
        heads = list(self.db["inbox"].find())
        for head in heads:
            pairs = [(e["key"], e["digest"]) for e in head["events"]]
            done = finished(pairs, ledger=self.ledger, failures=self.failures)
            rest = [pair for pair in pairs if pair not in done]
            claimed = look(self.claims, rest)
            late, _ = forget_refuted(self.claims, [p for p in rest if p in claimed.done], self._finished)
            rest = [pair for pair in rest if pair not in late]
            if not rest:
                self.inbox.remove([head["_id"]])
                continue
            again = set(in_no_hands(rest, claimed))
            if again:
                entries = [entry(k, d, type=KEYS[k]) for k, d in pairs if (k, d) in again]
                forwards = head["forwards"] + 1
                message = self.fate.message(entries, batch=head["_id"], forwards=forwards, deployment=self.deployment)
                self.inbox.mark_forwarded([(head["_id"], 0)])
                self.recovery.append(message)
        due = self.retries.due()
        for group in due.groups:
            self.recovery.append(self.fate.read(group.outgoing.message))
        self.retries.note_sent(due.groups)
        self.retries.remove_refuted()

    def _finished(self, pairs):
        return finished(pairs, ledger=self.ledger, failures=self.failures)

    # ---------------------------------------------------------------------------------------------------------------- operator

    @rule(key=st.sampled_from(sorted(KEYS)))
    def process_again(self, key):
        """An operator has a processed event processed again; refused where it is not, and where somebody's transaction holds it."""
        try:
            reprocess(self.db, key, by="an operator", reason="as the history wants")
        except (ReprocessingRefused, TransientError) as error:
            self.trace.append(f"not again {key}: {type(error).__name__}")
        else:
            self.again[key] += 1
            self.trace.append(f"again {key}")

    # -------------------------------------------------------------------------------------------------------------- guarantees

    @invariant()
    def nothing_accepted_is_lost(self):
        """G1"""
        local = {"read_concern": ReadConcern("local")}
        waiting = {(e["key"], e["digest"]) for d in self.db.get_collection("inbox", **local).find() for e in d["events"]}
        done = self._finished(self.accepted - waiting) if self.accepted - waiting else set()
        assert self.accepted - waiting <= done, self._told("lost")

    @invariant()
    def attempts_are_what_handlers_raised(self):
        """G5"""
        for failure in self.db["failures"].find():
            assert failure["attempts"] <= self.raised[failure["key"]], self._told(f"attempts of {failure}")
            assert failure["state"] != "dead", self._told("nothing here is deadly")
            assert failure["starts"] >= 0, self._told(f"starts of {failure}")

    def teardown(self):
        try:
            if self.listeners:
                self._come_to_rest()
                self._check_the_end()
        finally:
            for one in self.lives:
                one.close()
            self._end_all_transactions()
            note("\n".join(self.trace))

    def _come_to_rest(self) -> None:
        """Everybody goes on, nothing befalls anybody any more, and the sweeper sweeps, until there is nothing to do."""
        self.restart_the_crashed()
        self._end_transactions_of_the_dead()
        for _ in range(QUIET_ROUNDS):
            while sum(self._advance(who) for who in range(len(self.listeners))):
                pass
            self._end_all_transactions()
            self.nothing_accepted_is_lost()
            self.attempts_are_what_handlers_raised()
            if not self.db["inbox"].count_documents({}) and not self.db["failures"].count_documents({"state": "retrying"}):
                return
            self.fate.expire_leases()
            self.fate.make_due()
            self.sweep()
        raise AssertionError(self._told("it does not come to rest"))

    def _end_all_transactions(self) -> None:
        """A commit that never reached MongoDB leaves a transaction open, until its lifetime is over."""
        sessions = [session.session_id for one in self.lives for session in one.sessions if session._server_session is not None]
        ended = self.world.mongo.admin.aggregate([{"$currentOp": {"idleSessions": True, "allUsers": True}}])
        idle = [{"id": op["lsid"]["id"]} for op in ended if "transaction" in op and op.get("ns", "").startswith(self.db.name)]
        if sessions or idle:
            self.world.mongo.admin.command("killSessions", [*sessions, *idle])

    def _check_the_end(self) -> None:
        stands = {d["_id"]: d["digest"] for d in self.db["events"].find()}
        failures = {(d["key"], d["digest"]): d for d in self.db["failures"].find()}
        effects = {d["_id"]: d["n"] for d in self.db["effects"].find()}
        handled = {key for key in stands if KEYS[key] == HANDLED}
        assert set(stands) == {key for key, _ in self.accepted}, self._told("G6: one content of each key stands")
        assert set(stands.items()) <= self.accepted
        rest = self.accepted - set(stands.items())
        assert {pair: d["state"] for pair, d in failures.items()} == dict.fromkeys(rest, "conflict"), self._told("G1, G6")
        for (key, _), failure in failures.items():
            assert failure["other_digest"] == stands[key], self._told("G6")
        account = effects.pop("account", 0)
        assert effects == {key: 1 + self.again[key] for key in handled}, self._told(f"G2, G3: {effects} {self.again}")
        assert account == sum(effects.values()), self._told("G2, G3: the account")
        commits = {d["_id"]: d.get("recommits", 0) for d in self.db["events"].find({"reopened": {"$exists": False}})}
        assert commits == {key: self.again[key] for key in stands}, self._told(f"G2: {commits} {self.again}")

    def _told(self, what: str) -> str:
        failures = [{k: v for k, v in d.items() if k not in {"body", "error"}} for d in self.db["failures"].find()]
        ledger = [{k: d[k] for k in ("_id", "digest", "listener", "token")} for d in self.db["events"].find()]
        claims = {name: self.world.redis.get(name) for name in self.world.redis.keys("dedup:{*}:[^=]*")}
        inbox = [(d["_id"], d["forwards"], [(e["key"], e["digest"]) for e in d["events"]]) for d in self.db["inbox"].find()]
        return f"{what}\naccepted {self.accepted}\ninbox {inbox}\nfailures {failures}\nledger {ledger}\nclaims {claims}"


@pytest.fixture
def silence() -> Iterator[None]:
    """Thousands of histories need no log."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def world(make_settings, monkeypatch, silence) -> Iterator[World]:
    settings = make_settings(
        lease_ms=600_000,  # nothing runs out by itself
        visibility_timeout_s=3_600,
        max_handler_s=600.0,
        transaction_lifetime_s=601.0,
        max_attempts=1_000,
        backoff_ms=1_000,
        backoff_max_ms=1_000,
    )
    monkeypatch.setattr("workers.committing.time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _s: None))
    monkeypatch.setattr("workers.transaction.COMMIT_RETRY_S", 0.0)
    monkeypatch.setattr("app.reprocessing._LONGEST_S", 0.5)
    with (
        MongoClient(settings.mongo_url, tz_aware=True) as mongo,
        Redis.from_url(settings.redis_url, decode_responses=True) as redis,
        Redis.from_url(settings.redis_url) as raw,
    ):
        made = World(settings=settings, mongo=mongo, redis=redis, raw_redis=raw)
        yield made
        for base in made.bases:
            base.close()


@pytest.mark.timeout(36_000 if THOROUGH else 600)
def test_histories(world):
    """G1, G2, G3, G5, G6"""
    run_state_machine_as_test(lambda: History(world), settings=machine_settings(examples=150, steps=40))
