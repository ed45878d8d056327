"""A delivery's way through listeners, on real Valkey and MongoDB: one key with several contents, and what keeps a key taken."""

import time

import pytest

from app.claims.store import new_claim_id
from app.errors import StoreUnavailable
from app.stores.records import utc_now
from tests.support.mishaps import before, losing_the_reply
from tests.support.pipelines import TYPE, always, claim_by_hand, commit_by_hand, count_effect, entry, raises, store_starts
from tests.support.waiting import eventually
from workers.handlers import PermanentFailure
from workers.pipeline import process


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

    def test_other_content_is_skipped_and_finished(self, plant):
        listener = plant.listener("listener-1")
        process(listener, plant.accept(entry("a", "d1")))

        assert process(listener, plant.accept(entry("a", "d2"))).skipped == 1

        assert plant.failures() == {}
        assert "rejected" not in plant.db["events"].find_one()
        assert plant.inbox.size() == 0

    def test_while_the_first_is_retried_it_waits(self, plant):
        listener = plant.listener("listener-1", raises(ValueError("once")))
        process(listener, plant.accept(entry("a", "d1")))
        second = plant.accept(entry("a", "d2"))

        assert process(listener, second).failed == 0
        assert plant.unfinished() == {("a", "d2")}
        process(listener, plant.retry(entry("a", "d1")))
        process(listener, second)

        assert plant.ledger() == {"a": "d1"}
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
