"""Redis forgets: faults 8, 9, 21."""

from tests.support.system import System, events


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
