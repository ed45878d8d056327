"""A delivery's way through listeners, on real Valkey and MongoDB: won, skipped, failed, in conflict, left, and never twice."""

import time
from datetime import timedelta

import pytest
from bson.binary import Binary
from pymongo.errors import AutoReconnect

from app.claims.store import Held, new_claim_id
from app.errors import ClaimsUnavailable, StoreUnavailable
from app.stores.failures import Failures, Origin
from app.stores.records import utc_now
from tests.support.pipelines import TYPE, Plant, count_effect, entry
from tests.support.waiting import eventually
from workers.claiming import claim
from workers.handlers import Handler, PermanentFailure, RetryLater
from workers.pipeline import process


def raises(*errors: Exception | None):
    """A handler that has its effect, and then raises one error after the other; None and what comes behind the last: nothing."""
    rest = list(errors)

    def function(event, context):
        count_effect(event, context)
        error = rest.pop(0) if rest else None
        if error is not None:
            raise error

    return function


def fails_for(key: str):
    """A handler that has its effect, and then raises for one event."""

    def function(event, context):
        count_effect(event, context)
        if event.key == key:
            raise ValueError(key)

    return function


def always(error: Exception):
    def function(event, context):
        count_effect(event, context)
        raise error

    return function


class TestStoring:
    def test_a_batch_without_handlers_is_committed_marked_and_removed(self, plant):
        listener = plant.listener()
        message = plant.accept(*(entry(f"k{i}") for i in range(50)))

        tally = process(listener, message)

        assert str(tally) == "won 50"
        assert plant.ledger() == {f"k{i}": "d1" for i in range(50)}
        assert set(plant.claim_states().values()) == {"done by listener-1"}
        assert plant.inbox.size() == 0

    def test_what_the_ledger_keeps(self, plant):
        listener = plant.listener()
        message = plant.accept(entry("k", data={"amount": 7}))

        process(listener, message)

        kept = plant.db["events"].find_one()
        assert kept["body"]["data"] == {"amount": 7}
        assert (kept["type"], kept["listener"], kept["attempt"], kept["batch"], kept["v"]) == (TYPE, "listener-1", 1, message.batch, 1)
        assert kept["accepted_at"] == message.batches[0].accepted_at
        assert kept["token"] > 0
        assert "expires_at" not in kept

    def test_the_second_listener_skips_and_says_who_has_it(self, plant):
        first, second = plant.listener("listener-1"), plant.listener("listener-2")
        message = plant.accept(entry("a"), entry("b"))
        process(first, message)

        assert str(process(second, message)) == "skipped 2 (done listener-1)"

    def test_without_the_mark_the_ledger_says_so_and_the_mark_comes_back(self, plant):
        first, second = plant.listener("listener-1"), plant.listener("listener-2")
        message = plant.accept(entry("a"))
        process(first, message)
        plant.redis.flushdb()
        plant.inbox.write([document_of(plant, message)])

        assert str(process(second, message)) == "skipped 1 (done listener-1)"
        assert plant.claim_states() == {"a": "done by listener-2"}
        assert plant.inbox.size() == 0, "finished, so anyone may remove it"

    def test_a_busy_event_is_skipped_and_its_batch_stays(self, plant):
        first, second = plant.listener("listener-1"), plant.listener("listener-2")
        message = plant.accept(entry("a"), entry("b"))
        claim_by_hand(plant, "a", owner="listener-9")

        assert str(process(second, message)) == "won 1, skipped 1 (busy listener-9)"
        assert str(process(first, message)) == "skipped 2 (busy listener-9, done listener-2)"
        assert plant.unfinished() == {("a", "d1")}
        assert plant.inbox.size() == 1

    def test_two_listeners_at_once_win_each_event_once(self, plant):
        listeners = [plant.listener(f"listener-{i}") for i in (1, 2, 3)]
        messages = [plant.accept(*(entry(f"k{b}-{i}") for i in range(100))) for b in range(3)]

        tallies = [f.result(30) for f in [plant.start(one, m) for m in messages for one in listeners]]

        assert sum(t.won for t in tallies) == 300
        assert sum(t.skipped + t.left for t in tallies) == 600
        assert len(plant.ledger()) == 300

    def test_several_batches_of_a_delivery_are_committed_each_as_its_own_and_removed(self, plant):
        listener = plant.listener()
        before = utc_now() - timedelta(minutes=5)
        message = plant.accept_apart([entry("a")], [entry("b"), entry("c")], accepted_at=[before, utc_now()])

        assert str(process(listener, message)) == "won 3"

        first, second = message.batches
        kept = {d["_id"]: (d["batch"], d["door"], d["accepted_at"]) for d in plant.db["events"].find()}
        assert kept == {
            "a": (first.batch, "door of a", before),
            "b": (second.batch, "door of b", second.accepted_at),
            "c": (second.batch, "door of b", second.accepted_at),
        }
        assert plant.inbox.size() == 0

    def test_batches_that_repeat_an_event_are_all_removed(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept_apart([entry("a")], [entry("b"), entry("a")], [entry("a")], [entry("b")])
        assert message.keys == ["a", "b"]

        assert str(process(listener, message)) == "won 2"

        assert plant.effects() == {"a": 1, "b": 1}
        assert plant.inbox.size() == 0

    def test_of_several_batches_those_that_are_unfinished_stay(self, plant):
        listener = plant.listener()
        message = plant.accept_apart([entry("a"), entry("b")], [entry("c")], [entry("d")])
        claim_by_hand(plant, "a", owner="listener-9")
        claim_by_hand(plant, "d", owner="listener-9")

        assert str(process(listener, message)) == "won 2, skipped 2 (busy listener-9)"

        assert [d["_id"] for d in plant.db["inbox"].find()] == [message.batches[0].batch, message.batches[2].batch]
        assert plant.unfinished() == {("a", "d1"), ("d", "d1")}

    def test_of_several_batches_one_that_is_gone_is_given_back_alone(self, plant):
        listener = plant.listener()
        message = plant.accept_apart([entry("a")], [entry("b")])
        plant.db["inbox"].delete_one({"_id": message.batches[0].batch})

        assert str(process(listener, message)) == "won 1, left 1"
        assert plant.claim_states() == {"b": "done by listener-1"}

    def test_of_several_batches_one_of_another_version_is_left_to_whoever_knows_it(self, plant):
        listener = plant.listener()
        message = plant.accept_apart([entry("a")], [entry("b")])
        plant.db["inbox"].update_one({"_id": message.batches[0].batch}, {"$set": {"v": 99}})

        assert str(process(listener, message)) == "won 1, left 1"
        assert plant.claim_states() == {"b": "done by listener-1"}
        assert [d["v"] for d in plant.db["inbox"].find()] == [99]

    def test_a_failure_is_of_its_own_batch_and_harms_none_of_the_others(self, plant):
        """G5."""
        listener = plant.listener("listener-1", fails_for("b"))
        before = utc_now() - timedelta(minutes=5)
        message = plant.accept_apart([entry("a")], [entry("b")], [entry("c")], accepted_at=[utc_now(), before, utc_now()])

        assert str(process(listener, message)) == "won 2, failed 1 (retrying)"

        failure = plant.failure("b")
        assert (failure["batch"], failure["door"], failure["accepted_at"]) == (message.batches[1].batch, "door of b", before)
        assert plant.effects() == {"a": 1, "c": 1}
        assert plant.inbox.size() == 0

    def test_a_batch_that_is_gone_is_no_proof_of_anything(self, plant):
        listener = plant.listener()
        message = plant.message([entry("a")], batch="0" * 26)

        assert str(process(listener, message)) == "left 1"
        assert plant.ledger() == {}
        assert plant.claim_states() == {}, "given back, and not marked"

    def test_an_event_that_the_batch_does_not_hold_is_given_back(self, plant):
        listener = plant.listener()
        message = plant.accept(entry("a"))
        more = plant.message([entry("a"), entry("b")], batch=message.batch)

        assert str(process(listener, more)) == "won 1, left 1"
        assert plant.claim_states() == {"a": "done by listener-1"}

    def test_a_delivery_with_a_part_of_its_batch_leaves_the_rest(self, plant):
        listener = plant.listener()
        message = plant.accept(entry("a"), entry("b"))

        assert str(process(listener, plant.message([entry("a")], batch=message.batch))) == "won 1"
        assert plant.inbox.size() == 1
        assert str(process(listener, plant.message([entry("b")], batch=message.batch))) == "won 1"
        assert plant.inbox.size() == 0

    @pytest.mark.parametrize("handlers", [(), (count_effect,)], ids=["stored", "handled"])
    def test_one_key_twice_in_a_delivery(self, plant, handlers):
        listener = plant.listener("listener-1", *handlers)
        message = plant.accept(entry("a"), entry("b"))
        both = plant.message([entry("a"), entry("a"), entry("b")], batch=message.batch)

        process(listener, both)

        assert plant.ledger() == {"a": "d1", "b": "d1"}
        assert plant.effects() == ({"a": 1, "b": 1} if handlers else {})
        assert plant.failures() == {}


class TestMarksAndRemoval:
    def test_redis_alone_removes_nothing(self, plant):
        """G1: a mark of done that MongoDB does not bear out leaves the batch where it is."""
        listener = plant.listener()
        message = plant.accept(entry("a"))
        plant.claims.complete(["a"], ["d1"], claim_id=new_claim_id(), owner="listener-9")

        assert str(process(listener, message)) == "skipped 1 (done listener-9)"
        assert plant.inbox.size() == 1
        assert plant.unfinished() == {("a", "d1")}

    def test_the_batch_stays_while_one_event_is_unfinished(self, plant):
        plenty = plant.listener("listener-1")
        message = plant.accept(entry("a"), entry("b"), entry("c"))
        claim_by_hand(plant, "b", owner="listener-9")

        process(plenty, message)

        assert plant.inbox.size() == 1
        plant.expire_leases()
        assert process(plenty, message).won == 1
        assert plant.inbox.size() == 0

    def test_failures_count_as_finished(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("no")))
        message = plant.accept(entry("a"))

        process(listener, message)

        assert plant.failures() == {("a", "d1"): "retrying"}
        assert plant.inbox.size() == 0


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


class TestTakeover:
    def test_a_dead_winner_s_open_transaction_does_not_hold_it_up(self, plant):
        """G4: the session in the claim is ended first."""
        listener = plant.listener("listener-2", count_effect)
        message = plant.accept(entry("a"))
        with plant.db.client.start_session() as dead:
            dead.start_transaction()
            plant.db["events"].insert_one({"_id": "a", "digest": "d1"}, session=dead)
            plant.db["effects"].insert_one({"_id": "a", "n": 1}, session=dead)
            claim_by_hand(plant, "a", owner="listener-1", session=bytes(dead.session_id["id"]).hex())
            plant.expire_leases()

            began = time.monotonic()
            tally = process(listener, message)

            assert str(tally) == "won 1"
            assert time.monotonic() - began < 2
            assert plant.effects() == {"a": 1}

    @pytest.mark.parametrize("kind", ["plain", "async"])
    def test_an_owner_that_was_only_paused_finds_itself_too_late(self, plant, kind):
        """G2, G3: its writes are rolled back, and it skips what the successor has committed."""
        gate = plant.gate()

        def waits(event, context):
            count_effect(event, context)
            gate.pass_through()
            context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 100}})

        async def waits_too(event, context):
            import asyncio

            await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)
            await asyncio.to_thread(gate.pass_through)
            await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 100}})

        old = plant.listener("listener-1", waits if kind == "plain" else waits_too)
        new = plant.listener("listener-2", count_effect)
        message = plant.accept(entry("a"), entry("b"))
        running = plant.start(old, message)
        gate.wait_entered()
        plant.expire_leases()

        began = time.monotonic()
        assert str(process(new, message)) == "won 2"
        assert time.monotonic() - began < 3
        gate.open()

        assert str(running.result(10)) == "skipped 2 (done listener-2)"
        assert plant.effects() == {"a": 1, "b": 1}
        assert plant.claim_states() == {"a": "done by listener-2", "b": "done by listener-2"}
        assert plant.failures() == {}

    def test_an_owner_that_slept_through_its_successor_s_failure_runs_nothing(self, plant):
        """G3: it was paused between its claim and the check; the claim is another's, though the failure says that it is due."""
        ran = []
        old = plant.listener("listener-1", lambda event, _context: ran.append(event.key))
        new = plant.listener("listener-2", always(ValueError("the successor's")))
        message = plant.accept(entry("a"), entry("b"))

        def meanwhile():
            plant.expire_leases()
            process(new, plant.message([entry("a")], batch=message.batch))
            plant.make_due()

        before(old.failures, "of_keys", meanwhile)

        assert str(process(old, message)) == "won 1, left 1"
        assert ran == ["b"]
        assert (plant.failure("a")["attempts"], plant.failure("a")["listener"]) == (1, "listener-2")

    def test_what_was_taken_over_is_suspect_and_runs_alone_after_its_start_is_counted(self, plant):
        """G5"""
        seen = []

        def function(event, context):
            seen.append((event.key, plant.elsewhere(plant.failures), plant.elsewhere(plant.starts)))
            count_effect(event, context)

        listener = plant.listener("listener-2", function)
        message = plant.accept(entry("a"), entry("b"))
        claim_by_hand(plant, "b", owner="listener-1")
        plant.expire_leases()

        assert process(listener, message).won == 2

        assert seen == [("a", {}, {}), ("b", {("b", "d1"): "retrying"}, {("b", "d1"): 1})]
        assert plant.failures() == {}
        assert plant.effects() == {"a": 1, "b": 1}

    def test_a_takeover_is_no_attempt(self, plant):
        """G5"""
        listener = plant.listener("listener-2", raises(ValueError("once")))
        message = plant.accept(entry("a"))
        claim_by_hand(plant, "a", owner="listener-1")
        plant.expire_leases()

        process(listener, message)

        assert (plant.failure("a")["attempts"], plant.failure("a")["starts"]) == (1, 0), "the raise alone"

    def test_without_handlers_nobody_is_suspect(self, plant):
        listener = plant.listener("listener-2")
        message = plant.accept(entry("a"))
        claim_by_hand(plant, "a", owner="listener-1")
        plant.expire_leases()

        assert process(listener, message).won == 1
        assert plant.failures() == {}

    @pytest.mark.parametrize(("forwards", "starts"), [(1, {}), (2, {}), (3, {("a", "d1"): 1})])
    def test_a_batch_that_was_sent_three_times_is_suspect(self, plant, forwards, starts):
        seen = []
        listener = plant.listener("listener-1", lambda _event, _context: seen.append(plant.elsewhere(plant.starts)))

        assert process(listener, plant.accept(entry("a"), forwards=forwards)).won == 1
        assert seen == [starts]

    def test_after_too_many_starts_that_never_ended_it_is_dead_without_another_run(self, plant):
        """G5: an event that kills its process ends dead, its neighbours are processed."""
        listener = plant.listener("listener-1", always(AssertionError("must not run")), count_effect)
        message = plant.accept(entry("a"))
        store_starts(plant, "a", 5)

        assert str(process(listener, plant.message([entry("a")], batch=message.batch, forwards=9))) == "failed 1 (dead)"
        failure = plant.failure("a")
        assert (failure["state"], failure["starts"]) == ("dead", 5)
        assert "kills or hangs" in failure["reason"]
        assert failure["body"]["data"] == {"digest": "d1"}

    def test_lost_starts_and_raised_errors_count_together(self, plant):
        listener = plant.listener("listener-1", always(ValueError("no")))
        message = plant.accept(entry("a"))
        store_starts(plant, "a", 3)
        suspect = plant.message([entry("a")], batch=message.batch)

        assert str(process(listener, suspect)) == "failed 1 (retrying)"
        assert (plant.failure("a")["attempts"], plant.failure("a")["starts"]) == (1, 3)
        assert str(process(listener, plant.retry(entry("a")))) == "failed 1 (retrying)"
        assert str(process(listener, plant.retry(entry("a")))) == "failed 1 (dead)", "2 raised, 3 never ended: 5"

    def test_a_claim_that_is_another_s_is_not_committed(self, plant, make_settings):
        """Work is given up as soon as renewal sees another claim id."""
        settings = make_settings(lease_ms=300, redis_url=plant.settings.redis_url, mongo_url=plant.settings.mongo_url)
        gate = plant.gate()
        ran = []

        def function(event, context):
            ran.append(event.key)
            count_effect(event, context)
            gate.pass_through()

        listener = plant.listener("listener-1", function, settings=settings)
        message = plant.accept(entry("a"), entry("b"))
        running = plant.start(listener, message)
        gate.wait_entered()
        for key in "ab":
            eventually(lambda key=key: taken_from_its_owner(plant, key, owner="listener-2"), 5)
        eventually(lambda: len(listener.renewal._lost) == 2, 5)
        gate.open()

        tally = running.result(10)

        assert str(tally) == "left 2"
        assert set(ran) == {ran[0]}, "the second one was not even begun"
        assert plant.claim_states() == {"a": "processing by listener-2", "b": "processing by listener-2"}


class TestRivalAfterRedisForgot:
    @pytest.mark.parametrize("overrides", [{"max_handler_s": 0.5}])
    def test_a_lock_that_another_holds_is_nobody_s_attempt(self, plant):
        """G5: after FLUSHALL nobody knows the rival's session; its lock keeps the handler from running, so it cannot have failed."""
        ran = []
        listener = plant.listener("listener-2", lambda event, _context: ran.append(event.key))
        message = plant.accept(entry("a"), entry("b"))
        with plant.db.client.start_session() as rival:
            rival.start_transaction()
            plant.db["events"].insert_one({"_id": "a", "digest": "d1"}, session=rival)

            tally = process(listener, message)

            assert str(tally) == "won 1, left 1"
            assert set(ran) == {"b"}
            assert plant.failures() == {}
            assert plant.claim_states() == {"b": "done by listener-2"}
            rival.abort_transaction()
        assert str(process(listener, message)) == "won 1, skipped 1 (done listener-2)"

    @pytest.mark.parametrize("overrides", [{"max_handler_s": 0.5}])
    def test_nor_is_it_for_a_suspect(self, plant):
        """G5"""
        listener = plant.listener("listener-2", count_effect)
        message = plant.accept(entry("a"), forwards=3)
        with plant.db.client.start_session() as rival:
            rival.start_transaction()
            plant.db["events"].insert_one({"_id": "a", "digest": "d1"}, session=rival)

            process(listener, message)

            assert (plant.failure("a")["attempts"], plant.failure("a")["starts"]) == (0, 0)
            assert plant.failure("a")["state"] == "retrying"
            rival.abort_transaction()
        assert str(process(listener, plant.retry(entry("a")))) == "won 1"

    def test_two_winners_commit_once(self, plant):
        """G2: FLUSHALL in the middle of a handler."""
        gate = plant.gate()

        def waits(event, context):
            gate.pass_through()
            count_effect(event, context)

        first, second = plant.listener("listener-1", waits), plant.listener("listener-2", waits)
        message = plant.accept(entry("a"), entry("b"))
        one = plant.start(first, message)
        gate.wait_entered()
        plant.redis.flushdb()
        two = plant.start(second, message)
        eventually(lambda: plant.redis.keys("dedup:{*}:[^=]*"), 5)
        gate.open()

        won = one.result(20).won + two.result(20).won

        assert won == 2
        assert plant.effects() == {"a": 1, "b": 1}
        assert plant.failures() == {}


class TestConflicts:
    """G6: the same key with other content is quarantined with its body, whenever it arrives."""

    def test_after_the_first_is_done(self, plant):
        listener = plant.listener("listener-1")
        process(listener, plant.accept(entry("a", "d1")))

        assert str(process(listener, plant.accept(entry("a", "d2"), entry("b")))) == "won 1, failed 1 (conflict)"

        failure = plant.failure("a", "d2")
        assert (failure["state"], failure["other_digest"], failure["body"]["data"]) == ("conflict", "d1", {"digest": "d2"})
        assert plant.ledger() == {"a": "d1", "b": "d1"}
        assert plant.inbox.size() == 0

    def test_after_flushall(self, plant):
        listener = plant.listener("listener-1")
        process(listener, plant.accept(entry("a", "d1")))
        plant.redis.flushdb()

        assert str(process(listener, plant.accept(entry("a", "d2")))) == "failed 1 (conflict)"
        assert plant.failure("a", "d2")["other_digest"] == "d1"
        assert plant.claim_states() == {}, "the second content does not keep the key"

    def test_while_the_first_is_handled(self, plant):
        gate = plant.gate()

        def waits(event, context):
            count_effect(event, context)
            gate.pass_through()

        first, second = plant.listener("listener-1", waits), plant.listener("listener-2", count_effect)
        running = plant.start(first, plant.accept(entry("a", "d1")))
        gate.wait_entered()
        message = plant.accept(entry("a", "d2"))

        process(second, message)
        gate.open()
        assert running.result(10).won == 1
        process(second, message)  # the sweeper sends again what is not finished

        assert plant.failure("a", "d2")["other_digest"] == "d1"
        assert plant.ledger() == {"a": "d1"}
        assert plant.effects() == {"a": 1}
        assert plant.inbox.size() == 0

    def test_both_won_because_redis_forgot(self, plant):
        gate = plant.gate()

        def waits(event, context):
            gate.pass_through()
            count_effect(event, context)

        first, second = plant.listener("listener-1", waits), plant.listener("listener-2", waits)
        one = plant.start(first, plant.accept(entry("a", "d1")))
        gate.wait_entered()
        plant.redis.flushdb()
        two = plant.start(second, plant.accept(entry("a", "d2")))
        eventually(lambda: plant.redis.keys("dedup:{*}:[^=]*"), 5)
        gate.open()
        one.result(20)
        two.result(20)

        [stands] = plant.ledger().values()
        [(pair, state)] = plant.failures().items()
        assert (pair, state) == (("a", {"d1": "d2", "d2": "d1"}[stands]), "conflict")
        assert plant.effects() == {"a": 1}

    def test_no_two_contents_quarantine_each_other(self, plant):
        """One stands. A claim alone is no proof that the other content will ever be processed: its holder may give it back."""
        listener = plant.listener("listener-1")
        one, two = plant.accept(entry("a", "d1")), plant.accept(entry("a", "d2"))
        holder = claim_by_hand(plant, "a", "d1")
        process(listener, two)
        plant.claims.release(["a"], claim_id=holder)
        claim_by_hand(plant, "a", "d2")
        process(listener, one)
        plant.redis.flushdb()

        process(listener, one)
        process(listener, two)

        assert len(plant.ledger()) == 1
        assert list(plant.failures().values()) == ["conflict"]

    def test_a_claim_for_other_content_that_nobody_holds_any_more_does_not_keep_it_out(self, plant):
        """G4: its owner died in its transaction; the claim's key in Redis lives far longer than the lease."""
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a", "d2"))
        with plant.db.client.start_session() as dead:
            dead.start_transaction()
            plant.db["events"].insert_one({"_id": "a", "digest": "d1"}, session=dead)
            claim_by_hand(plant, "a", "d1", session=bytes(dead.session_id["id"]).hex())
            assert str(process(listener, message)) == "left 1"
            assert plant.claim_states() == {"a": "processing by listener-9"}, "its lease is running"
            plant.expire_leases()

            began = time.monotonic()
            process(listener, message)
            assert str(process(listener, message)) == "won 1"

            assert time.monotonic() - began < 2
        assert plant.ledger() == {"a": "d2"}

    def test_a_claim_with_nonsense_for_a_session_is_taken_over(self, plant):
        listener = plant.listener("listener-1", count_effect)
        for key, session in (("a", "no hex at all"), ("b", "ab12"), ("c", "é" * 16)):
            claim_by_hand(plant, key, session=session)
        plant.expire_leases()

        assert process(listener, plant.accept(entry("a"), entry("b"), entry("c"))).won == 3

    def test_one_that_was_retrying_when_the_other_was_committed_becomes_a_conflict(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("once")))
        process(listener, plant.accept(entry("a", "d2")))
        assert plant.failures() == {("a", "d2"): "retrying"}
        commit_by_hand(plant, "a", "d1")

        process(listener, plant.retry(entry("a", "d2")))

        assert plant.failures() == {("a", "d2"): "conflict"}
        assert plant.failure("a", "d2")["other_digest"] == "d1"
        assert plant.failure("a", "d2")["due_at"] is None

    def test_of_two_that_are_retrying_the_first_goes_on(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("1"), ValueError("2")))
        store_starts(plant, "a", 0, digest="d1")
        eventually(lambda: utc_now() > plant.failure("a", "d1")["first_failed_at"], 1)
        store_starts(plant, "a", 0, digest="d2")

        process(listener, plant.retry(entry("a", "d2")))
        assert plant.failures() == {("a", "d1"): "retrying", ("a", "d2"): "conflict"}

        for _ in range(3):
            process(listener, plant.retry(entry("a", "d1")))
        assert plant.ledger() == {"a": "d1"}
        assert plant.failures() == {("a", "d2"): "conflict"}

    def test_a_dead_one_blocks_the_other(self, plant):
        listener = plant.listener("listener-1", always(PermanentFailure("no")))
        process(listener, plant.accept(entry("a", "d1")))

        assert str(process(listener, plant.accept(entry("a", "d2")))) == "failed 1 (conflict)"
        assert plant.failures() == {("a", "d1"): "dead", ("a", "d2"): "conflict"}

    def test_a_mark_that_mongodb_refutes_is_no_conflict(self, plant):
        """MongoDB was restored to an older state while Redis remembers: the second content is the only one there is."""
        listener = plant.listener("listener-1")
        plant.claims.complete(["a"], ["d1"], claim_id=new_claim_id(), owner="listener-9")
        message = plant.accept(entry("a", "d2"))

        process(listener, message)
        process(listener, message)

        assert plant.ledger() == {"a": "d2"}
        assert plant.failures() == {}

    def test_a_superseded_or_rejected_digest_is_finished(self, plant):
        listener = plant.listener("listener-1")
        commit_by_hand(plant, "a", "d3", superseded=["d1"], rejected=["d2"])

        for digest in ("d1", "d2", "d3"):
            assert process(listener, plant.accept(entry("a", digest))).skipped == 1
            plant.redis.flushdb()
        assert plant.failures() == {}
        assert plant.inbox.size() == 0


class TestIgnoredConflicts:
    @pytest.fixture
    def overrides(self, tmp_path):
        (tmp_path / "ignore.toml").write_text(f'[types."{TYPE}"]\non_conflict = "ignore"\n')
        return {"policies": tmp_path / "ignore.toml"}

    def test_other_content_is_counted_as_refused_and_finished(self, plant):
        listener = plant.listener("listener-1")
        process(listener, plant.accept(entry("a", "d1")))

        assert process(listener, plant.accept(entry("a", "d2"))).skipped == 1

        assert plant.failures() == {}
        assert plant.db["events"].find_one()["rejected"] == ["d2"]
        assert plant.inbox.size() == 0

    def test_while_the_first_is_retried_it_waits(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("once")))
        process(listener, plant.accept(entry("a", "d1")))
        second = plant.accept(entry("a", "d2"))

        assert process(listener, second).failed == 0
        assert plant.unfinished() == {("a", "d2")}
        process(listener, plant.retry(entry("a", "d1")))
        process(listener, second)

        assert plant.db["events"].find_one()["rejected"] == ["d2"]
        assert plant.inbox.size() == 0

    def test_when_the_first_is_dead_it_is_quarantined_and_does_not_wait_for_ever(self, plant):
        """G7: an event that can never be finished would fill the inbox."""
        listener = plant.listener("listener-1", always(PermanentFailure("no")))
        process(listener, plant.accept(entry("a", "d1")))

        process(listener, plant.accept(entry("a", "d2")))

        assert plant.failures() == {("a", "d1"): "dead", ("a", "d2"): "conflict"}
        assert plant.inbox.size() == 0


class TestTakenKeys:
    def test_mine(self, plant):
        """A commit whose answer was lost is recognised by its claim id."""
        listener = plant.listener("listener-1")
        message = plant.accept(entry("a"), entry("b"))
        losing_the_reply(listener.ledger, "insert", StoreUnavailable("lost"))
        assert str(process(listener, message)) == "left 2"

        assert str(process(listener, message)) == "skipped 2 (done listener-1)"
        assert plant.ledger() == {"a": "d1", "b": "d1"}

    def test_taken_between_check_and_commit(self, plant):
        first = plant.listener("listener-1")
        message = plant.accept(entry("a"), entry("b"), entry("c"))
        before(first.ledger, "insert", lambda: (commit_by_hand(plant, "a", "d1"), commit_by_hand(plant, "b", "d9")))

        assert str(process(first, message)) == "won 1, skipped 1 (done somebody), failed 1 (conflict)"
        assert plant.ledger() == {"a": "d1", "b": "d9", "c": "d1"}
        assert plant.failures() == {("b", "d1"): "conflict"}

    def test_taken_between_check_and_a_transaction(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), entry("b"), entry("c"))
        before(listener.ledger, "insert", lambda: (commit_by_hand(plant, "a", "d1"), commit_by_hand(plant, "b", "d9")))

        assert str(process(listener, message)) == "won 1, skipped 1 (done somebody), failed 1 (conflict)"
        assert plant.effects() == {"c": 1}

    def test_taken_and_gone_again_is_left(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        commit = commit_by_hand
        before(listener.ledger, "insert", lambda: commit(plant, "a", "d1"))
        before(listener.ledger, "look", lambda: None, lambda: plant.db["events"].delete_one({"_id": "a"}))

        assert str(process(listener, message)) == "left 1"
        assert plant.claim_states() == {}
        assert plant.unfinished() == {("a", "d1")}


class TestOutages:
    """G5: nobody's attempt; G1: nothing lost."""

    def test_mongodb_away_before_the_commit_leaves_the_events(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        failing(listener.failures, "of_keys", StoreUnavailable("away"))

        assert str(process(listener, message)) == "left 1"
        assert plant.claim_states() == {}
        assert plant.failures() == {}
        assert str(process(listener, message)) == "won 1"

    def test_redis_away_at_the_claim_leaves_the_events(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        failing(listener.claims_of("test"), "claim", ClaimsUnavailable("away"))

        assert str(process(listener, message)) == "left 1"
        assert str(process(listener, message)) == "won 1"

    def test_a_claim_whose_answer_was_lost_is_given_back(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), entry("b"))
        losing_the_reply(listener.claims_of("test"), "claim", ClaimsUnavailable("lost"))

        assert str(process(listener, message)) == "left 2"
        assert plant.claim_states() == {}

    def test_redis_away_at_the_end_harms_nothing(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        failing(listener.claims_of("test"), "complete", ClaimsUnavailable("away"))

        assert str(process(listener, message)) == "won 1"
        assert plant.inbox.size() == 0

    def test_an_outage_in_a_solo_run_takes_its_start_back_when_mongodb_answers(self, plant):
        """A start that an outage ended is remembered in the process, and taken back before the next delivery."""
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), forwards=3)
        failing(listener.ledger, "insert", StoreUnavailable("away"))
        failing(listener.failures, "end_start", StoreUnavailable("away"))

        assert str(process(listener, message)) == "left 1"
        assert plant.failure("a")["starts"] == 1
        assert listener.unended

        assert str(process(listener, plant.message([entry("b")], batch=plant.accept(entry("b")).batch))) == "won 1"
        assert (plant.failure("a")["starts"], plant.failure("a")["attempts"]) == (0, 0)
        assert plant.failure("a")["due_at"] <= utc_now()
        assert not listener.unended

    def test_a_start_whose_note_got_no_answer_is_taken_back(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), forwards=3)
        losing_the_reply(listener.failures, "record_start", StoreUnavailable("lost"))

        assert str(process(listener, message)) == "left 1"
        process(listener, plant.accept(entry("b")))

        assert (plant.failure("a")["starts"], plant.failure("a")["attempts"]) == (0, 0)

    def test_a_start_that_was_never_noted_takes_nobody_else_s_back(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        store_starts(plant, "a", 2)
        failing(listener.failures, "record_start", StoreUnavailable("away"))

        process(listener, plant.message([entry("a")], batch=message.batch))
        process(listener, plant.accept(entry("b")))

        assert plant.failure("a")["starts"] == 2, "two runs began and never ended"

    def test_a_start_is_taken_back_once_although_the_answer_was_lost(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        store_starts(plant, "a", 2)
        failing(listener.ledger, "insert", StoreUnavailable("away"))
        losing_the_reply(listener.failures, "end_start", StoreUnavailable("lost"))

        process(listener, plant.message([entry("a")], batch=message.batch))
        process(listener, plant.accept(entry("b")))

        assert plant.failure("a")["starts"] == 2

    def test_a_raise_whose_record_got_no_answer_ends_its_start_once(self, plant):
        listener = plant.listener("listener-1", always(ValueError("no")))
        message = plant.accept(entry("a"))
        store_starts(plant, "a", 2)
        losing_the_reply(listener.failures, "record_attempt", StoreUnavailable("lost"))

        process(listener, plant.message([entry("a")], batch=message.batch))
        process(plant.listener("listener-2"), plant.accept(entry("b")))
        process(listener, plant.accept(entry("c")))

        assert (plant.failure("a")["starts"], plant.failure("a")["attempts"]) == (2, 1)

    def test_the_outage_of_a_failure_s_record_counts_nothing(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("no")))
        message = plant.accept(entry("a"))
        failing(listener.failures, "record_attempt", StoreUnavailable("away"))

        assert str(process(listener, message)) == "left 1"
        assert plant.failures() == {}
        assert plant.claim_states() == {}
        assert str(process(listener, message)) == "won 1"

    def test_an_unexpected_error_gives_back_what_was_claimed(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        failing(listener.failures, "of_keys", RuntimeError("a bug"))

        with pytest.raises(RuntimeError):
            process(listener, message)

        assert plant.claim_states() == {}


class TestUnknownCommits:
    def test_an_answer_that_was_lost_once_is_asked_for_again(self, plant):
        listener = plant.listener("listener-1", count_effect)
        commits = lose_commits(listener, 1)

        assert str(process(listener, plant.accept(entry("a"), entry("b")))) == "won 2"
        assert commits[0] == 2
        assert plant.effects() == {"a": 1, "b": 1}

    def test_a_commit_nobody_tells_about_is_looked_up_in_the_ledger(self, plant, monkeypatch):
        """Committed, though the answer never came: ours, by its claim id."""
        monkeypatch.setattr("workers.transaction.COMMIT_RETRY_S", 0.0)
        listener = plant.listener("listener-1", count_effect)
        lose_commits(listener, 1)

        assert str(process(listener, plant.accept(entry("a")))) == "won 1"
        assert plant.effects() == {"a": 1}

    def test_a_batch_s_commit_nobody_tells_about(self, plant, monkeypatch):
        monkeypatch.setattr("workers.transaction.COMMIT_RETRY_S", 0.0)
        listener = plant.listener("listener-1", count_effect)
        lose_commits(listener, 1)

        assert str(process(listener, plant.accept(entry("a"), entry("b"), entry("c")))) == "won 3"
        assert plant.effects() == {"a": 1, "b": 1, "c": 1}

    def test_a_commit_that_never_was_is_left(self, plant, monkeypatch):
        monkeypatch.setattr("workers.transaction.COMMIT_RETRY_S", 0.0)
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        lose_commits(listener, 1, happens=False)

        assert str(process(listener, message)) == "left 1"
        assert plant.claim_states() == {}
        assert plant.ledger() == {}
        end_all_transactions(plant)
        assert str(process(listener, message)) == "won 1"


class TestClocks:
    def test_after_redis_clock_went_back_attempts_are_still_counted(self, plant):
        """G5: a failure whose token lies in the future would be tried for ever, and never be dead."""
        listener = plant.listener("listener-1", always(ValueError("no")))
        process(listener, plant.accept(entry("a")))
        plant.turn_clock_back()

        for _ in range(4):
            process(listener, plant.retry(entry("a")))

        assert (plant.failure("a")["state"], plant.failure("a")["attempts"]) == ("dead", 5)

    def test_after_redis_clock_went_back_a_running_claim_is_taken_over(self, plant):
        listener = plant.listener("listener-2", count_effect)
        message = plant.accept(entry("a"))
        claim_by_hand(plant, "a", owner="listener-1")
        plant.turn_clock_back()

        assert str(process(listener, message)) == "won 1"


class TestRenewal:
    def test_a_claim_that_was_given_back_while_it_was_renewed_does_not_come_back(self, plant):
        """G4: or nobody could win the key for a lease, since nobody would hold it."""
        listener = plant.listener("listener-1", count_effect)
        claims = listener.claims_of("test")
        claim_id = claim_by_hand(plant, "a", owner="listener-1")
        [found] = plant.claims.inspect(["a"])
        held = Held(key="a", digest="d1", claim_id=claim_id, token=found.token, lease_ms=60_000, owner="listener-1")

        def given_back_meanwhile():
            listener.renewal.drop(claim_id, ["a"])
            plant.claims.release(["a"], claim_id=claim_id)

        before(claims, "renew", given_back_meanwhile)
        with listener.renewal.hold(claims, [held]):
            listener.renewal._renew_all()

        assert plant.claim_states() == {}

    def test_a_claim_that_was_completed_while_it_was_renewed_stays_done(self, plant):
        listener = plant.listener("listener-1", count_effect)
        claims = listener.claims_of("test")
        claim_id = claim_by_hand(plant, "a", owner="listener-1")
        held = Held(key="a", digest="d1", claim_id=claim_id, token=1, lease_ms=60_000, owner="listener-1")

        def completed_meanwhile():
            listener.renewal.drop(claim_id, ["a"])
            plant.claims.complete(["a"], ["d1"], claim_id=claim_id, owner="listener-1")

        before(claims, "renew", completed_meanwhile)
        with listener.renewal.hold(claims, [held]):
            listener.renewal._renew_all()
            assert not listener.renewal.lost(claim_id, "a")

        assert plant.claim_states() == {"a": "done by listener-1"}

    def test_a_handler_slower_than_its_lease_keeps_its_claim(self, plant, make_settings):
        """Renewal runs beside the handler; a claim that Redis forgot is made again."""
        settings = make_settings(lease_ms=300, redis_url=plant.settings.redis_url, mongo_url=plant.settings.mongo_url)
        gate = plant.gate()

        def waits(event, context):
            gate.pass_through()
            count_effect(event, context)

        slow, other = plant.listener("listener-1", waits, settings=settings), plant.listener("listener-2", count_effect)
        message = plant.accept(entry("a"))
        running = plant.start(slow, message)
        gate.wait_entered()
        plant.redis.flushdb()
        eventually(lambda: plant.claim_states() == {"a": "processing by listener-1"}, 5)
        [first] = plant.claims.inspect(["a"])
        eventually(lambda: plant.claims.inspect(["a"])[0].deadline_ms > first.deadline_ms + 600, 5)

        assert str(process(other, message)) == "skipped 1 (busy listener-1)"
        gate.open()
        assert str(running.result(10)) == "won 1"
        assert plant.effects() == {"a": 1}

    def test_a_handler_that_outlives_its_time_is_not_renewed_and_taken_over(self, plant, make_settings):
        """G4, G5: a hanging handler's event is somebody else's after its time and the lease."""
        settings = make_settings(lease_ms=300, max_handler_s=0.3, redis_url=plant.settings.redis_url, mongo_url=plant.settings.mongo_url)
        gate = plant.gate()

        def hangs(_event, _context):
            gate.pass_through()

        hung, other = plant.listener("listener-1", hangs, settings=settings), plant.listener("listener-2", count_effect)
        message = plant.accept(entry("a"))
        running = plant.start(hung, message)
        gate.wait_entered()

        eventually(lambda: process(other, message).won == 1, 5)
        gate.open()
        running.result(10)

        assert plant.effects() == {"a": 1}
        assert plant.ledger() == {"a": "d1"}


class TestStale:
    @pytest.fixture
    def overrides(self, tmp_path):
        (tmp_path / "short.toml").write_text(f'[types."{TYPE}"]\nretention_s = 2592000\n')
        return {"policies": tmp_path / "short.toml"}

    def test_an_event_older_than_its_retention_is_stale(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), accepted_at=utc_now() - timedelta(days=31))

        assert str(process(listener, message)) == "failed 1 (stale)"
        assert plant.failures() == {("a", "d1"): "stale"}
        assert plant.failure("a")["body"]["data"] == {"digest": "d1"}
        assert plant.effects() == {}
        assert plant.inbox.size() == 0

    def test_one_that_is_in_the_ledger_is_not(self, plant):
        listener = plant.listener("listener-1", count_effect)
        commit_by_hand(plant, "a", "d1")

        assert process(listener, plant.accept(entry("a"), accepted_at=utc_now() - timedelta(days=31))).skipped == 1
        assert plant.failures() == {}

    def test_a_younger_one_is_processed_and_expires(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), accepted_at=utc_now() - timedelta(days=29))

        assert str(process(listener, message)) == "won 1"
        assert plant.db["events"].find_one()["expires_at"] == message.batches[0].accepted_at + timedelta(days=30)

    def test_of_several_batches_only_what_is_older_is_stale(self, plant):
        listener = plant.listener()
        message = plant.accept_apart([entry("old")], [entry("new")], accepted_at=[utc_now() - timedelta(days=31), utc_now()])

        assert str(process(listener, message)) == "won 1, failed 1 (stale)"
        assert plant.failures() == {("old", "d1"): "stale"}
        assert plant.ledger() == {"new": "d1"}

    def test_one_that_was_retried_for_too_long_becomes_stale(self, plant):
        listener = plant.listener("listener-1", always(RetryLater(1)))
        process(listener, plant.accept(entry("a")))
        old = utc_now() - timedelta(days=31)
        plant.make_due()

        process(listener, plant.message([entry("a")], batch=None, accepted_at=old))

        assert plant.failures() == {("a", "d1"): "stale"}


class TestSharing:
    @pytest.mark.parametrize("overrides", [{"slice_target_ms": 100}])
    def test_listeners_share_a_batch_of_slow_events(self, plant):
        """Slow handlers are claimed in slices, begun at different places: no listener takes it all."""

        def slow(event, context):
            time.sleep(0.02)
            count_effect(event, context)

        listeners = [plant.listener(f"listener-{i}", slow) for i in (1, 2, 3)]
        message = plant.accept(*(entry(f"k{i}") for i in range(60)))

        tallies = [f.result(60) for f in [plant.start(one, message) for one in listeners]]

        assert sum(t.won for t in tallies) == 60
        assert max(t.won for t in tallies) <= 30
        assert plant.effects() == {f"k{i}": 1 for i in range(60)}

    @pytest.mark.parametrize("overrides", [{"async_limit": 2}])
    @pytest.mark.parametrize(
        ("waited", "last", "first_slice"),
        [(timedelta(0), TYPE, 4), (timedelta(seconds=2), TYPE, 16), (timedelta(seconds=2), "plain.one", 4)],
        ids=["just accepted", "waited", "waited, with a plain one behind them"],
    )
    def test_async_events_that_have_waited_are_claimed_more_at_a_time(self, plant, monkeypatch, waited, last, first_slice):
        claimed: list[int] = []

        def counted(run, events, *args, **named):
            claimed.append(len(events))
            return claim(run, events, *args, **named)

        async def function(event, context): ...

        monkeypatch.setattr("workers.pipeline.claim", counted)
        plain = Handler(name="p", pattern="plain.one", function=count_effect)
        listener = plant.listener("listener-1", function, plain)
        listener.pace.note(TYPE, 125, events=2, at_once=2)  # rounds of 125 ms: two of them, or eight for a second

        entries = [*(entry(f"k{i}") for i in range(19)), entry("last", type=last)]
        tally = process(listener, plant.accept(*entries, accepted_at=utc_now() - waited))

        assert (tally.won, claimed[0]) == (20, first_slice)


# ---------------------------------------------------------------------------------------------------------------- helpers


def document_of(plant: Plant, message):
    from app.stores.records import inbox_document

    return inbox_document(message.batch, plant.batches[message.batch], door="test", accepted_at=message.batches[0].accepted_at)


def claim_by_hand(plant: Plant, key: str, digest: str = "d1", *, owner: str = "listener-9", session: str = "") -> str:
    """Somebody claims a key and does nothing. Returns the claim id."""
    claim_id = new_claim_id()
    [answer] = plant.claims.claim([key], [digest], claim_id=claim_id, owner=owner, lease_ms=60_000, sessions=[session])
    assert answer.outcome == "won"
    return claim_id


def taken_from_its_owner(plant: Plant, key: str, *, owner: str) -> bool:
    """Redis forgets a claim, and another's comes in its place; False when a renewal was quicker."""
    plant.redis.delete(*plant.redis.keys(f"dedup:*:{key}"))
    [answer] = plant.claims.claim([key], ["d1"], claim_id=new_claim_id(), owner=owner, lease_ms=60_000)
    return answer.outcome == "won"


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


def failing(store: object, method: str, error: Exception) -> None:
    """The next call of a method raises, and does nothing."""
    _once(store, method, lambda _call: _raise(error))


def losing_the_reply(store: object, method: str, error: Exception) -> None:
    """The next call of a method does what it should, and raises."""

    def act(call):
        call()
        raise error

    _once(store, method, act)


def before(store: object, method: str, *actions) -> None:
    """Something happens just before the next calls of a method: an action for each of them."""
    rest = list(actions)
    original = getattr(store, method)

    def wrapped(*args, **kwargs):
        if rest:
            rest.pop(0)()
        return original(*args, **kwargs)

    setattr(store, method, wrapped)


def _once(store: object, method: str, act) -> None:
    original = getattr(store, method)

    def wrapped(*args, **kwargs):
        setattr(store, method, original)
        return act(lambda: original(*args, **kwargs))

    setattr(store, method, wrapped)


def _raise(error: Exception) -> None:
    raise error


def lose_commits(runtime, times: int, *, happens: bool = True) -> list[int]:
    """The answers to the next commits are lost; counts commits. Without ``happens``, the commits are lost themselves."""
    client = runtime.db.client
    start_session = client.start_session
    count = [0]

    def start(*args, **kwargs):
        session = start_session(*args, **kwargs)
        commit = session.commit_transaction

        def committing():
            count[0] += 1
            if count[0] > times:
                return commit()
            if happens:
                commit()
            error = AutoReconnect("the reply was lost")
            error._add_error_label("UnknownTransactionCommitResult")
            if not happens:
                from pymongo.synchronous.client_session import _TxnState

                session._transaction.state = _TxnState.COMMITTED
            raise error

        session.commit_transaction = committing
        return session

    client.start_session = start
    return count
