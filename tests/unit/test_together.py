"""Which batches share a delivery."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from app.messages import announcement
from broadcaster.together import MAX_BYTES, MAX_EVENTS, together

AT = datetime(2026, 5, 4, tzinfo=UTC)
NUMBERS = iter(range(10**9))

BATCHES = st.lists(
    st.builds(
        lambda first, many, size: batch(*(str(key) for key in range(first, first + many)), size=size),
        first=st.integers(0, 400),
        many=st.integers(1, 300),
        size=st.one_of(st.none(), st.integers(0, MAX_BYTES + 1)),
    ),
    max_size=40,
)


def batch(*keys: str, size: int | None = 100):
    return announcement(f"b{next(NUMBERS)}", [(key, "d", "t") for key in keys], AT, size=size)


def many(number: int, size: int = 100):
    return [batch(f"k{at}", size=size) for at in range(number)]


@given(BATCHES)
def test_each_batch_is_in_one_delivery_where_keys_stand_once_within_the_limits(batches):
    groups = together(batches)
    assert sorted(one["batch"] for group in groups for one in group) == sorted(one["batch"] for one in batches)
    for group in groups:
        keys = [key for one in group for key in one["keys"]]
        assert len(set(keys)) == len(keys)
        if len(group) > 1:
            assert len(keys) <= MAX_EVENTS
            assert sum(one["bytes"] for one in group) <= MAX_BYTES
    assert [group[0] for group in groups] == [one for one in batches if any(one is group[0] for group in groups)]


def test_small_ones_fill_deliveries():
    assert [len(group) for group in together(many(MAX_EVENTS + 1))] == [MAX_EVENTS, 1]


def test_the_limit_of_events_may_be_lower():
    assert [len(group) for group in together(many(5), max_events=2)] == [2, 2, 1]


def test_their_bytes_are_limited():
    assert [len(group) for group in together(many(4, size=MAX_BYTES // 2))] == [2, 2]


def test_large_ones_and_those_of_unknown_size_travel_alone():
    large = batch(*map(str, range(MAX_EVENTS)))
    unknown = batch("u", size=None)
    assert together([batch("a"), large, unknown, batch("b")])[1:] == [[large], [unknown]]


def test_a_key_that_stands_in_many_batches_makes_many_deliveries_that_others_still_fill():
    groups = together([batch("same"), batch("same"), batch("same"), batch("x"), batch("y")])
    assert [[one["keys"][0] for one in group] for group in groups] == [["same", "x", "y"], ["same"], ["same"]]
