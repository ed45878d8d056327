"""A delivery's way through listeners, on real Valkey and MongoDB: claims renewed, taken over and forgotten."""

import time

import pytest

from app.claims.store import Held, new_claim_id
from tests.support.mishaps import before
from tests.support.pipelines import Plant, always, claim_by_hand, count_effect, entry, raises, store_starts
from tests.support.waiting import eventually
from workers.pipeline import process


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


# ---------------------------------------------------------------------------------------------------------------- helpers


def taken_from_its_owner(plant: Plant, key: str, *, owner: str) -> bool:
    """Redis forgets a claim, and another's comes in its place; False when a renewal was quicker."""
    plant.redis.delete(*plant.redis.keys(f"dedup:*:{key}"))
    [answer] = plant.claims.claim([key], ["d1"], claim_id=new_claim_id(), owner=owner, lease_ms=60_000)
    return answer.outcome == "won"
