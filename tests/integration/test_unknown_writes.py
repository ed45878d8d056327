"""MongoDB does not say whether a write will last: never taken for done, nobody's attempt, found in the ledger when it did.

A mongod with test commands is told how to fail.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from redis import Redis

from app.embedded.servers import EmbeddedServers
from app.errors import CommitUnknown, StoreUnavailable
from app.stores.failures import Origin
from app.stores.mongo import end_transactions
from app.stores.records import inbox_document, new_batch_id, utc_now
from tests.support.pipelines import Plant, count_effect, entry, plant_on
from tests.support.servers import fresh_settings
from tests.support.waiting import eventually
from workers.pipeline import process

NOT_CONFIRMED = {"writeConcernError": {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting for replication timed out"}}
CUT = {"closeConnection": True}
ALWAYS = "alwaysOn"
ONCE = {"times": 1}


@pytest.fixture(scope="module")
def failing_servers(tmp_path_factory) -> Iterator[EmbeddedServers]:
    from tests.support.servers import TEST_DATABASES, require_servers

    require_servers()
    options = ("--setParameter", "enableTestCommands=1")
    with EmbeddedServers(tmp_path_factory.mktemp("failing"), databases=TEST_DATABASES, mongod_args=options) as servers:
        yield servers


@pytest.fixture
def plant(failing_servers, tmp_path) -> Iterator[Plant]:
    settings = fresh_settings(failing_servers, tmp_path, mongo_timeout_ms=3_000)
    with (
        MongoClient(settings.mongo_url, tz_aware=True) as mongo,
        Redis.from_url(settings.redis_url, decode_responses=True) as redis,
        plant_on(settings, mongo.get_default_database(), redis) as made,
    ):
        yield made


@contextmanager
def told_to_fail(plant: Plant, command: str | list[str], how: dict[str, Any], mode: Any) -> Iterator[None]:
    """These commands of listeners fail, until the end of the block."""
    data = {"failCommands": [command] if isinstance(command, str) else command, "appName": "dedup-listener-1"} | how
    plant.db.client.admin.command("configureFailPoint", "failCommand", mode=mode, data=data)
    try:
        yield
    finally:
        plant.db.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def count_async(event: Any, context: Any) -> None:
    """As :func:`count_effect`."""
    await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


def document_of(key: str) -> dict[str, Any]:
    return inbox_document(new_batch_id(), [entry(key)], door="test", accepted_at=utc_now())


def options_of_inbox(plant: Plant) -> dict[str, Any]:
    """What its collection was made with."""
    (there,) = plant.db.list_collections(filter={"name": "inbox"})
    return there["options"]


@pytest.fixture
def without_inbox(plant) -> Plant:
    """A plant whose inbox nobody has made yet."""
    plant.db["inbox"].drop()
    return plant


@pytest.mark.parametrize("taken", [False, True], ids=["free", "one-key-taken"])
def test_a_stored_batch_that_no_majority_confirms_is_left_and_found_later(plant, taken):
    """G1: never taken for done; G2: the second delivery finds what lasted."""
    listener = plant.listener()
    message = plant.accept(entry("a"), entry("b"))
    if taken:
        listener.ledger.look = lambda _keys: {}  # taken between the check and the insert
        plant.db["events"].insert_one({"_id": "b", "v": 1, "digest": "d1", "listener": "somebody", "claim_id": "another"})

    with told_to_fail(plant, "insert", NOT_CONFIRMED, ALWAYS):
        tally = process(listener, message)

    assert str(tally) == "left 2"
    assert plant.claim_states() == {}
    assert plant.inbox.size() == 1
    assert str(process(plant.listener("listener-2"), message)).startswith("skipped 2 (done")
    assert plant.failures() == {}


@pytest.mark.parametrize("how", [NOT_CONFIRMED, CUT], ids=["not-confirmed", "connection-cut"])
@pytest.mark.parametrize("events", [1, 3])
def test_a_commit_that_got_no_clear_answer_once_is_repeated(plant, how, events):
    listener = plant.listener("listener-1", count_effect)
    message = plant.accept(*(entry(f"k{i}") for i in range(events)))

    with told_to_fail(plant, "commitTransaction", how, ONCE):
        tally = process(listener, message)

    assert str(tally) == f"won {events}"
    assert plant.effects() == {f"k{i}": 1 for i in range(events)}


def test_a_commit_that_is_never_confirmed_is_looked_up(plant, monkeypatch):
    """G2: it did last, and the ledger says whose it is."""
    monkeypatch.setattr("workers.transaction.COMMIT_RETRY_S", 0.2)
    listener = plant.listener("listener-1", count_effect)
    message = plant.accept(entry("a"))

    with told_to_fail(plant, "commitTransaction", NOT_CONFIRMED, ALWAYS):
        tally = process(listener, message)

    assert str(tally) == "won 1"
    assert plant.effects() == {"a": 1}


def test_a_commit_that_never_arrives_is_left_and_done_again(plant, monkeypatch):
    """G1, G5"""
    monkeypatch.setattr("workers.transaction.COMMIT_RETRY_S", 0.2)
    listener = plant.listener("listener-1", count_effect)
    message = plant.accept(entry("a"))

    with told_to_fail(plant, "commitTransaction", CUT, ALWAYS):
        tally = process(listener, message)

    assert str(tally) == "left 1"
    assert plant.failures() == {}
    assert str(process(listener, message)) == "won 1"
    assert plant.effects() == {"a": 1}


def test_a_failure_that_no_majority_confirms_is_left(plant):
    """G1: the batch stays until the failure is known to be stored."""
    listener = plant.listener("listener-1", failing)
    message = plant.accept(entry("a"))

    with told_to_fail(plant, "findAndModify", NOT_CONFIRMED, ALWAYS):
        tally = process(listener, message)

    assert str(tally) == "left 1"
    assert plant.inbox.size() == 1
    assert plant.claim_states() == {}


def test_a_batch_that_a_fail_over_took_back_is_not_taken_for_stored(plant, monkeypatch):
    """G1: its first write found no majority; what confirms it must see it, or it is written again."""
    inbox = plant.listener().inbox
    document = document_of("a")
    confirm = inbox._confirm

    def confirm_after_rollback(batch_ids: list[str]) -> None:
        plant.db["inbox"].delete_many({"_id": {"$in": batch_ids}})  # what a new primary knows nothing of
        confirm(batch_ids)

    monkeypatch.setattr(inbox, "_confirm", confirm_after_rollback)
    with told_to_fail(plant, "insert", NOT_CONFIRMED, ONCE), pytest.raises(CommitUnknown):
        inbox.write([document])
    with pytest.raises(CommitUnknown):
        inbox.write([document])  # it is there when it is written, and not when it is confirmed
    inbox.write([document])
    assert plant.inbox.size() == 1


def test_the_first_write_makes_the_inbox_with_large_pages(without_inbox):
    """ADR 20."""
    without_inbox.listener().inbox.write([document_of("a")])
    assert options_of_inbox(without_inbox)["storageEngine"]["wiredTiger"]["configString"] == "memory_page_max=30m"


def test_an_inbox_that_is_there_is_left_as_it_is(plant):
    inbox = plant.listener().inbox
    inbox.write([document_of("a")])
    inbox.write([document_of("b")])
    assert options_of_inbox(plant) == {}
    assert inbox.size() == 2


def test_a_mongodb_that_refuses_the_option_makes_the_inbox_as_it_does(without_inbox):
    inbox = without_inbox.listener().inbox
    with told_to_fail(without_inbox, "create", {"errorCode": 72}, ALWAYS):  # InvalidOptions
        inbox.write([document_of("a")])
    assert inbox.size() == 1


def test_an_inbox_that_cannot_be_made_now_is_made_by_the_next_write(without_inbox):
    """G1: the events are not taken for stored, and their door says so."""
    inbox = without_inbox.listener().inbox
    with told_to_fail(without_inbox, "create", CUT, ALWAYS), pytest.raises(StoreUnavailable):
        inbox.write([document_of("a")])
    inbox.write([document_of("b")])
    assert "storageEngine" in options_of_inbox(without_inbox)
    assert inbox.size() == 1


def test_a_final_failure_that_a_fail_over_took_back_is_not_taken_for_stored(plant, monkeypatch):
    """G1: else its batch would be removed, and the event were nowhere."""
    failures = plant.listener().failures
    final = (entry("a"), Origin(batch=None, accepted_at=utc_now(), listener="l", token=0), "stale", {"reason": "old"})
    finalize = failures._finalize

    def finalize_after_rollback(*arguments: Any) -> None:
        plant.db["failures"].delete_many({})
        finalize(*arguments)

    monkeypatch.setattr(failures, "_finalize", finalize_after_rollback)
    failures.record_final([final])
    with pytest.raises(StoreUnavailable):
        failures.record_final([final])
    failures.record_final([final])
    assert plant.db["failures"].count_documents({}) == 1


def failing(_event: Any, _context: Any) -> None:
    raise ValueError("no")


def test_a_lost_connection_in_a_handler_s_own_call_is_no_attempt(plant):
    """G5: the transaction is begun again."""
    listener = plant.listener("listener-1", count_effect)
    message = plant.accept(entry("a"))

    with told_to_fail(plant, "update", CUT, ONCE):
        tally = process(listener, message)

    assert str(tally) == "won 1"
    assert plant.effects() == {"a": 1}
    assert plant.failures() == {}


SERVERS_OWN = {
    "MaxTimeMSExpired": 50,
    "LockBusy": 46,
    "NetworkInterfaceExceededTimeLimit": 202,
    "TransactionTooOld": 225,
    "TransactionExceededLifetimeLimitSeconds": 290,
    "a code that nobody knows": 384,
    "Interrupted": 11601,
    "OutOfDiskSpace": 14031,
}


@pytest.mark.parametrize("code", SERVERS_OWN.values(), ids=SERVERS_OWN)
@pytest.mark.parametrize("handler", [count_effect, count_async, None], ids=["plain", "async", "none"])
def test_the_servers_own_trouble_at_our_write_is_nobody_s_attempt(plant, code, handler):
    """G5: only what names the document counts as the event's."""
    listener = plant.listener("listener-1", *([handler] if handler else []))
    delivery = plant.accept(entry("a"))
    with told_to_fail(plant, "insert", {"errorCode": code}, ONCE):
        process(listener, delivery)
    assert plant.failures() == {}
    process(listener, delivery)
    assert plant.ledger() == {"a": "d1"}
    assert plant.effects() == ({"a": 1} if handler else {})


def test_a_command_and_its_abort_without_answers_are_no_commit(plant):
    """G2: an ``async def`` handler that swallows what its lost command raised is run again; its event is not committed without its write."""

    async def handler(event, context):
        with suppress(PyMongoError):
            await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)

    listener = plant.listener("listener-1", handler)
    delivery = plant.accept(entry("a"))
    with told_to_fail(plant, ["update", "abortTransaction"], CUT, {"times": 6}):
        process(listener, delivery)
    assert plant.ledger().keys() == plant.effects().keys()
    plant.make_due()
    process(listener, plant.retry(entry("a")) if plant.failures() else delivery)
    assert (plant.ledger(), plant.effects()) == ({"a": "d1"}, {"a": 1})


def test_a_session_killed_amid_a_command_is_no_attempt(plant):
    """G5: a takeover kills its predecessor's session, which the driver may use for others by then."""
    plant.db["big"].insert_one({"_id": 1})
    entered = threading.Event()

    def handler(event, context):
        if not entered.is_set():
            entered.set()
            list(context.db["big"].find({"$where": "sleep(3000); return true"}))
        count_effect(event, context)

    run = plant.start(plant.listener("listener-1", handler), plant.accept(entry("a")))
    assert entered.wait(10)
    eventually(lambda: list(plant.db.client.admin.aggregate([{"$currentOp": {}}, {"$match": {"command.find": "big"}}])), 10)
    [found] = plant.claims.inspect(["a"])
    end_transactions(plant.db, {found.session})
    run.result(20)
    assert plant.failures() == {}
    assert plant.effects() == {"a": 1}
