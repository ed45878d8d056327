"""Rate limits per client, and what counts as a client."""

import logging
from dataclasses import replace

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RateLimited, SettingsError
from app.settings import Settings
from broadcaster import limits
from broadcaster.limits import RateLimits, client_of, network_of
from broadcaster.refusals import SAY_EVERY_S, Refusals, Throttle
from tests.support.clock import Clock

OFF = Settings(redis_url="redis://x", broker_url="redis://x", mongo_url="mongodb://x/d")
TEN = replace(OFF, client_events_per_s=10.0, client_burst=100)


def send(buckets: RateLimits, client: str, events: int) -> int:
    """How many events got through."""
    try:
        buckets.enter(client)
    except RateLimited:
        return 0
    buckets.spend(client, events)
    return events


def test_without_a_limit_everything_goes_through():
    buckets = RateLimits(OFF)
    assert sum(send(buckets, "a", 500) for _ in range(100)) == 50_000


def test_a_burst_and_then_the_rate():
    clock = Clock()
    buckets = RateLimits(TEN, clock=clock)
    assert [send(buckets, "a", 40) for _ in range(4)] == [40, 40, 40, 0]  # the third goes into debt
    assert send(buckets, "b", 40) == 40  # others do not pay for it
    with pytest.raises(RateLimited) as caught:
        buckets.enter("a")
    assert caught.value.retry_after_s == 3  # 20 in debt, one wanted, 10 a second
    clock.now += caught.value.retry_after_s
    assert send(buckets, "a", 1) == 1
    clock.now += 3_600
    assert sum(send(buckets, "a", 10) for _ in range(50)) == 100  # an hour of silence does not add up


def test_rubbish_costs_too():
    buckets = RateLimits(TEN, clock=Clock())
    for _ in range(100):
        buckets.enter("a")
    with pytest.raises(RateLimited):
        buckets.enter("a")


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 60)), max_size=50))
def test_never_more_than_burst_and_rate_and_one_request(requests: list[tuple[float, int]]):
    clock = Clock()
    buckets = RateLimits(TEN, clock=clock)
    through = 0
    for pause_s, events in requests:
        clock.now += pause_s
        through += send(buckets, "a", events)
        assert through <= 100 + 10 * (clock.now - Clock().now) + 60 + 1e-6


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_CLIENTS", 100)
    buckets = RateLimits(TEN, clock=Clock())
    for _ in range(100):
        buckets.enter("busy")
    for n in range(10_000):
        buckets.enter(f"other-{n}")
        with pytest.raises(RateLimited):
            buckets.check("busy")
        buckets._put("busy", buckets._left("busy"))  # it was heard of again
        assert len(buckets._buckets) <= 100


@pytest.mark.parametrize(
    "address, network",
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("/run/socket", "/run/socket"),
        ("", "unknown"),
    ],
)
def test_what_a_client_is(address, network):
    assert network_of(address).replace("%eth0", "") == network
    assert client_of({"client": (address, 1)}) == network_of(address)
    assert client_of({}) == client_of({"client": None}) == "unknown"


@pytest.mark.parametrize("wrong", [{"client_events_per_s": -1.0}, {"client_events_per_s": float("inf")}, {"client_burst": 0}])
def test_limits_that_cannot_be(wrong):
    with pytest.raises(SettingsError, match="DEDUP_CLIENT"):
        replace(OFF, **wrong)


def test_a_flood_of_refusals_is_counted_and_said_seldom():
    clock = Clock()
    refusals = Refusals(clock=clock)
    with structlog.testing.capture_logs() as lines:
        for _ in range(1_000):
            refusals.note("events", "422", client="a", detail="x" * 10_000)
        clock.now += SAY_EVERY_S
        refusals.note("events", "422", client="a")
        refusals.note("events", "401", client="a")
    assert refusals.view() == {"events": {"401": 1, "422": 1_001}}
    assert [(line["kind"], line["count"]) for line in lines] == [("422", 1), ("422", 1_000), ("401", 1)]
    assert len(lines[0]["detail"]) == 200


def test_a_library_says_the_same_thing_once():
    clock = Clock()
    throttle = Throttle(clock=clock)

    def lines(text: str, times: int) -> list[str]:
        records = [logging.makeLogRecord({"msg": text}) for _ in range(times)]
        return [record.getMessage() for record in records if throttle.filter(record)]

    assert lines("rubbish", 100) == ["rubbish"]
    assert lines("something else", 1) == ["something else"]
    clock.now += SAY_EVERY_S
    assert lines("rubbish", 100) == ["rubbish (99 more were not written)"]
    assert sum(len(lines(f"{n}", 1)) for n in range(5_000)) == 5_000
    assert len(throttle._said) <= 1_000
