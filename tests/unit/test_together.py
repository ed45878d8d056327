"""Which batches share a delivery."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from app.messages import announcement, delivery, read_delivery
from broadcaster.together import MAX_BATCHES, MAX_BYTES, MAX_EVENTS, together

AT = datetime(2026, 5, 4, tzinfo=UTC)
NUMBERS = iter(range(10**9))

BATCHES = st.lists(
    st.builds(
        lambda first, many, digest, size: batch(*(str(key) for key in range(first, first + many)), digest=digest, size=size),
        first=st.integers(0, 60),
        many=st.one_of(st.integers(1, 4), st.integers(1, 300)),
        digest=st.sampled_from(["d", "d", "d", "e"]),
        size=st.one_of(st.none(), st.integers(0, 100), st.integers(0, MAX_BYTES + 1)),
    ),
    max_size=40,
)


def batch(*keys: str, digest: str = "d", size: int | None = 100):
    return announcement(f"b{next(NUMBERS)}", [(key, digest, "t") for key in keys], AT, size=size)


def many(number: int, size: int = 100):
    return [batch(f"k{at}", size=size) for at in range(number)]


@given(BATCHES)
def test_each_batch_is_in_one_delivery_which_a_listener_can_read(batches):
    groups = together(batches)
    assert sorted(one["batch"] for group in groups for one in group) == sorted(one["batch"] for one in batches)
    assert [group[0] for group in groups] == [one for one in batches if any(one is group[0] for group in groups)]
    for group in groups:
        if len(group) > 1:
            assert len({key for one in group for key in one["keys"]}) <= MAX_EVENTS
            assert sum(one["bytes"] for one in group) <= MAX_BYTES
        read = read_delivery(delivery(group, deployment="d", seq=1, forwards=1))
        assert {(key, digest) for key, digest, _ in read.events} == {
            pair for one in group for pair in zip(one["keys"], one["digests"], strict=True)
        }
        assert [part.batch for part in read.batches] == [one["batch"] for one in group]


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


def test_what_is_sent_again_and_again_is_one_event_of_one_delivery():
    [group] = together([batch("same"), batch("x", "y"), batch("same"), batch("y"), batch("x", "same")])
    read = read_delivery(delivery(group, deployment="d", seq=1, forwards=1))
    assert read.keys == ["same", "x", "y"]
    assert [part.events for part in read.batches] == [1, 2, 0, 0, 0]


def test_the_number_of_such_batches_is_limited():
    assert [len(group) for group in together([batch("same") for _ in range(MAX_BATCHES + 1)])] == [MAX_BATCHES, 1]


def test_a_batch_that_repeats_only_some_travels_apart():
    assert [len(group) for group in together([batch("a", "b"), batch("b", "c")])] == [1, 1]


def test_other_content_of_a_key_travels_apart_and_others_still_fill_the_first():
    groups = together([batch("same"), batch("same", digest="e"), batch("same", digest="f"), batch("x"), batch("y")])
    assert [[one["keys"][0] for one in group] for group in groups] == [["same", "x", "y"], ["same"], ["same"]]
