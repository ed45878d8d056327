"""Accepting inside the producer's own transaction, on a real replica set, with a bridge and a listener behind it."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

import app
from app import accept, accept_async
from app.embedded.servers import EmbeddedServers
from app.errors import InboxFull, InvalidEvent, StoreUnavailable
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.settings import Settings, database_of
from tests.support.servers import fresh_settings
from tests.support.system import Spawn, System, system_on
from tests.support.waiting import eventually
from workers.testing import deliver


@pytest.fixture
def client(settings: Settings) -> Iterator[MongoClient[dict[str, Any]]]:
    """The producer's own client, with options of its own."""
    with MongoClient(settings.mongo_url, w=1, readConcernLevel="local", serverSelectionTimeoutMS=5_000) as own:
        yield own


def database(client: MongoClient[dict[str, Any]], settings: Settings) -> Any:
    return client[database_of(settings.mongo_url)]


def event(id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "order.paid", "source": "shop", "id": id, "data": {"amount": 12}} | fields


def test_without_a_session_it_is_accepted_when_it_returns(client: MongoClient[dict[str, Any]], settings: Settings):
    db = database(client, settings)
    keys = accept([event("a"), event("b"), event("a")], db=db)
    assert keys == ["id~shop~a", "id~shop~b"]
    (batch,) = db.inbox.find()
    assert (batch["door"], [e["key"] for e in batch["events"]], len(batch["_id"])) == ("python", keys, 26)
    (same,) = EventParser(Policies.load(None, settings), settings).values([event("a")])
    assert batch["events"][0]["digest"] == same.digest


def test_events_are_refused_as_at_the_other_doors(client: MongoClient[dict[str, Any]], settings: Settings):
    db = database(client, settings)
    wrong: list[tuple[Any, int]] = [
        ([], 422),
        ({"type": "a"}, 422),
        ([event("a"), event("a", data=2)], 409),
        (event("a", data={1, 2}), 422),
        (event("a", data=2**63), 422),
        (event("a", data="x" * 300_000), 413),
        ([event(str(n)) for n in range(501)], 413),
        ("text", 422),
    ]
    for events, status in wrong:
        with pytest.raises(InvalidEvent) as caught:
            accept(events, db=db)
        assert caught.value.status == status
    assert db.inbox.count_documents({}) == 0


def test_the_policy_file_makes_the_keys(client: MongoClient[dict[str, Any]], make_settings: Callable[..., Settings], tmp_path: Path):
    (tmp_path / "policies.toml").write_text('[types."order.paid"]\nkey = ["data.amount"]\n')
    settings = make_settings()
    assert settings.policies
    assert accept(event("a"), db=database(client, settings), settings=settings) == ["type~order.paid~=12"]


def test_an_absent_mongodb_is_said(settings: Settings):
    with MongoClient("mongodb://127.0.0.1:9/x", serverSelectionTimeoutMS=100) as nowhere, pytest.raises(StoreUnavailable):
        accept(event("a"), db=nowhere["x"], settings=settings)


def test_g7_the_inbox_s_limits_hold_here_too(client: MongoClient[dict[str, Any]], make_settings: Callable[..., Settings]):
    """G7: the same word as at the doors, in a transaction and outside of one; the transaction is the producer's to abort."""
    settings = make_settings(inbox_max_batches=2)
    db = database(client, settings)
    db.create_collection("orders")
    numbers = iter(range(1_000))

    def refused(**options: Any) -> InboxFull | None:
        try:
            accept(event(str(next(numbers))), db=db, settings=settings, **options)
        except InboxFull as error:
            return error
        return None

    full = eventually(refused, 10)
    assert full.retry_after_s == 10
    assert "the inbox is full" in str(full)
    before = db.inbox.count_documents({})
    with client.start_session() as session:
        session.start_transaction()
        db.orders.insert_one({"_id": "kept out"}, session=session)
        with pytest.raises(InboxFull):
            accept(event("kept out"), db=db, session=session, settings=settings)
        session.abort_transaction()
    assert (db.orders.count_documents({}), db.inbox.count_documents({})) == (0, before)

    db.inbox.delete_many({})
    eventually(lambda: refused() is None, 10)


def test_the_limits_are_asked_outside_of_a_bound_transaction(client: MongoClient[dict[str, Any]], make_settings: Callable[..., Settings]):
    settings = make_settings(failures_max=1)
    db = database(client, settings)
    db.create_collection("inbox")
    with client.start_session() as session, session.bind(), session.start_transaction():
        accept(event("bound"), db=db, session=session, settings=settings)
    assert db.inbox.count_documents({}) == 1
    db.failures.insert_one({"_id": "k#d", "v": 1})

    def refused() -> bool:
        with client.start_session() as session, session.bind(), session.start_transaction():
            try:
                accept(event("bound"), db=db, session=session, settings=settings)
            except InboxFull as error:
                return "too many events have failed" in str(error)
        return False

    eventually(refused, 10)


@pytest.mark.fault
@pytest.mark.timeout(60)
def test_the_question_for_room_waits_for_no_majority(start_servers: Callable[..., EmbeddedServers], tmp_path: Path):
    """Without one, the producer's transaction goes on, and its commit will tell; a driver without time-outs would else wait here for ever."""
    servers = start_servers(mongo_nodes=3)
    settings = fresh_settings(servers, tmp_path)
    client: MongoClient[dict[str, Any]]
    with MongoClient(settings.mongo_url, serverSelectionTimeoutMS=5_000) as client:
        db = database(client, settings)
        db.create_collection("inbox")
        primary = servers.mongo.primary()
        others = [node for node in servers.mongo.nodes if node is not primary]
        for node in others:
            node.pause()
        db.orders.with_options(write_concern=WriteConcern(1)).insert_one({"_id": "of no majority"})
        with client.start_session() as session:
            session.start_transaction()
            accept(event("first"), db=db, session=session, settings=settings)
            for node in others:
                node.resume()
            session.commit_transaction()
        assert db.inbox.count_documents({}) == 1


def test_it_commits_and_rolls_back_with_the_producer(client: MongoClient[dict[str, Any]], settings: Settings):
    """G1: accepted exactly when the producer's transaction commits."""
    db = database(client, settings)
    db.orders.insert_one({"_id": "first"})
    with client.start_session() as session:
        with session.start_transaction():
            db.orders.insert_one({"_id": "kept"}, session=session)
            accept(event("kept"), db=db, session=session)
            assert db.inbox.count_documents({}) == 0, "not before the commit"
        session.start_transaction()
        db.orders.insert_one({"_id": "dropped"}, session=session)
        accept(event("dropped"), db=db, session=session)
        session.abort_transaction()
        session.start_transaction()
        db.orders.insert_one({"_id": "wrong"}, session=session)
        with pytest.raises(InvalidEvent):
            accept({"type": ""}, db=db, session=session)
        session.abort_transaction()
    assert {d["_id"] for d in db.orders.find()} == {"first", "kept"}
    assert [e["key"] for d in db.inbox.find() for e in d["events"]] == ["id~shop~kept"]


def test_errors_pass_so_that_with_transaction_repeats(client: MongoClient[dict[str, Any]], settings: Settings):
    db = database(client, settings)
    db.orders.insert_one({"_id": 1, "n": 0})
    seen: list[BaseException | None] = []

    def order(session: ClientSession) -> None:
        db.orders.update_one({"_id": 1}, {"$inc": {"n": 1}}, session=session)
        if not seen:
            seen.append(None)
            client.admin.command("killSessions", [{"id": session.session_id["id"]}])
        try:
            accept(event("again"), db=db, session=session)
        except OperationFailure as error:
            seen.append(error)
            raise

    with client.start_session() as session:
        session.with_transaction(order)
    assert len(seen) == 2, "the first try failed, the second did not"
    assert db.orders.find_one({"_id": 1}) == {"_id": 1, "n": 1}
    assert db.inbox.count_documents({}) == 1


def test_the_same_with_an_async_client(settings: Settings):
    async def main() -> list[str]:
        async with AsyncMongoClient(settings.mongo_url) as client:
            db = client[database_of(settings.mongo_url)]
            await db.orders.insert_one({"_id": 0})
            async with client.start_session() as session:
                async with await session.start_transaction():
                    await accept_async(event("kept"), db=db, session=session)
                await session.start_transaction()
                await accept_async(event("dropped"), db=db, session=session)
                await session.abort_transaction()
                full = replace(settings, inbox_max_batches=1)
                for _ in range(200):  # what was asked a moment ago is not asked again
                    try:
                        async with await session.start_transaction():
                            await accept_async(event("full"), db=db, session=session, settings=full)
                            await session.abort_transaction()
                    except InboxFull:
                        break
                    await asyncio.sleep(0.02)
                else:
                    raise AssertionError("the inbox's limit is not asked")
            return [e["key"] async for d in db.inbox.find() for e in d["events"]]

    assert asyncio.run(main()) == ["id~shop~kept"]


@pytest.mark.parametrize("waits", [False, True], ids=["sync", "async"])
def test_what_a_handler_accepts_commits_and_rolls_back_with_it(settings: Settings, waits: bool):
    """G1, G2: its next events are there exactly when its own one is processed."""

    def follow_up(event: Any, context: Any) -> None:
        accept({"type": "mail", "source": "shop", "id": event.id}, db=context.db, settings=settings)
        if event.data["fails"]:
            raise ValueError("no")

    async def follow_up_async(event: Any, context: Any) -> None:
        await accept_async({"type": "mail", "source": "shop", "id": event.id}, db=context.db, settings=settings)
        if event.data["fails"]:
            raise ValueError("no")

    handler = follow_up_async if waits else follow_up
    urls = {"mongo_url": settings.mongo_url, "redis_url": settings.redis_url}
    for number, fails, outcome in (("1", False, "won"), ("2", True, "failed")):
        done = deliver(handler, {"type": "order", "id": number, "data": {"fails": fails}}, **urls)
        assert done.outcome == outcome
    assert [e["key"] for d in done.db.inbox.find({"door": "python"}) for e in d["events"]] == ["id~shop~1"]


@pytest.mark.parametrize("waits", [False, True], ids=["sync", "async"])
def test_g5_limits_do_not_hold_up_what_a_handler_accepts(settings: Settings, waits: bool):
    """G5: an inbox that is full of events whose handlers accept others could never empty; and they would die of it."""
    full = replace(settings, inbox_max_batches=1, failures_max=1)  # its own batch is in the inbox
    follow_up = {"type": "mail", "source": "shop", "id": "f"}

    def handle(event: Any, context: Any) -> None:
        accept(follow_up, db=context.db, settings=full)

    async def handle_async(event: Any, context: Any) -> None:
        await accept_async(follow_up, db=context.db, settings=full)

    done = deliver(
        handle_async if waits else handle, {"type": "order", "id": "1"}, mongo_url=settings.mongo_url, redis_url=settings.redis_url
    )
    assert (done.outcome, done.failure) == ("won", None)
    assert [e["key"] for d in done.db.inbox.find({"door": "python"}) for e in d["events"]] == ["id~shop~f"]


def test_an_async_client_needs_a_transaction(settings: Settings):
    async def main() -> None:
        async with AsyncMongoClient(settings.mongo_url) as client:
            await accept_async(event("alone"), db=client[database_of(settings.mongo_url)], settings=settings)

    with pytest.raises(ValueError, match="needs a session"):
        asyncio.run(main())


@pytest.fixture
def system(settings: Settings, spawn: Spawn, tmp_path: Path) -> Iterator[System]:
    """A bridge and a listener; no broadcaster is needed."""
    with closing(system_on(settings, spawn, tmp_path)) as made:
        made.start_bridge()
        made.start_listener("listener-1")
        yield made


def test_what_a_transaction_accepted_is_processed(system: System, client: MongoClient[dict[str, Any]], settings: Settings):
    """G1: nobody announced it, and others that came later overtook it: the sweeper finds it all the same."""
    db = database(client, settings)
    db.create_collection("inbox")  # else the first transactions would conflict over making it
    with client.start_session() as session:
        session.start_transaction()
        accept(event("late"), db=db, session=session)
        session_of_nobody = client.start_session()
        session_of_nobody.start_transaction()
        accept(event("never"), db=db, session=session_of_nobody)
        accept([event(str(n)) for n in range(5)], db=db)
        eventually(lambda: system.db.events.count_documents({}) == 5, 30, system.state)
        session.commit_transaction()
        session_of_nobody.abort_transaction()
        session_of_nobody.end_session()
    eventually(lambda: system.db.events.find_one({"_id": "id~shop~late"}), 20, system.state)
    eventually(lambda: system.db.inbox.count_documents({}) == 0, 20, system.state)
    assert system.db.events.count_documents({}) == 6


def test_importing_app_costs_nothing_until_it_is_used():
    code = (
        "import sys, app; print(sorted({m.partition('.')[0] for m in sys.modules} & {'pymongo', 'httpx', 'typing', 'msgspec', 'celery'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="nothing"):
        getattr(app, "nothing")  # noqa: B009 - mypy knows better
