"""Slices: as many events as take about the target time, begun at different places."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.pace import FIRST_SLICE, MAX_SLICE, Pace, rotated, slices


def test_a_type_that_was_never_measured_begins_small():
    assert Pace(250).events_per_slice("t") == FIRST_SLICE


def test_a_type_that_was_never_measured_begins_with_one_round_of_concurrent_ones():
    assert Pace(250).events_per_slice("t", at_once=64) == 64


@pytest.mark.parametrize(
    ("ms", "events", "expected"),
    [(100, 10, 25), (1_000, 4, 1), (10_000, 1, 1), (0.0, 100, MAX_SLICE), (5, 500, MAX_SLICE)],
    ids=["10 ms each", "250 ms each", "slower than the target", "immeasurably quick", "quick"],
)
def test_a_slice_takes_about_the_target(ms, events, expected):
    pace = Pace(250)
    pace.note("t", ms, events=events)
    assert pace.events_per_slice("t") == expected


def test_concurrent_events_are_measured_and_planned_in_rounds():
    pace = Pace(250)
    pace.note("t", 200, events=128, at_once=64)  # two rounds of 100 ms
    assert pace.events_per_slice("t", at_once=64) == 192, "no less than the target: two would be 200 ms"


def test_concurrent_events_that_are_slower_than_the_target_come_in_single_rounds():
    pace = Pace(250)
    pace.note("t", 1_000, events=64, at_once=64)
    assert pace.events_per_slice("t", at_once=64) == 64


@pytest.mark.parametrize(("waited_ms", "expected"), [(1_000, 192), (1_001, 500), (3_600_000, 500), (-60_000, 192)])
def test_concurrent_events_that_have_waited_come_in_longer_slices(waited_ms, expected):
    pace = Pace(250)
    pace.note("t", 100, events=64, at_once=64)
    assert pace.events_per_slice("t", at_once=64, waited_ms=waited_ms) == expected


def test_slower_concurrent_events_that_have_waited_come_in_slices_of_four_times_the_target():
    pace = Pace(250)
    pace.note("t", 400, events=64, at_once=64)
    assert pace.events_per_slice("t", at_once=64, waited_ms=2_000) == 192, "no less than a second"


def test_plain_events_share_a_transaction_however_long_they_have_waited():
    pace = Pace(250)
    pace.note("t", 100, events=10)
    assert pace.events_per_slice("t", waited_ms=3_600_000) == 25


def test_types_are_measured_apart():
    pace = Pace(250)
    pace.note("slow", 250, events=1)
    assert (pace.events_per_slice("slow"), pace.events_per_slice("other")) == (1, FIRST_SLICE)


def test_one_measurement_does_not_undo_all_before():
    pace = Pace(250)
    for _ in range(20):
        pace.note("t", 10, events=1)
    pace.note("t", 1_000, events=1)
    assert 0 < pace.events_per_slice("t") < 25
    for _ in range(30):
        pace.note("t", 10, events=1)
    assert pace.events_per_slice("t") >= 24


@given(st.lists(st.integers()), st.sampled_from(["listener-1", "listener-17", "edge", "a-b", "x-١"]))
def test_rotation_loses_nothing_and_keeps_the_order(items, listener):
    turned = rotated(items, listener)
    assert sorted(turned) == sorted(items)
    assert any(turned == items[i:] + items[:i] for i in range(len(items) + 1))


def test_listeners_begin_far_from_each_other():
    places = sorted(rotated(range(100), f"listener-{i}")[0] for i in range(1, 6))
    gaps = [b - a for a, b in pairwise([*places, places[0] + 100])]
    assert min(gaps) >= 9


@given(st.lists(st.integers(), max_size=50), st.lists(st.integers(-2, 9), min_size=1))
def test_slices_cover_everything_once_in_order(events, sizes):
    asked = iter(sizes * (len(events) + 1))
    cut = list(slices(events, lambda _event: next(asked)))
    assert [event for part in cut for event in part] == events
    assert all(cut)


def test_the_size_is_asked_at_each_cut():
    sizes = {0: 1, 1: 3, 4: 2}
    assert list(slices(range(6), lambda event: sizes[event])) == [[0], [1, 2, 3], [4, 5]]
