"""``on_conflict = "ignore"``: other content of a committed key is dropped, and leaves nothing that could grow (G5, G7)."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import bson
import pytest

from app.decisions import Decisions
from app.naming import RECOVERY_QUEUE
from app.reprocessing import reprocess
from app.stores.pauses import Pauses
from app.stores.records import utc_now
from broadcaster.sweeper.sweeper import Sweeper
from tests.support.bridging import keys_of, place_of
from tests.support.clock import Clock
from tests.support.pipelines import TYPE, count_effect, entry
from workers.handlers import PermanentFailure
from workers.pipeline import process

POLICY = f'[types."{TYPE}"]\non_conflict = "ignore"\n'


@pytest.fixture
def overrides(tmp_path) -> dict[str, Any]:
    (tmp_path / "ignore.toml").write_text(POLICY)
    return {"policies": tmp_path / "ignore.toml"}


def test_g7_contents_that_are_ignored_leave_nothing(plant):
    """G7: the document of a key that many contents come for stays as it is."""
    listener = plant.listener("listener-1", count_effect)
    process(listener, plant.accept(entry("hot", "d0")))
    before = plant.db["events"].find_one()

    for number in range(20):
        message = plant.accept(entry(f"n{number}"), entry("hot", f"x{number}"))
        assert str(process(listener, message)) == "won 1, skipped 1 (ignored conflict)"

    assert plant.db["events"].find_one({"_id": "hot"}) == before
    assert (plant.failures(), plant.inbox.size(), plant.effects()["hot"]) == ({}, 0, 1)


def test_g5_a_document_that_is_full_harms_no_neighbour(plant):
    """G5: as an earlier version, which noted each ignored content, may have left it."""
    listener = plant.listener("listener-1", count_effect)
    process(listener, plant.accept(entry("hot", "d0")))
    size = len(bson.encode(plant.db["events"].find_one({"_id": "hot"}) or {}))
    plant.db["events"].update_one({"_id": "hot"}, {"$set": {"rejected": ["x" * (16 * 2**20 - size - 30)]}})

    message = plant.accept(entry("n1"), entry("hot", "d1"), entry("n2"))
    assert str(process(listener, message)) == "won 2, skipped 1 (ignored conflict)"
    assert (set(plant.ledger()), plant.inbox.size()) == ({"hot", "n1", "n2"}, 0)


@pytest.mark.parametrize("with_mark", [True, False], ids=["marked in Redis", "Redis forgot"])
def test_one_that_was_retrying_is_tried_no_more(plant, with_mark):
    """The other content was committed meanwhile; nothing in the ledger would refute this one's failure."""
    failing = plant.listener("failing", lambda event, context: 1 / 0)
    process(failing, plant.accept(entry("a", "d2")))
    plant.db["failures"].update_one({}, {"$set": {"state": "conflict"}})  # so that d1 goes ahead
    listener = plant.listener("listener-1", count_effect)
    process(listener, plant.accept(entry("a", "d1")))
    plant.db["failures"].update_one({}, {"$set": {"state": "retrying"}})
    if not with_mark:
        plant.redis.flushdb()

    assert process(listener, plant.retry(entry("a", "d2"))).skipped == 1
    assert (plant.failures(), plant.ledger()) == ({}, {"a": "d1"})


def test_g6_while_the_committed_content_is_processed_again_it_waits(plant):
    """G6: it is ignored once the content that it is ignored for stands again."""
    listener = plant.listener("listener-1", count_effect)
    process(listener, plant.accept(entry("a", "d1")))
    reprocess(plant.db, "a", by="x", reason="y")
    plant.redis.flushdb()
    message = plant.accept(entry("a", "d2"))
    process(listener, message)
    assert plant.unfinished() == {("a", "d2")}

    assert process(listener, plant.retry(entry("a", "d1"))).won == 1
    assert process(listener, message).skipped == 1
    assert (plant.inbox.size(), plant.failures()) == (0, {})


@pytest.fixture
def swept(make_settings, overrides) -> Iterator[Any]:
    with place_of(make_settings(grace_ms=1_000, lease_ms=600, **overrides)) as place:
        clock = Clock()
        sweeper = Sweeper(place.settings, place.db, place.redis, place.app, clock=clock)

        def sweep(after_s: float = 0.0) -> Any:
            clock.now += after_s
            place.beat("listener-1")
            return sweeper.sweep(place.deployment)

        yield place, sweep
        sweeper.close()


def test_g7_the_sweeper_counts_them_as_finished(swept):
    """G7: or they would be sent again for as long as another event of their batch waits for its type."""
    place, sweep = swept
    long_ago = utc_now() - timedelta(seconds=60)
    place.commit("hot")
    Pauses(place.db).pause("paused")
    alone = place.accept("hot", digest="1x", types={"hot": TYPE}, at=long_ago)
    beside = place.accept("hot", "waits", digest="1y", types={"hot": TYPE, "waits": "paused"}, at=long_ago)
    uncommitted = place.accept("new", digest="1x", types={"new": TYPE}, at=long_ago)
    other_type = place.accept("hot", digest="1z", at=long_ago)

    sweep()
    sweep(after_s=1.0)
    assert place.head(alone) is None
    assert place.head(beside) is not None
    assert sorted(keys_of(place.queue(RECOVERY_QUEUE))) == [["hot"], ["new"]], "what is not committed, and a type that quarantines"
    assert {sent.delivery.batch for sent in place.queue(RECOVERY_QUEUE)} == {uncommitted, other_type}


def test_g6_the_sweeper_does_not_count_them_as_finished_beside_a_tombstone(swept):
    """G6: nothing stands that they could be ignored for."""
    place, sweep = swept
    place.commit("hot")
    place.db["events"].update_one({"_id": "hot"}, {"$set": {"discarded": True}})
    batch = place.accept("hot", digest="1x", types={"hot": TYPE}, at=utc_now() - timedelta(seconds=60))
    sweep()
    assert sweep(after_s=1.0).removed == 0
    assert place.head(batch) is not None


def test_a_dead_one_in_its_way_is_decided_about_first(plant):
    """What is quarantined beside a dead event stays until somebody decides, whatever is committed later."""
    listener = plant.listener("listener-1", lambda event, context: (_ for _ in ()).throw(PermanentFailure("no")))
    process(listener, plant.accept(entry("a", "d1")))
    process(listener, plant.accept(entry("a", "d2")))
    Decisions.on(plant.db).retry("a", "d1")
    assert process(plant.listener("listener-2", count_effect), plant.retry(entry("a", "d1"))).won == 1
    assert plant.failures() == {("a", "d2"): "conflict"}
    assert process(listener, plant.accept(entry("a", "d2"))).skipped == 1
    assert (plant.failures(), plant.inbox.size()) == ({("a", "d2"): "conflict"}, 0)
