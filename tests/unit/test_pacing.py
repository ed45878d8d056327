"""When small deliveries may be sent, on a clock that the test moves."""

import pytest

from broadcaster.pacing import BEHIND_PER_S, BURST, LARGE, PER_S, SEVERAL, Pace
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def sent_now(pace: Pace, events: int) -> int:
    """How many deliveries of so many events are sent before one has to wait, of a thousand."""
    return next((number for number in range(1_000) if pace.wait_s([events])), 1_000)


def sent_in_a_second(pace: Pace, clock: Clock, events: int) -> int:
    """How many deliveries of so many events are sent while the clock goes on by a second."""
    sent = 0
    for _ in range(1_000):
        clock.now += 0.001
        sent += pace.wait_s([events]) == 0
    return sent


def test_after_a_quiet_time_a_burst_goes_at_once(clock: Clock) -> None:
    assert sent_now(Pace(clock), 1) == BURST
    clock.now += 3_600
    assert sent_now(Pace(clock), 1) == BURST, "however long the quiet time was"


def test_then_so_many_a_second(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    sent = sent_in_a_second(pace, clock, 1)
    assert PER_S <= sent <= PER_S * 1.05


def test_whoever_waits_as_long_as_it_says_goes(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    clock.now += pace.wait_s([1]) + 1e-9
    assert pace.wait_s([1]) == 0


def test_the_more_events_the_less_it_waits_and_large_ones_never(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    assert pace.wait_s([2]) > pace.wait_s([LARGE // 2]) > 0
    assert sent_now(pace, LARGE) == sent_now(pace, 500) == 1_000


def test_what_waits_for_company_goes_half_as_often(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    sent = sent_in_a_second(pace, clock, 2)
    assert PER_S / SEVERAL * 0.95 <= sent <= PER_S / SEVERAL * 1.05


def test_after_a_pause_a_stream_just_below_the_rate_goes_one_by_one_again(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    waiting, alone = 0, 0
    for _ in range(500):
        clock.now += 1.2 / PER_S
        waiting += 1
        if pace.wait_s([waiting]) == 0:
            alone = alone + 1 if waiting == 1 else 0
            waiting = 0
    assert alone > 100


def test_a_steady_stream_below_the_rate_never_waits(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(10_000):
        clock.now += 1.001 / PER_S
        assert pace.wait_s([1]) == 0


def test_while_listeners_do_not_keep_up_fewer_are_sent(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    pace.behind = True
    sent = sent_in_a_second(pace, clock, 1)
    assert BEHIND_PER_S * 0.9 <= sent <= BEHIND_PER_S * 1.1


def test_each_delivery_of_a_round_counts(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.wait_s([1] * (BURST // 2)) == 0
    assert pace.wait_s([500] * 100) == 0
    assert pace.wait_s([1] * BURST) == pytest.approx((BURST - BURST / 2) / PER_S, rel=0.02)


def test_a_round_of_very_many_waits_no_longer_than_a_burst_takes(clock: Clock) -> None:
    pace = Pace(clock)
    sent_now(pace, 1)
    assert pace.wait_s([1] * 5_000) <= BURST / PER_S
    clock.now += BURST / PER_S + 1e-9
    assert pace.wait_s([1] * 5_000) == 0
