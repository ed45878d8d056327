"""Redis forgets: faults 8, 9, 21."""

import pytest
from redis import Redis

from tests.support.system import System, events
from tests.support.waiting import eventually


def test_flushall_amid_2000_events(private_system: System) -> None:
    """G1, G2: FLUSHALL takes claims, heartbeats and every queued delivery, and no event is lost or repeated."""
    system = private_system
    system.up(3)
    for _ in range(2):
        system.accept(events(670))
        system.accept(events(30, "fault.slow", ms=100))
        system.await_amid()
        system.redis.flushall()
        assert system.unfinished() > 0, "it forgot amid the work"
    system.accept(events(600))
    system.await_finished()
    system.audit()


@pytest.mark.parametrize("visibility_timeout_s", [0, 300])
def test_broker_emptied_amid_1500_events(system: System, visibility_timeout_s: int) -> None:
    """G1: every delivery and every unacknowledged one vanishes from the broker, twice, and all events are processed."""
    system.with_settings(visibility_timeout_s=visibility_timeout_s)
    system.up(2)
    with Redis.from_url(system.settings.broker_url) as broker:
        for _ in range(2):
            before = system.db.events.count_documents({"type": "fault.slow"})
            system.accept(events(400))
            system.accept(events(20, "fault.slow", ms=100), per_request=2)
            if visibility_timeout_s:
                eventually(lambda: broker.hlen("unacked") > 0, 5, "deliveries in hand")
            else:
                eventually(
                    lambda before=before: system.db.events.count_documents({"type": "fault.slow"}) > before, 15, "others are in hand"
                )
            broker.flushdb()
            assert system.unfinished() > 0, "it was emptied amid the work"
        system.accept(events(660))
    system.await_finished()
    system.audit()


def test_broker_dies_with_deliveries_in_hand(private_system: System) -> None:
    """G1, G2: what a listener has read is nowhere in the broker, which dies and takes nothing back; it comes from the inbox."""
    system = private_system
    system.up(1)
    system.await_fan_out("listener-1")
    system.accept(events(60, "fault.slow", ms=100))
    eventually(lambda: system.db.events.count_documents({"type": "fault.slow"}) > 0, 15)
    with Redis.from_url(system.settings.broker_url) as broker:
        assert not broker.exists("unacked", "unacked_index")

    assert system.servers is not None
    system.servers.valkey.kill()
    log = system.listener("listener-1").log
    eventually(lambda: "delivery.not_given_back" in log.read_text(), 20, log.read_text)
    system.servers.valkey.start()

    system.await_finished()
    system.audit()
    assert "EMERGENCY" not in log.read_text(), "kombu wrote no file"
