"""A delivery's way through listeners, on real Valkey and MongoDB: what is stored, marked, removed, stale, and shared among them."""

import time
from datetime import timedelta

import pytest

from app.claims.store import new_claim_id
from app.stores.records import utc_now
from tests.support.pipelines import TYPE, always, claim_by_hand, commit_by_hand, count_effect, document_of, entry, raises
from workers.claiming import claim
from workers.handlers import Handler, RetryLater
from workers.pipeline import process


def fails_for(key: str):
    """A handler that has its effect, and then raises for one event."""

    def function(event, context):
        count_effect(event, context)
        if event.key == key:
            raise ValueError(key)

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
