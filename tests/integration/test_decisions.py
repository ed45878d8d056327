"""Operators' decisions: compare-and-sets on the ledger that late duplicates meet; pauses; and their commands."""

from collections.abc import Callable
from typing import Any

import pytest

from app.decisions import DecisionRefused, Decisions
from app.reprocessing import reprocess
from app.settings import Settings
from app.stores.pauses import Pauses
from tests.support.pipelines import Plant, count_effect, entry
from workers.pipeline import process
from workers.run import SUSPECT_FORWARDS
from workers.runtime import Runtime
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


# ------------------------------------------------------------------------------------------------------- of two at once


def conflicts(plant: Plant, *digests: str) -> Runtime:
    """A listener that has committed the first content of the key ``a``, and found the others in conflict."""
    listener = plant.listener("listener-1", count_effect)
    for digest in digests:
        process(listener, plant.accept(entry("a", digest)))
    assert plant.failures() == {("a", digest): "conflict" for digest in digests[1:]}
    return listener


def meanwhile(target: Any, name: str, act: Callable[[], Any]) -> None:
    """Before the next call of this method, somebody else does this."""
    real = getattr(target, name)

    def late(*arguments: Any, **named: Any) -> Any:
        setattr(target, name, real)
        act()
        return real(*arguments, **named)

    setattr(target, name, late)


def processed_again(plant: Plant, listener: Runtime, digest: str) -> bool:
    """Whether a command to process the key again comes to its end."""
    reprocess(plant.db, "a", by="x", reason="y")
    plant.redis.flushdb()
    process(listener, plant.retry(entry("a", digest)))
    return plant.effects() == {"a": 2} and plant.failures() == {}


@pytest.mark.parametrize("decision", ["keep-old", "discard"])
def test_g6_content_that_was_accepted_meanwhile_is_not_refused(plant: Plant, decision: str) -> None:
    """G6: one operator is told that it was done, the other that it was not."""
    listener = conflicts(plant, "d1", "d2")
    ann, bob = Decisions.on(plant.db, by="ann"), Decisions.on(plant.db, by="bob")
    meanwhile(ann.ledger, "reject", lambda: bob.accept_new("a", "d2"))
    with pytest.raises(DecisionRefused, match="by somebody else at this moment"):
        ann.by_name()[decision]("a", "d2")

    ledger = plant.db["events"].find_one()
    assert ledger is not None
    assert (ledger["digest"], ledger["superseded"], "rejected" in ledger) == ("d2", ["d1"], False)
    assert [(d["by"], d["what"]) for d in ledger["decisions"]] == [("bob", "accept-new")]
    assert processed_again(plant, listener, "d2")


def test_g6_content_that_was_refused_meanwhile_is_accepted_all_the_same(plant: Plant) -> None:
    """G6: the later decision holds, and contradicts nothing in the document."""
    listener = conflicts(plant, "d1", "d2")
    ann, bob = Decisions.on(plant.db, by="ann"), Decisions.on(plant.db, by="bob")
    meanwhile(ann.ledger, "supersede", lambda: bob.keep_old("a", "d2"))
    ann.accept_new("a", "d2")

    ledger = plant.db["events"].find_one()
    assert ledger is not None
    assert (ledger["digest"], ledger["superseded"], ledger["rejected"]) == ("d2", ["d1"], [])
    assert [d["by"] for d in ledger["decisions"]] == ["bob", "ann"]
    assert processed_again(plant, listener, "d2")


def test_of_two_contents_that_are_accepted_at_once_one_stands(plant: Plant) -> None:
    conflicts(plant, "d1", "d2", "d3")
    ann, bob = Decisions.on(plant.db, by="ann"), Decisions.on(plant.db, by="bob")
    meanwhile(ann.ledger, "supersede", lambda: bob.accept_new("a", "d2"))
    with pytest.raises(DecisionRefused, match="by somebody else at this moment"):
        ann.accept_new("a", "d3")
    assert (plant.ledger(), plant.failures()) == ({"a": "d2"}, {("a", "d3"): "conflict"})


def test_content_that_is_accepted_for_the_second_time_is_superseded_no_more(plant: Plant) -> None:
    listener = conflicts(plant, "d1", "d2", "d3")
    left_over = plant.failure("a", "d2")
    decisions = Decisions.on(plant.db)
    decisions.accept_new("a", "d2")
    plant.db["failures"].insert_one(left_over)  # its process died before it was removed
    decisions.accept_new("a", "d3")
    decisions.accept_new("a", "d2")

    ledger = plant.db["events"].find_one()
    assert ledger is not None
    assert (ledger["digest"], ledger["body"]["data"], ledger["superseded"]) == ("d2", {"digest": "d2"}, ["d1", "d3"])
    assert processed_again(plant, listener, "d2")


@pytest.mark.parametrize("field", ["superseded", "rejected"])
def test_what_is_reopened_is_processed_though_its_document_refuses_it(plant: Plant, field: str) -> None:
    """G5: an earlier version left such documents; skipped as finished, it would be sent again for ever."""
    listener = conflicts(plant, "d1")
    plant.db["events"].update_one({}, {"$set": {field: ["d1"]}})
    assert processed_again(plant, listener, "d1")


def test_new_content_with_odd_names_is_accepted_as_it_is(plant: Plant) -> None:
    """Names and values that MongoDB's expressions would read are data."""
    data = {"$set": "$digest", "a.b": {"$literal": ["$$ROOT"]}, "empty": {}}
    listener = plant.listener("listener-1", count_effect)
    process(listener, plant.accept(entry("a", "d1", data={"gone": 1})))
    process(listener, plant.accept(entry("a", "d2", data=data)))
    Decisions.on(plant.db, by="$by").accept_new("a", "d2")
    ledger = plant.db["events"].find_one()
    assert ledger is not None
    assert (ledger["body"]["data"], ledger["decisions"][0]["by"]) == (data, "$by")


@pytest.mark.parametrize("ends", ["raises", "is interrupted"])
def test_g5_retry_beside_a_solo_run_leaves_its_end_uncounted(plant: Plant, ends: str) -> None:
    """G5: the counts begin at 0 with the decision; a start below 0 would let the event kill one process more."""
    gate = plant.gate()

    def handler(event: Any, context: Any) -> None:
        gate.pass_through()
        raise ValueError("the run before the decision")

    listener = plant.listener("listener-1", handler)
    running = plant.start(listener, plant.accept(entry("a"), forwards=SUSPECT_FORWARDS))
    gate.wait_entered()
    assert plant.starts() == {("a", "d1"): 1}
    token = plant.failure("a")["solo"]
    Decisions.on(plant.db).retry("a", "d1")
    assert plant.starts() == {("a", "d1"): 0}
    if ends == "is interrupted":
        listener.failures.end_start("a", "d1", token)
    else:
        gate.open()
        running.result(20)
    assert plant.starts() == {("a", "d1"): 0}
