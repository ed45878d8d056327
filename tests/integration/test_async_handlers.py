"""``async def`` handlers in a listener, on real stores: which of them get a transaction, how they commit, and what one does to another."""

import asyncio
from typing import Any

import pytest
from pymongo.errors import DuplicateKeyError, InvalidDocument

from app.errors import StoreUnavailable
from tests.support.pipelines import TYPE, Plant, count_effect, entry
from tests.support.waiting import eventually
from workers.concurrency import Tasks
from workers.handlers import Handler
from workers.pipeline import process


async def effect(event: Any, context: Any) -> None:
    """One countable effect, in the handler's transaction."""
    await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


def outside(function: Any) -> Handler:
    """The function, declared as ``at_least_once``."""
    return Handler(name="outside", pattern=TYPE, function=function, at_least_once=True)


def transactions(plant: Plant) -> int:
    """Transactions that MongoDB has committed."""
    return int(plant.db.client.admin.command("serverStatus")["transactions"]["totalCommitted"])


def open_transactions(plant: Plant) -> int:
    """Transactions that are open in MongoDB now."""
    return int(plant.db.client.admin.command("serverStatus")["transactions"]["currentOpen"])


class Inserts:
    """The sizes of a listener's inserts into the ledger, without a transaction."""

    def __init__(self, runtime: Any) -> None:
        self.sizes: list[int] = []
        insert = runtime.ledger.insert

        def counted(documents: Any, session: Any = None) -> Any:
            self.sizes.append(len(documents))
            return insert(documents, session=session)

        runtime.ledger.insert = counted


class TestWithoutMongoDB:
    @pytest.mark.parametrize("kind", ["transactional", "at_least_once", "at_least_once and plain"])
    def test_they_commit_as_a_group_and_without_a_transaction(self, plant, kind):
        async def waits(_event, _context):
            await asyncio.sleep(0)

        handler = waits if kind == "transactional" else outside(waits if kind == "at_least_once" else lambda _event, _context: None)
        listener = plant.listener("listener-1", handler)
        inserts, before = Inserts(listener), transactions(plant)

        assert str(process(listener, plant.accept(*(entry(f"k{i}") for i in range(50))))) == "won 50"

        assert transactions(plant) == before
        assert sum(inserts.sizes) == 50
        assert len(inserts.sizes) < 10
        assert len(plant.ledger()) == 50
        assert set(plant.claim_states().values()) == {"done by listener-1"}
        assert plant.inbox.size() == 0

    def test_those_that_end_soon_after_each_other_share_an_insert(self, plant, monkeypatch):
        monkeypatch.setattr("workers.concurrency.GATHER_S", 30.0)

        async def waits(event, _context):
            await asyncio.sleep(int(event.key) / 1000)

        listener = plant.listener("listener-1", waits)
        inserts = Inserts(listener)

        assert str(process(listener, plant.accept(*(entry(str(i)) for i in range(50))))) == "won 50"

        assert inserts.sizes == [50]

    def test_nothing_is_open_in_mongodb_while_one_waits(self, plant):
        gate = plant.gate()

        async def waits(event, context):
            await asyncio.to_thread(gate.pass_through)
            await effect(event, context)

        running = plant.start(plant.listener("listener-1", waits), plant.accept(entry("a")))
        gate.wait_entered()

        assert open_transactions(plant) == 0

        gate.open()
        assert str(running.result(10)) == "won 1"
        assert plant.effects() == {"a": 1}

    def test_a_slow_one_does_not_delay_another_s_commit(self, plant):
        gate = plant.gate()

        async def function(event, _context):
            if event.key == "slow":
                await asyncio.to_thread(gate.pass_through)

        running = plant.start(plant.listener("listener-1", function), plant.accept(entry("slow"), entry("a"), entry("b")))

        eventually(lambda: plant.ledger() == {"a": "d1", "b": "d1"}, 10)
        eventually(lambda: plant.claim_states().get("a") == "done by listener-1", 10)
        gate.open()
        assert str(running.result(10)) == "won 3"

    @pytest.mark.parametrize("overrides", [{"async_limit": 3}])
    @pytest.mark.parametrize("kind", [lambda function: function, outside], ids=["transactional", "at_least_once"])
    def test_no_more_of_them_run_at_once_than_are_allowed(self, plant, kind):
        running, most = 0, 0

        async def function(_event, _context):
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(3):
                await asyncio.sleep(0)
            running -= 1

        assert process(plant.listener("listener-1", kind(function)), plant.accept(*(entry(f"k{i}") for i in range(20)))).won == 20
        assert most == 3

    def test_what_they_return_is_kept(self, plant):
        async def function(event, _context):
            return {"of": event.key}

        process(plant.listener("listener-1", function, function), plant.accept(entry("a"), entry("b")))

        assert {d["_id"]: d["result"] for d in plant.db["events"].find()} == {k: [{"of": k}, {"of": k}] for k in ("a", "b")}

    def test_results_of_all_kinds_come_in_the_order_in_which_they_ran(self, plant):
        async def first(_event, _context):
            return 1

        async def second(event, context):
            await effect(event, context)
            return 2

        process(plant.listener("listener-1", second, outside(first)), plant.accept(entry("a")))

        assert plant.db["events"].find_one()["result"] == [1, 2]

    @pytest.mark.parametrize("kind", [lambda function: function, outside], ids=["transactional", "at_least_once"])
    def test_a_result_that_cannot_be_kept_fails_that_event_alone(self, plant, kind):
        """G5"""

        async def function(event, _context):
            return object() if event.key == "bad" else event.key

        tally = process(plant.listener("listener-1", kind(function)), plant.accept(entry("bad"), entry("a"), entry("b")))

        assert str(tally) == "won 2, failed 1 (retrying)"
        assert plant.failures() == {("bad", "d1"): "retrying"}
        assert {d["_id"]: d["result"] for d in plant.db["events"].find()} == {"a": "a", "b": "b"}

    def test_of_a_group_the_keys_that_others_have_taken_are_judged_alone(self, plant):
        """G2, G6: skipped where the content is the same, in conflict where it is not; the rest of the group stands."""
        committed = asyncio.Event()

        async def function(event, _context):
            if event.key == "a":
                await asyncio.to_thread(lambda: (commit_by_hand(plant, "b", "d1"), commit_by_hand(plant, "c", "d9")))
                committed.set()
            await committed.wait()

        tally = process(plant.listener("listener-1", function), plant.accept(*(entry(k) for k in "abcd")))

        assert (tally.won, tally.skipped, tally.failed) == (2, 1, 1)
        assert plant.ledger() == {"a": "d1", "b": "d1", "c": "d9", "d": "d1"}
        assert plant.failures() == {("c", "d1"): "conflict"}

    def test_an_outage_at_a_group_s_commit_leaves_it_and_counts_no_attempt(self, plant):
        """G1, G5"""
        ran: list[str] = []

        async def function(event, _context):
            ran.append(event.key)

        listener = plant.listener("listener-1", function)
        message = plant.accept(*(entry(k) for k in "abc"))
        insert, listener.ledger.insert = listener.ledger.insert, away

        assert str(process(listener, message)) == "left 3"
        assert plant.claim_states() == {}
        assert plant.failures() == {}

        listener.ledger.insert = insert
        assert str(process(listener, message)) == "won 3"
        assert sorted(ran) == sorted("abcabc")

    @pytest.mark.parametrize("overrides", [{"async_limit": 1}])
    def test_after_an_outage_nothing_more_is_begun_and_what_runs_is_awaited(self, plant, monkeypatch):
        """G5"""
        gate, ran = plant.gate(), []

        async def function(event, _context):
            ran.append(event.key)
            if len(ran) == 2:
                await asyncio.to_thread(gate.pass_through)
                for _ in range(1_000):  # turns of the loop in which a listener that did not wait would go on
                    await asyncio.sleep(0)
                ran.append("ended")

        def away_when_the_second_runs(_documents, session=None):
            gate.wait_entered()
            raise StoreUnavailable("away")

        def end(tasks):
            tasks._ending = True
            gate.open()
            return original(tasks)

        original = Tasks.end
        monkeypatch.setattr(Tasks, "end", end)
        listener = plant.listener("listener-1", function)
        listener.ledger.insert = away_when_the_second_runs
        release = listener.claims_of("test").release

        def released(*args, **kwargs):
            ran.append("given back")
            return release(*args, **kwargs)

        listener.claims_of("test").release = released

        assert str(process(listener, plant.accept(*(entry(k) for k in "abcd")))) == "left 4"
        assert ran[2:] == ["ended", "given back"]
        assert plant.claim_states() == {}


class TestWithMongoDB:
    def test_it_has_a_transaction_with_its_ledger_document(self, plant):
        before = transactions(plant)

        assert process(plant.listener("listener-1", effect), plant.accept(entry("a"), entry("b"))).won == 2

        assert transactions(plant) == before + 2
        assert plant.effects() == {"a": 1, "b": 1}

    def test_a_collection_that_it_kept_from_elsewhere_is_inside_its_transaction_too(self, plant):
        """G2: neither this ``context.db`` nor a ``session=``: nobody sees what it wrote before the commit, and it is rolled back when it raises."""
        seen: list[Any] = []
        kept: list[Any] = []

        async def function(event, context):
            if not kept:
                kept.append(context.db["effects"])
                return
            await kept[0].insert_one({"_id": event.key, "n": 1})
            seen.append(await asyncio.to_thread(plant.elsewhere, plant.effects))
            if event.key == "bad":
                raise ValueError("no")

        listener = plant.listener("listener-1", function)
        assert process(listener, plant.accept(entry("keeps it"))).won == 1

        assert str(process(listener, plant.accept(entry("bad")))) == "failed 1 (retrying)"
        assert process(listener, plant.accept(entry("a"))).won == 1

        assert seen == [{}, {}]
        assert plant.effects() == {"a": 1}

    @pytest.mark.parametrize("reads", ["find_one", "cursor", "aggregate", "count"])
    def test_reading_is_using_it(self, plant, reads):
        """What it read is what it decided by, so it is read in the transaction that commits."""

        async def function(_event, context):
            effects = context.db["effects"]
            if reads == "find_one":
                await effects.find_one({})
            elif reads == "cursor":
                await effects.find({}).to_list()
            elif reads == "aggregate":
                await (await effects.aggregate([])).to_list()
            else:
                await effects.count_documents({})

        before = transactions(plant)

        assert process(plant.listener("listener-1", function), plant.accept(entry("a"))).won == 1
        assert transactions(plant) == before + 1

    def test_one_that_raises_after_writing_is_rolled_back_alone(self, plant):
        """G5"""

        async def function(event, context):
            await effect(event, context)
            if event.key == "bad":
                raise ValueError("no")

        tally = process(plant.listener("listener-1", function), plant.accept(*(entry(k) for k in ("a", "bad", "c"))))

        assert str(tally) == "won 2, failed 1 (retrying)"
        assert plant.effects() == {"a": 1, "c": 1}
        assert plant.ledger() == {"a": "d1", "c": "d1"}

    @pytest.mark.parametrize("function", ["cancelled", "conflict of its own"])
    def test_what_looks_like_an_end_from_outside_is_its_own_failure(self, plant, function):
        """G5"""

        async def cancelled(event, _context):
            if event.key == "bad":
                raise asyncio.CancelledError

        async def conflict(event, context):
            if event.key == "bad":
                async with context.db.client.start_session() as one, context.db.client.start_session() as other:
                    for session in (one, other):
                        await session.start_transaction()
                        await context.db["effects"].insert_one({"_id": "wanted by both"}, session=session)

        handler = cancelled if function == "cancelled" else outside(conflict)

        tally = process(plant.listener("listener-1", handler), plant.accept(entry("bad"), entry("a")))

        assert str(tally) == "won 1, failed 1 (retrying)"
        assert plant.ledger() == {"a": "d1"}

    @pytest.mark.parametrize("kind", [lambda function: function, outside], ids=["transactional", "at_least_once"])
    def test_one_that_exits_has_failed_and_ends_nothing(self, plant, kind):
        """G5: neither the process nor its loop."""

        async def function(event, _context):
            if event.key == "bad":
                raise SystemExit("done with it")

        listener = plant.listener("listener-1", kind(function))

        assert str(process(listener, plant.accept(entry("bad"), entry("a")))) == "won 1, failed 1 (retrying)"
        assert str(process(listener, plant.accept(entry("b")))) == "won 1"
        assert plant.failure("bad")["error"]["type"] == "SystemExit"

    def test_an_exit_that_the_pool_asks_for_is_no_attempt_and_leaves_the_loop_running(self, plant):
        async def function(event, context):
            await effect(event, context)
            if event.key == "bad":
                raise SystemExit(-241)  # as billiard's, on SIGTERM

        listener = plant.listener("listener-1", function)

        with pytest.raises(SystemExit):
            process(listener, plant.accept(entry("bad")))

        assert plant.failures() == {}
        assert plant.effects() == {}
        assert plant.claim_states() == {}
        assert str(process(listener, plant.accept(entry("b")))) == "won 1"

    def test_events_that_want_one_document_wait_for_each_other_and_lose_no_update(self, plant):
        """G2: read, then write, in handlers beside each other."""

        async def function(_event, context):
            found = await context.db["effects"].find_one({"_id": "sum"}) or {"n": 0}
            await context.db["effects"].update_one({"_id": "sum"}, {"$set": {"n": found["n"] + 1}}, upsert=True)

        assert process(plant.listener("listener-1", function), plant.accept(*(entry(f"k{i}") for i in range(8)))).won == 8
        assert plant.effects() == {"sum": 8}

    def test_what_it_swallows_in_its_transaction_does_not_commit(self, plant, make_settings):
        """MongoDB has ended the transaction by then: as with plain handlers, the event fails when its time is up."""
        settings = make_settings(max_handler_s=0.3, redis_url=plant.settings.redis_url, mongo_url=plant.settings.mongo_url)
        plant.db["effects"].insert_one({"_id": "there"})

        async def function(event, context):
            await effect(event, context)
            try:
                await context.db["effects"].insert_one({"_id": "there"})
            except DuplicateKeyError:
                return

        process(plant.listener("listener-1", function, settings=settings), plant.accept(entry("a")))

        assert plant.ledger() == {}
        assert plant.failure("a")["attempts"] == 1
        assert "0.3 s" in plant.failure("a")["reason"]
        assert [d["_id"] for d in plant.db["effects"].find()] == ["there"]

    def test_a_first_command_that_the_driver_refused_spoils_nothing(self, plant):
        """Its transaction never began; the next try begins it with the ledger document."""
        tries: list[str] = []

        async def function(event, context):
            tries.append(event.key)
            try:
                await context.db["effects"].insert_one({"_id": event.key, "n": object()})
            except InvalidDocument:
                await effect(event, context)

        assert process(plant.listener("listener-1", function), plant.accept(entry("a"))).won == 1
        assert plant.effects() == {"a": 1}
        assert tries == ["a", "a"]

    def test_nor_does_one_that_it_gave_up(self, plant):
        """G2: it swallowed that its only command got no answer: what that did is unknown, so it is tried again."""
        tries: list[str] = []

        async def function(event, context):
            tries.append(event.key)
            try:
                await context.db["effects"].insert_one({"_id": event.key, "n": object() if len(tries) == 1 else 1})
            except InvalidDocument:
                return

        assert process(plant.listener("listener-1", function), plant.accept(entry("a"))).won == 1
        assert plant.effects() == {"a": 1}
        assert plant.ledger() == {"a": "d1"}


class TestRivals:
    def test_one_that_committed_while_the_handler_ran_wins(self, plant):
        """G2, G3: what the handler wrote is rolled back, and the event is skipped."""
        gate = plant.gate()

        async def waits(event, context):
            await effect(event, context)
            await asyncio.to_thread(gate.pass_through)

        running = plant.start(plant.listener("listener-1", waits), plant.accept(entry("a"), entry("b")))
        gate.wait_entered()
        commit_by_hand(plant, "a", "d1")
        commit_by_hand(plant, "b", "d2")
        gate.open()

        tally = running.result(10)

        assert (tally.won, tally.skipped, tally.failed) == (0, 1, 1)
        assert plant.effects() == {}
        assert plant.failures() == {("b", "d1"): "conflict"}

    @pytest.mark.parametrize("uses", [False, True], ids=["without-mongodb", "with-mongodb"])
    def test_two_winners_commit_once(self, plant, uses):
        """G2: FLUSHALL while both handlers run."""
        gate, ran = plant.gate(), []

        async def waits(event, context):
            ran.append((context.listener, event.key))
            await asyncio.to_thread(gate.pass_through)
            if uses:
                await effect(event, context)

        message = plant.accept(entry("a"), entry("b"))
        one = plant.start(plant.listener("listener-1", waits), message)
        gate.wait_entered()
        plant.redis.flushdb()
        two = plant.start(plant.listener("listener-2", waits), message)
        eventually(lambda: {who for who, _ in ran} == {"listener-1", "listener-2"}, 10)
        gate.open()

        tallies = [one.result(20), two.result(20)]

        assert sum(t.won for t in tallies) == sum(t.skipped for t in tallies) == 2
        assert plant.effects() == ({"a": 1, "b": 1} if uses else {})
        assert set(plant.ledger()) == {"a", "b"}
        assert plant.failures() == {}

    @pytest.mark.parametrize("overrides", [{"max_handler_s": 0.5}])
    def test_a_rival_s_lock_on_the_ledger_is_nobody_s_attempt(self, plant):
        """G5: nor can the handler's effect stand beside the rival's."""
        listener = plant.listener("listener-2", effect)
        message = plant.accept(entry("a"), entry("b"))
        with plant.db.client.start_session() as rival:
            rival.start_transaction()
            plant.db["events"].insert_one({"_id": "a", "digest": "d1"}, session=rival)

            assert str(process(listener, message)) == "won 1, left 1"
            assert plant.failures() == {}
            assert plant.effects() == {"b": 1}
            assert plant.claim_states() == {"b": "done by listener-2"}
            rival.abort_transaction()

        assert str(process(listener, message)) == "won 1, skipped 1 (done listener-2)"
        assert plant.effects() == {"a": 1, "b": 1}

    @pytest.mark.parametrize("overrides", [{"max_handler_s": 0.5}])
    def test_a_lock_that_its_own_handlers_meet_for_too_long_is_an_attempt(self, plant):
        plant.db["effects"].insert_one({"_id": "a", "n": 0})
        with plant.db.client.start_session() as other:
            other.start_transaction()
            plant.db["effects"].update_one({"_id": "a"}, {"$inc": {"n": 100}}, session=other)

            process(plant.listener("listener-1", effect), plant.accept(entry("a"), entry("b")))
            other.abort_transaction()

        assert plant.failure("a")["attempts"] == 1
        assert plant.ledger() == {"b": "d1"}

    def test_a_suspect_runs_alone_after_its_start_is_counted(self, plant):
        """G5"""
        seen: list[Any] = []

        async def function(event, context):
            seen.append(await asyncio.to_thread(plant.elsewhere, plant.starts))
            await effect(event, context)

        assert process(plant.listener("listener-1", function), plant.accept(entry("a"), entry("b"), forwards=3)).won == 2

        assert sorted(map(str, seen)) == [str({(key, "d1"): 1}) for key in "ab"], "one at a time"
        assert plant.effects() == {"a": 1, "b": 1}
        assert plant.failures() == {}

    def test_one_key_twice_in_a_delivery(self, plant):
        ran: list[str] = []

        async def function(event, context):
            ran.append(event.key)
            await effect(event, context)

        message = plant.accept(entry("a"), entry("b"))

        process(plant.listener("listener-1", function), plant.message([entry("a"), entry("a"), entry("b")], batch=message.batch))

        assert sorted(ran) == ["a", "b"]
        assert plant.effects() == {"a": 1, "b": 1}
        assert plant.failures() == {}


class TestBesidePlainOnes:
    def test_events_with_both_kinds_commit_in_plain_transactions_as_they_finish(self, plant):
        gate, order = plant.gate(), []

        async def before(event, _context):
            if event.key == "slow":
                await asyncio.to_thread(gate.pass_through)
            order.append(event.key)

        def inside(event, context):
            order.append(f"{event.key} inside")
            count_effect(event, context)

        running = plant.start(plant.listener("listener-1", inside, outside(before)), plant.accept(entry("slow"), entry("a"), entry("b")))
        eventually(lambda: plant.effects() == {"a": 1, "b": 1}, 10)
        gate.open()

        assert str(running.result(10)) == "won 3"
        assert order.index("a") < order.index("a inside")
        assert order[-2:] == ["slow", "slow inside"]


def commit_by_hand(plant: Plant, key: str, digest: str) -> None:
    """Somebody else's commit."""
    plant.db["events"].insert_one({"_id": key, "v": 1, "digest": digest, "listener": "somebody", "claim_id": "another"})


def away(_documents: Any, session: Any = None) -> list[str]:
    """A ledger whose server is away."""
    raise StoreUnavailable("away")
