"""A delivery's way through listeners, on real Valkey and MongoDB: stores that are away, or do not say whether they have committed."""

import threading

import pytest
from pymongo.errors import AutoReconnect

from app.errors import RedisUnavailable, StoreUnavailable
from app.stores.records import utc_now
from tests.support.mishaps import failing, losing_the_reply
from tests.support.pipelines import always, count_effect, end_all_transactions, entry, raises, store_starts
from workers.pipeline import process


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
        failing(listener.claims_of("test"), "claim", RedisUnavailable("away"))

        assert str(process(listener, message)) == "left 1"
        assert str(process(listener, message)) == "won 1"

    def test_a_claim_whose_answer_was_lost_is_given_back(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"), entry("b"))
        losing_the_reply(listener.claims_of("test"), "claim", RedisUnavailable("lost"))

        assert str(process(listener, message)) == "left 2"
        assert plant.claim_states() == {}

    def test_redis_away_at_the_end_harms_nothing(self, plant):
        listener = plant.listener("listener-1", count_effect)
        message = plant.accept(entry("a"))
        failing(listener.claims_of("test"), "complete", RedisUnavailable("away"))

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

    def test_a_start_that_two_threads_take_back_at_once_harms_neither(self, plant):
        """In a pool of threads, all deliveries begin with what outages left."""
        listener = plant.listener("listener-1", count_effect)
        store_starts(plant, "a", 1)
        listener.unended.append(("a", "d1", 1))
        both = threading.Barrier(2)
        end_start = listener.failures.end_start

        def together(*start):
            both.wait(10)
            end_start(*start)

        listener.failures.end_start = together
        running = [plant.start(listener, plant.accept(entry(key))) for key in ("b", "c")]

        assert [str(one.result(20)) for one in running] == ["won 1", "won 1"]
        assert (plant.starts(), listener.unended) == ({("a", "d1"): 0}, [])

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


# ---------------------------------------------------------------------------------------------------------------- helpers


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
