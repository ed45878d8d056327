"""A delivery's way through listeners, on real Valkey and MongoDB: handlers, what they commit, and what becomes of events when they fail."""

import time
from datetime import timedelta

import pytest

from app.stores.records import utc_now
from tests.support.mishaps import before
from tests.support.pipelines import TYPE, always, claim_by_hand, count_effect, document_of, end_all_transactions, entry, raises
from workers.handlers import Handler, PermanentFailure, RetryLater
from workers.pipeline import process


class TestHandlers:
    def test_a_transactional_handler_commits_with_its_event(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(*(entry(f"k{i}") for i in range(10)))

        assert process(listener, message).won == 10
        assert plant.effects() == {f"k{i}": 1 for i in range(10)}

    def test_the_context(self, plant):
        seen = []
        listener = plant.listener("listener-1", lambda event, context: seen.append((event, context)))
        process(listener, plant.accept(entry("k", data={"a": 1})))

        [(event, context)] = seen
        assert (event.key, event.digest, event.type, event.data) == ("k", "d1", TYPE, {"a": 1})
        assert (context.key, context.attempt, context.listener) == ("k", 1, "listener-1")
        assert context.fencing_token == plant.db["events"].find_one()["token"]

    def test_a_write_without_session_is_in_the_transaction(self, plant):
        """G2: a forgotten ``session=`` does not escape: what the handler wrote is rolled back when it raises."""
        seen = []

        def look_outside(event, context):
            count_effect(event, context)
            seen.append(plant.elsewhere(plant.effects))
            raise ValueError("no")

        listener = plant.listener("listener-1", look_outside)

        process(listener, plant.accept(entry("a")))

        assert seen == [{}], "nobody outside sees it before the commit"
        assert plant.effects() == {}
        assert plant.ledger() == {}

    def test_reads_in_the_transaction_see_its_own_writes(self, plant):
        seen = []

        def twice(event, context):
            count_effect(event, context)
            seen.append(context.db["effects"].find_one({"_id": event.key}))

        listener = plant.listener("listener-1", twice)
        process(listener, plant.accept(entry("a")))

        assert seen == [{"_id": "a", "n": 1}]

    @pytest.mark.parametrize("kind", ["inside", "at-least-once"])
    def test_a_client_of_the_handler_s_own(self, plant, kind):
        """The driver refuses it while a session is bound, so that it cannot be mistaken for a part of the transaction."""

        def function(event, _context):
            plant.db["effects"].insert_one({"_id": event.key, "n": 1})

        handler = Handler(name="h", pattern=TYPE, function=function, at_least_once=kind == "at-least-once")
        process(plant.listener("listener-1", handler), plant.accept(entry("a")))

        if kind == "inside":
            assert plant.effects() == {}
            assert "InvalidOperation" in plant.failure("a")["reason"]
        else:
            assert plant.effects() == {"a": 1}
            assert plant.ledger() == {"a": "d1"}

    def test_all_handlers_of_an_event_commit_together_or_not_at_all(self, plant):
        def other_effect(event, context):
            context.db["effects"].insert_one({"_id": f"{event.key}-other", "n": 1})

        fails_once = raises(ValueError("no"))
        listener = plant.listener("listener-1", other_effect, fails_once)
        process(listener, plant.accept(entry("a")))
        assert plant.effects() == {}

        process(listener, plant.retry(entry("a")))

        assert plant.effects() == {"a": 1, "a-other": 1}

    def test_only_handlers_of_its_type_run(self, plant):
        seen = []
        listener = plant.listener(
            "listener-1",
            Handler(name="h", pattern="flight.*", function=lambda event, _context: seen.append(event.key)),
        )
        message = plant.accept(entry("a", type="flight.departed"), entry("b", type="order.placed"), entry("c", type="flight.landed"))

        assert process(listener, message).won == 3
        assert sorted(seen) == ["a", "c"]

    def test_a_result_is_kept(self, plant):
        listener = plant.listener("listener-1", lambda _event, _context: {"total": 3, "of": [1, 2]}, lambda _event, _context: None)

        process(listener, plant.accept(entry("a")))

        assert plant.db["events"].find_one()["result"] == {"total": 3, "of": [1, 2]}

    def test_several_results_are_kept_in_order(self, plant):
        listener = plant.listener("listener-1", lambda _event, _context: "first", lambda _event, _context: "second")

        process(listener, plant.accept(entry("a"), entry("b")))

        assert [d["result"] for d in plant.db["events"].find()] == [["first", "second"]] * 2

    @pytest.mark.parametrize(
        "result",
        [object(), {1, 2}, float("nan"), "x" * 70_000, 2**70, {"a": [2**64]}, "\ud800", {"a\x00b": 1}, {"$set": {"a": 1}}],
        ids=["object", "set", "nan", "large", "integer", "integer-inside", "surrogate", "nul", "dollar"],
    )
    @pytest.mark.parametrize("neighbours", [0, 3])
    def test_a_result_that_cannot_be_kept_fails_that_event_visibly(self, plant, result, neighbours):
        """G5: and none of its neighbours."""

        def function(event, context):
            count_effect(event, context)
            return result if event.key == "bad" else None

        listener = plant.listener("listener-1", function)
        message = plant.accept(entry("bad"), *(entry(f"k{i}") for i in range(neighbours)))

        process(listener, message)

        if isinstance(result, dict) and "$set" in result and plant.ledger().get("bad"):
            assert plant.db["events"].find_one({"_id": "bad"})["result"] == result
            return
        assert plant.failures() == {("bad", "d1"): "retrying"}
        assert plant.failure("bad")["attempts"] == 1
        assert plant.effects() == {f"k{i}": 1 for i in range(neighbours)}
        assert set(plant.claim_states().values()) <= {"done by listener-1"}

    def test_at_least_once_runs_outside_the_transaction(self, plant):
        seen = []

        def outside(event, context):
            count_effect(event, context)
            seen.append(plant.elsewhere(plant.effects))

        listener = plant.listener("listener-1", Handler(name="h", pattern=TYPE, function=outside, at_least_once=True))

        process(listener, plant.accept(entry("a")))

        assert seen == [{"a": 1}], "seen from outside before the commit"
        assert plant.ledger() == {"a": "d1"}

    def test_an_at_least_once_handler_does_not_run_again_for_what_the_ledger_has(self, plant):
        """G2: after FLUSHALL the pre-check knows, before any handler runs."""
        ran = []
        handlers = [Handler(name="h", pattern=TYPE, function=lambda event, _context: ran.append(event.key), at_least_once=True)]
        message = plant.accept(entry("a"))
        process(plant.listener("listener-1", *handlers), message)
        plant.redis.flushdb()
        plant.inbox.write([document_of(plant, message)])

        assert str(process(plant.listener("listener-2", *handlers), message)) == "skipped 1 (done listener-1)"
        assert ran == ["a"]

    def test_at_least_once_beside_a_transactional_one_runs_first(self, plant):
        order = []
        listener = plant.listener(
            "listener-1",
            lambda _event, _context: order.append("inside"),
            Handler(name="h", pattern=TYPE, function=lambda _event, _context: order.append("outside"), at_least_once=True),
        )

        process(listener, plant.accept(entry("a")))

        assert order == ["outside", "inside"]

    def test_an_at_least_once_handler_that_raises_fails_the_event(self, plant):
        listener = plant.listener("listener-1", Handler(name="h", pattern=TYPE, function=always(ValueError("no")), at_least_once=True))

        process(listener, plant.accept(entry("a")))

        assert plant.failures() == {("a", "d1"): "retrying"}
        assert plant.ledger() == {}
        assert plant.effects() == {"a": 1}, "what it did outside stands: that is what at_least_once says"

    def test_async_handlers_of_a_slice_run_beside_each_other(self, plant):
        import asyncio

        running, most = 0, 0

        async def function(event, context):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await context.db["effects"].insert_one({"_id": event.key, "n": 1})
            await asyncio.sleep(0.2)
            running -= 1

        listener = plant.listener("listener-1", function)
        message = plant.accept(*(entry(f"k{i}") for i in range(20)))

        assert process(listener, message).won == 20
        assert plant.effects() == {f"k{i}": 1 for i in range(20)}
        assert most > 5

    @pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside-a-transactional-one"])
    def test_async_at_least_once_handlers_run_beside_each_other(self, plant, beside):
        import asyncio

        running, most, calls = 0, 0, []

        async def function(event, _context):
            nonlocal running, most
            running += 1
            most = max(most, running)
            calls.append(event.key)
            await asyncio.sleep(0.1)
            running -= 1
            if event.key == "bad":
                raise ValueError("no")

        handlers = [Handler(name="h", pattern=TYPE, function=function, at_least_once=True), *([count_effect] if beside else [])]
        listener = plant.listener("listener-1", *handlers)
        message = plant.accept(entry("bad"), *(entry(f"k{i}") for i in range(20)))

        assert str(process(listener, message)) == "won 20, failed 1 (retrying)"
        assert most > 5
        assert sorted(calls) == sorted(message.keys)
        assert plant.failure("bad")["attempts"] == 1
        assert plant.effects() == ({f"k{i}": 1 for i in range(20)} if beside else {})

    def test_a_handler_that_exits_has_failed_and_ends_nothing(self, plant):
        runtime = plant.listener("listener-1", always(SystemExit("done with it")))

        assert process(runtime, plant.accept(entry("a"), entry("b"))).failed == 2

        assert plant.failures() == {("a", "d1"): "retrying", ("b", "d1"): "retrying"}
        assert plant.failure("a")["error"]["type"] == "SystemExit"
        assert plant.effects() == {}

    def test_an_exit_that_the_pool_asks_for_is_no_attempt(self, plant):
        runtime = plant.listener("listener-1", always(SystemExit(-241)))  # as billiard's, on SIGTERM

        with pytest.raises(SystemExit):
            process(runtime, plant.accept(entry("a")))

        assert plant.failures() == {}

    def test_an_async_handler_that_raises_is_rolled_back_alone(self, plant):
        async def function(event, context):
            await context.db["effects"].insert_one({"_id": event.key, "n": 1})
            if event.key == "bad":
                raise ValueError("no")

        listener = plant.listener("listener-1", function)
        process(listener, plant.accept(entry("a"), entry("bad"), entry("c")))

        assert plant.effects() == {"a": 1, "c": 1}
        assert plant.failures() == {("bad", "d1"): "retrying"}


class TestFailing:
    def test_raising_once_is_retried_with_the_attempt_counted(self, plant):
        seen = []
        function = raises(ValueError("first"))

        def watched(event, context):
            seen.append(context.attempt)
            function(event, context)

        listener = plant.listener("listener-1", watched)
        message = plant.accept(entry("a"))

        assert str(process(listener, message)) == "failed 1 (retrying)"
        failure = plant.failure("a")
        assert (failure["state"], failure["attempts"], failure["starts"]) == ("retrying", 1, 0)
        assert failure["error"]["type"] == "ValueError"
        assert "first" in failure["error"]["message"]
        assert "in function" in failure["error"]["traceback"]
        assert failure["body"]["data"] == {"digest": "d1"}
        assert utc_now() + timedelta(seconds=25) < failure["due_at"] <= utc_now() + timedelta(seconds=60)
        assert plant.claim_states() == {}, "first the failure, then the claim is given back"

        assert str(process(listener, plant.retry(entry("a")))) == "won 1"
        assert seen == [1, 2]
        assert plant.failures() == {}, "the ledger wins"
        assert plant.effects() == {"a": 1}
        assert plant.db["events"].find_one()["attempt"] == 2

    def test_a_retry_that_is_not_due_waits(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("first")))
        process(listener, plant.accept(entry("a")))

        assert str(process(listener, plant.message([entry("a")], batch=None))) == "skipped 1 (in failures: not due)"
        assert plant.claim_states() == {}

    def test_raising_always_ends_dead(self, plant):
        listener = plant.listener("listener-1", always(ValueError("never")))
        process(listener, plant.accept(entry("a")))

        tallies = [str(process(listener, plant.retry(entry("a")))) for _ in range(4)]

        assert tallies == ["failed 1 (retrying)"] * 3 + ["failed 1 (dead)"]
        failure = plant.failure("a")
        assert (failure["state"], failure["attempts"], failure["due_at"]) == ("dead", 5, None)
        assert "never" in failure["error"]["traceback"]
        assert str(process(listener, plant.retry(entry("a")))) == "skipped 1 (in failures: dead)"
        assert plant.failure("a")["attempts"] == 5
        assert plant.effects() == {}

    def test_a_permanent_failure_is_dead_at_once(self, plant):
        listener = plant.listener("listener-1", always(PermanentFailure("no such airport")))

        assert str(process(listener, plant.accept(entry("a")))) == "failed 1 (dead)"
        assert (plant.failure("a")["state"], plant.failure("a")["attempts"]) == ("dead", 1)

    def test_retry_later_is_no_attempt(self, plant):
        listener = plant.listener("listener-1", always(RetryLater(3_600)))
        process(listener, plant.accept(entry("a")))
        for _ in range(7):
            process(listener, plant.retry(entry("a")))

        failure = plant.failure("a")
        assert (failure["state"], failure["attempts"]) == ("retrying", 0)
        assert utc_now() + timedelta(seconds=3_500) < failure["due_at"] <= utc_now() + timedelta(seconds=3_600)

    @pytest.mark.parametrize("where", ["first", "middle", "last"])
    def test_one_bad_event_of_50_harms_only_itself(self, plant, where):
        """G5"""
        bad = {"first": 0, "middle": 25, "last": 49}[where]

        def function(event, context):
            count_effect(event, context)
            if event.key == f"k{bad}":
                raise ValueError("no")

        listener = plant.listener("listener-1", function)

        tally = process(listener, plant.accept(*(entry(f"k{i}") for i in range(50))))

        assert str(tally) == "won 49, failed 1 (retrying)"
        assert plant.effects() == {f"k{i}": 1 for i in range(50) if i != bad}
        assert plant.failures() == {(f"k{bad}", "d1"): "retrying"}
        assert plant.inbox.size() == 0

    def test_a_handler_that_waits_too_long_has_failed(self, plant, make_settings):
        """A transaction that outlives its limit, while MongoDB answers, is the handler's failure."""
        settings = make_settings(max_handler_s=0.3, redis_url=plant.settings.redis_url, mongo_url=plant.settings.mongo_url)

        def slow(event, context):
            count_effect(event, context)
            time.sleep(0.5)
            plant.elsewhere(lambda: end_all_transactions(plant))
            count_effect(event, context)

        listener = plant.listener("listener-1", slow, settings=settings)

        process(listener, plant.accept(entry("a")))

        assert plant.failure("a")["attempts"] == 1
        assert "0.3 s" in plant.failure("a")["reason"]

    def test_the_failure_is_stored_before_the_claim_is_given_back(self, plant):
        """G3: nobody can win the event, and handle it, while its failure is not yet known."""
        listener = plant.listener("listener-1", always(ValueError("no")))
        seen = []
        before(listener.failures, "record_attempt", lambda: seen.append(plant.claim_states()))
        before(listener.claims_of("test"), "release", lambda: seen.append(plant.failures()))

        process(listener, plant.accept(entry("a")))

        assert seen == [{"a": "processing by listener-1"}, {("a", "d1"): "retrying"}]

    def test_a_loser_changes_neither_the_successor_s_claim_nor_its_failure(self, plant):
        """G3"""
        gate = plant.gate()
        raised = []

        def first(_event, _context):
            gate.pass_through()
            raised.append(1)
            raise ValueError("the old owner's")

        old, new = plant.listener("listener-1", first), plant.listener("listener-2", always(ValueError("the successor's")))
        message = plant.accept(entry("a"))
        running = plant.start(old, message)
        gate.wait_entered()
        plant.expire_leases()
        assert str(process(new, message)) == "failed 1 (retrying)"
        before = plant.failure("a")
        claim_by_hand(plant, "a", owner="listener-3")

        gate.open()
        tally = running.result(10)

        assert raised
        assert plant.failure("a") == before
        assert plant.claim_states() == {"a": "processing by listener-3"}
        assert (tally.won, tally.failed) == (0, 0)
