"""Events that are older than their type's retention, and an operator who has them tried again (G2, G5)."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.decisions import Decisions
from app.stores.failures import Failures
from app.stores.records import utc_now
from tests.support.pipelines import TYPE, Plant, count_effect, entry
from workers.handlers import PermanentFailure, RetryLater
from workers.pipeline import process
from workers.runtime import Runtime
from workers.tally import Tally

RETENTION = timedelta(days=30)


async def count_async(event: Any, context: Any) -> None:
    await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


@pytest.fixture
def overrides(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "short.toml").write_text(f'[types."{TYPE}"]\nretention_s = {int(RETENTION.total_seconds())}\n')
    return {"policies": tmp_path / "short.toml"}


def send_again(plant: Plant, listener: Runtime) -> Tally:
    """What the sweeper sends of the failure that is due: with the instant of acceptance that the failure has."""
    [due] = Failures(plant.db).due(10)
    return process(listener, plant.message([entry("a")], batch=None, accepted_at=due["accepted_at"]))


@pytest.mark.parametrize("handlers", [(), (count_effect,), (count_async,)], ids=["stored", "sync", "async"])
def test_a_stale_event_that_is_retried_is_processed_and_kept_for_its_retention_from_then_on(
    plant: Plant, handlers: tuple[Callable[..., Any], ...]
) -> None:
    listener = plant.listener("listener-1", *handlers)
    process(listener, plant.accept(entry("a"), accepted_at=utc_now() - RETENTION - timedelta(minutes=1)))
    assert plant.failures() == {("a", "d1"): "stale"}

    before = Failures(plant.db).now()
    assert Decisions.on(plant.db).retry("a", "d1") == "will be tried again"
    assert send_again(plant, listener).won == 1

    assert (plant.ledger(), plant.failures()) == ({"a": "d1"}, {})
    assert plant.effects() == ({"a": 1} if handlers else {})
    kept = plant.db["events"].find_one()
    assert kept is not None
    assert kept["expires_at"] >= before + RETENTION, "or the index would remove the commit at once"


def test_a_dead_event_can_be_retried_when_its_retention_is_over(plant: Plant) -> None:
    mended: list[bool] = []

    def handler(event: Any, context: Any) -> None:
        if not mended:
            raise PermanentFailure("a bug")
        count_effect(event, context)

    listener = plant.listener("listener-1", handler)
    process(listener, plant.accept(entry("a"), accepted_at=utc_now() - RETENTION + timedelta(hours=1)))
    assert plant.failures() == {("a", "d1"): "dead"}
    plant.db["failures"].update_one({}, {"$set": {"accepted_at": utc_now() - 2 * RETENTION}})  # as time goes by

    mended.append(True)
    Decisions.on(plant.db).retry("a", "d1")
    assert send_again(plant, listener).won == 1
    assert plant.effects() == {"a": 1}


def test_one_that_is_put_off_beyond_its_retention_becomes_stale_until_it_is_retried_once_more(plant: Plant) -> None:
    """G7: a handler that says "later" for ever would keep its event on the way for ever."""

    def later(event: Any, context: Any) -> None:
        raise RetryLater(0)

    listener = plant.listener("listener-1", later)
    process(listener, plant.accept(entry("a"), accepted_at=utc_now() - 2 * RETENTION))
    Decisions.on(plant.db).retry("a", "d1")
    assert str(send_again(plant, listener)) == "failed 1 (retrying)"
    assert str(send_again(plant, listener)) == "failed 1 (retrying)", "the decision holds for all tries that follow"

    plant.db["failures"].update_one({}, {"$set": {"retried_at": utc_now() - RETENTION - timedelta(minutes=1)}})
    assert str(send_again(plant, listener)) == "failed 1 (stale)"
    Decisions.on(plant.db).retry("a", "d1")
    assert str(send_again(plant, listener)) == "failed 1 (retrying)"
