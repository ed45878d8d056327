"""Operators' decisions: compare-and-sets on the ledger that late duplicates meet; pauses; and their commands."""

from typing import Any

import pytest

from app.decisions import DecisionRefused, Decisions
from app.settings import Settings
from app.stores.pauses import Pauses
from workers.testing import Delivered, deliver


class Place:
    """One database, into which events are delivered one by one."""

    def __init__(self, settings: Settings) -> None:
        self.urls = {"mongo_url": settings.mongo_url, "redis_url": settings.redis_url}
        self.raising = False

    def send(self, n: int, key: str = "1") -> Delivered:
        """Deliver the event ``key`` with content ``n``."""

        def handle(event: Any, context: Any) -> None:
            if self.raising:
                raise ValueError("not now")
            context.db.effects.update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)

        done = deliver(handle, {"type": "order.paid", "id": key, "data": {"n": n}}, **self.urls)
        self.db = done.db
        self.decisions = Decisions.on(done.db)
        return done

    def effects(self, done: Delivered) -> int:
        """How often a handler had its effect for this key."""
        found = self.db.effects.find_one({"_id": done.key})
        return found["n"] if found else 0


@pytest.fixture
def place(settings: Settings) -> Place:
    return Place(settings)


@pytest.fixture
def conflict(place: Place) -> Delivered:
    """Content 1 is committed, content 2 of the same key is in conflict."""
    place.send(1)
    second = place.send(2)
    assert second.failure is not None
    assert second.failure["state"] == "conflict"
    return second


def test_accept_new_exchanges_the_content_and_late_duplicates_of_both_are_skipped(place: Place, conflict: Delivered) -> None:
    place.decisions.accept_new(conflict.key, conflict.failure["digest"])
    ledger = place.db.events.find_one({"_id": conflict.key})
    assert ledger["body"]["data"] == {"n": 2}
    assert ledger["superseded"] == [conflict.failure["other_digest"]]
    for content in (1, 2):
        assert place.send(content).outcome == "skipped"
    assert place.db.failures.count_documents({}) == 0
    assert place.effects(conflict) == 1, "handlers do not run again"


def test_keep_old_refuses_the_other_content_whenever_it_comes(place: Place, conflict: Delivered) -> None:
    place.decisions.keep_old(conflict.key, conflict.failure["digest"])
    ledger = place.db.events.find_one({"_id": conflict.key})
    assert ledger["body"]["data"] == {"n": 1}
    assert ledger["rejected"] == [conflict.failure["digest"]]
    assert place.send(2).outcome == "skipped"
    assert place.db.failures.count_documents({}) == 0
    assert place.send(3).failure["state"] == "conflict", "a third content is a conflict of its own"


def test_discard_leaves_a_tombstone_that_late_copies_meet(place: Place) -> None:
    place.raising = True
    failed = place.send(1)
    assert failed.failure["state"] == "retrying"
    place.decisions.discard(failed.key, failed.failure["digest"])
    assert place.db.events.find_one({"_id": failed.key})["discarded"] is True
    place.raising = False
    assert place.send(1).outcome == "skipped"
    assert place.effects(failed) == 0
    assert place.db.failures.count_documents({}) == 0


def test_an_operator_who_comes_second_is_told(place: Place) -> None:
    place.raising = True
    failed = place.send(1)
    left_over = dict(place.db.failures.find_one())
    place.raising = False
    place.decisions.retry(failed.key, failed.failure["digest"])
    assert place.send(1).outcome == "won"
    place.db.failures.replace_one({"_id": left_over["_id"]}, left_over, upsert=True)  # as the operator still saw it
    with pytest.raises(DecisionRefused, match="a commit came first"):
        place.decisions.discard(failed.key, failed.failure["digest"])
    assert "discarded" not in place.db.events.find_one({"_id": failed.key})
    with pytest.raises(DecisionRefused, match="there is no failure"):
        place.decisions.keep_old(failed.key, failed.failure["digest"])


def test_retry_begins_anew(place: Place) -> None:
    place.raising = True
    failed = place.send(1)
    place.decisions.retry(failed.key, failed.failure["digest"])
    again = place.db.failures.find_one()
    assert (again["state"], again["attempts"], again["starts"]) == ("retrying", 0, 0)
    place.raising = False
    done = place.send(1)
    assert (done.outcome, place.effects(done)) == ("won", 1)


def test_a_paused_type_stays_in_the_inbox_until_it_is_resumed(place: Place) -> None:
    place.send(1, key="first")
    pauses = Pauses(place.db)
    pauses.pause("order.paid")
    waiting = place.send(1, key="second")
    assert waiting.outcome == "left"
    assert place.db.inbox.count_documents({}) == 1
    assert pauses.resume("order.paid")
    assert not pauses.resume("order.paid")
    assert place.send(1, key="second").outcome == "won"
