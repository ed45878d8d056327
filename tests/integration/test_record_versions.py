"""Records that another version of this software wrote: refused aloud, left as they are, and nothing lost. (Processes: faults/test_versions.py.)"""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.decisions import DecisionRefused, Decisions
from app.stores.capacity import measure, why_full
from app.stores.failures import Origin, Problem, failure_id
from app.stores.progress import progress
from app.stores.records import utc_now
from broadcaster.sweeper.sweeper import Sweeper
from tests.support.bridging import Place, entry, keys_of, place_of
from workers.testing import deliver

ORIGIN = Origin(batch=None, accepted_at=utc_now(), listener="listener-1", token=2**60)
DIGEST = "1d"


@pytest.fixture
def place(make_settings) -> Iterator[Place]:
    with place_of(make_settings(lease_ms=300, grace_ms=100, heartbeat_ms=100, listener_grace_s=60)) as made:
        yield made


def newer_failure(place: Place, key: str, state: str = "retrying") -> dict[str, Any]:
    """A failure as the next version writes it: little of it is as we know it."""
    written = {"_id": failure_id(key, DIGEST), "v": 2, "key": key, "digest": DIGEST, "state": state, "due_at": place.failures.now()}
    place.db.failures.insert_one(written)
    return written


@pytest.mark.parametrize("state", ["retrying", "dead"])
def test_nobody_changes_a_failure_of_another_version(place: Place, state: str):
    written = newer_failure(place, "k", state)
    event = entry("k", DIGEST)
    assert not place.failures.record_attempt(event, ORIGIN, Problem("raised"), delay_ms=0, ended_start=True)
    assert place.failures.record_start(event, ORIGIN, due_ms=0) is None
    place.failures.record_final([(event, ORIGIN, "stale", {})])
    place.failures.postpone([("k", DIGEST)], by_ms=1)
    place.failures.end_start("k", DIGEST, 0)
    assert place.failures.remove([("k", DIGEST)]) == 0
    assert place.failures.due(10) == []
    assert place.failures.fetch([("k", DIGEST)]) == {}
    for decide in Decisions.on(place.db).by_name().values():
        with pytest.raises(DecisionRefused, match="version 2"):
            decide("k", DIGEST)
    assert place.db.failures.find_one() == written


def test_an_event_of_which_another_version_noted_something_is_neither_finished_nor_lost(place: Place):
    newer_failure(place, "failed")
    place.commit("kept", "mine")
    place.db.events.update_one({"_id": "kept"}, {"$set": {"v": 2}})
    pairs = [(key, DIGEST) for key in ("failed", "kept", "mine", "new")]
    found = progress(pairs, ledger=place.ledger, failures=place.failures)
    assert (found.finished, found.refused) == ({("mine", DIGEST)}, {("failed", DIGEST), ("kept", DIGEST)})
    place.failures.record_final([(entry("kept", "2d"), ORIGIN, "conflict", {"other_digest": DIGEST})])
    with pytest.raises(DecisionRefused, match="another version"):
        Decisions.on(place.db).accept_new("kept", "2d")


def test_doors_stay_open_over_a_batch_of_another_version(place: Place):
    """Whoever measures the inbox must not stumble: nobody would close the doors any more, or open them again."""
    place.db.inbox.insert_one({"_id": "0" * 26, "v": 2})
    held = measure(place.db)
    assert (held.batches, held.oldest_at, why_full(held, place.settings)) == (1, None, "")


def test_the_sweeper_leaves_them_to_one_that_knows_and_goes_on_with_the_rest(place: Place):
    newer_failure(place, "failed")
    place.commit("failed-and-done")
    newer_failure(place, "failed-and-done")
    refused = place.accept("failed")
    mixed = place.accept("failed", "well")
    place.beat("listener-1")
    with structlog.testing.capture_logs() as logs:
        now = [0.0]
        sweeper = Sweeper(place.settings, place.db, place.redis, place.app, clock=lambda: now[0])
        for _ in range(100):
            now[0] += 0.2
            place.beat("listener-1")
            sweeper.sweep(place.deployment)
        sweeper.close()
    assert {tuple(keys) for keys in keys_of(place.queue("events.recovery"))} == {("well",)}
    assert place.head(refused)
    assert place.head(mixed)
    assert place.db.failures.count_documents({"v": 2}) == 2, "the ledger refutes one of them, but it is not ours to read"
    assert sorted(line["event"] for line in logs if line["log_level"] == "error") == ["event.refused", "failure.refused"]


def test_many_of_them_do_not_hide_what_comes_behind(make_settings, monkeypatch):
    monkeypatch.setattr("broadcaster.sweeper.backlog._HEADS", 3)
    with place_of(make_settings(lease_ms=300, grace_ms=100, heartbeat_ms=100, listener_grace_s=60, queue_high_water=1)) as place:
        for number in range(8):
            newer_failure(place, f"failed-{number}")
            place.accept(f"failed-{number}")
        place.accept("well")
        now = [0.0]
        sweeper = Sweeper(place.settings, place.db, place.redis, place.app, clock=lambda: now[0])
        for _ in range(20):
            now[0] += 0.2
            place.beat("listener-1")
            sweeper.sweep(place.deployment)
        sweeper.close()
        assert keys_of(place.queue("events.recovery")) == [["well"]]
        assert place.db.inbox.count_documents({}) == 9


@pytest.mark.parametrize("where", ["failures", "ledger"])
def test_a_listener_leaves_such_an_event(settings, redis_client, where: str):
    def raising(event: Any, context: Any) -> None:
        raise ValueError("no")

    urls = {"mongo_url": settings.mongo_url, "redis_url": settings.redis_url}
    event = {"type": "order.paid", "id": "1", "data": {"n": 1}}
    first = deliver(raising if where == "failures" else lambda e, c: None, event, **urls)
    collection = first.db["failures" if where == "failures" else "events"]
    collection.update_one({}, {"$set": {"v": 2, "due_at": None}})
    first.db.inbox.delete_many({})
    redis_client.flushdb()
    before = collection.find_one()
    for content in (1, 2):
        again = deliver(lambda e, c: None, event | {"data": {"n": content}}, **urls)
        assert again.outcome == "left"
    assert collection.find_one() == before
    assert collection.count_documents({}) == 1
    assert first.db.inbox.count_documents({}) == 2, "the events wait for a listener that knows"
