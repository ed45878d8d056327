"""Redis forgets: faults 8, 9, 21."""

from redis import Redis

from tests.support.system import System, events
from tests.support.waiting import eventually


def test_flushall_amid_2000_events(private_system: System) -> None:
    """G1, G2: FLUSHALL takes claims, heartbeats and every queued delivery, and no event is lost or repeated."""
    system = private_system
    system.up(3)
    system.accept(events(700))
    system.redis.flushall()
    system.accept(events(700))
    system.redis.flushall()
    system.accept(events(600))
    system.await_finished()
    system.audit()


def test_broker_emptied_amid_1500_events(system: System) -> None:
    """G1: every delivery and every unacknowledged one vanishes from the broker, twice, and all events are processed."""
    system.up(2)
    with Redis.from_url(system.settings.broker_url) as broker:
        for _ in range(2):
            system.accept(events(400))
            system.accept(events(20, "fault.slow", ms=50), per_request=2)
            eventually(lambda: broker.hlen("unacked") > 0, 5, "deliveries in hand")
            broker.flushdb()
        system.accept(events(660))
    system.await_finished()
    system.audit()
