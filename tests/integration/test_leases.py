"""Leases on a real server."""

from app.leases import Lease
from tests.support.bridging import place_of
from tests.support.waiting import eventually


def test_one_holds_it_until_it_is_given_back_or_runs_out(settings):
    with place_of(settings) as place:
        first = Lease(place.redis, "dep", "role", owner="first", life_ms=300)
        second = Lease(place.redis, "dep", "role", owner="second", life_ms=300)

        assert first.hold()
        assert first.hold(), "renewed"
        assert not second.hold()
        assert not second.release()
        assert first.holder() == "first"

        assert first.release()
        assert second.hold()
        assert not first.hold()
        eventually(first.hold, 2, "the lease of a holder that died to run out")
        assert second.holder() == "first"


def test_roles_and_deployments_are_apart(settings):
    with place_of(settings) as place:
        leases = [
            Lease(place.redis, deployment, role, owner=f"{deployment}{role}", life_ms=5_000)
            for deployment in ("a", "b")
            for role in ("x", "y")
        ]
        assert all(lease.hold() for lease in leases)


def test_a_server_that_forgot_it_lets_the_next_one_have_it(settings):
    with place_of(settings) as place:
        first, second = (Lease(place.redis, "dep", "role", owner=name, life_ms=5_000) for name in ("first", "second"))
        assert first.hold()
        place.redis.flushdb()

        assert second.hold()
        assert not first.hold()
