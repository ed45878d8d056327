"""G4 with a real sweeper: how soon the events of a dead winner are sent again."""

import time
from contextlib import ExitStack, closing

import pytest
from pymongo import MongoClient
from redis import Redis

from app.naming import RECOVERY_QUEUE
from app.settings import Settings, database_of
from broadcaster.sweeper.sweeper import Sweeper
from tests.support.bridging import place_of
from tests.support.pipelines import Plant, entry, plant_on

SUSPECT = 3
"""A batch that was forwarded so often."""


@pytest.fixture
def settings(make_settings) -> Settings:
    return make_settings(
        lease_ms=1_000, grace_ms=500, sweep_ms=200, heartbeat_ms=300, listener_grace_s=5, max_handler_s=30.0, transaction_lifetime_s=60.0
    )


@pytest.mark.parametrize("forwards", [1, SUSPECT], ids=["plain", "suspect"])
def test_a_dead_winner_s_event_is_sent_again_long_before_its_handler_s_time_is_over(settings: Settings, forwards: int) -> None:
    """G4: the same for a suspect, whose batch is gone by then, since its start stands in ``failures``."""
    with (
        place_of(settings) as place,
        MongoClient(settings.mongo_url, tz_aware=True) as mongo,
        Redis.from_url(settings.redis_url, decode_responses=True) as redis,
        plant_on(settings, mongo[database_of(settings.mongo_url)], redis) as plant,
        ExitStack() as at_the_end,
    ):
        gate = plant.gate()
        winner = plant.listener("listener-1", lambda _event, _context: gate.pass_through())
        message = plant.accept(entry("a"), forwards=forwards)
        [batch] = plant.batches
        plant.db["inbox"].update_one({"_id": batch}, {"$set": {"forwards": forwards}})
        place.db["meta"].update_one({"_id": "deployment"}, {"$set": {"id": Plant.DEPLOYMENT, "v": 1}}, upsert=True)
        sweeper = at_the_end.enter_context(closing(Sweeper(settings, place.db, place.redis, place.app)))

        def sweep() -> bool:
            place.beat("listener-2", seq=10)
            sweeper.sweep(Plant.DEPLOYMENT)
            time.sleep(settings.sweep_ms / 1000)
            return bool(place.broker.llen(RECOVERY_QUEUE))

        sweep()
        run = plant.start(winner, message)
        gate.wait_entered()
        alive_until = time.monotonic() + 3 * settings.lease_ms / 1000
        while time.monotonic() < alive_until:
            assert not sweep(), "it is in live hands, for longer than a lease"
        winner.renewal.close()  # dead: it renews nothing, and its handler does not end
        died = time.monotonic()
        while not sweep():
            assert time.monotonic() - died < settings.max_handler_s / 2, "G4: not after lease and grace, but after the handler's time"
        gate.open()
        run.result(20)
