"""In whose hands is a batch? The decision as a table, and its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadcaster.sweeper.hands import Head, Settled, Verdict, judge, recovery_wait_s

HELD, DOUBTFUL, FREE = Verdict.HELD, Verdict.DOUBTFUL, Verdict.FREE
NOW, GRACE, PATIENCE = 100.0, 2.0, 10.0
NEVER = float("-inf")


def head(seq: int = 50, forwards: int = 1, seen_at: float = 90.0, age_s: float = 10.0, *, being_sent: bool = False) -> Head:
    return Head(seq=seq, forwards=forwards, seen_at=seen_at, age_s=age_s, being_sent=being_sent)


def verdict(batch: Head, *listeners: Settled, taken_at: float | None = None, now: float = NOW) -> Verdict:
    return judge(batch, {str(i): s for i, s in enumerate(listeners)}, now=now, taken_at=taken_at, grace_s=GRACE, patience_s=PATIENCE)


LATER, SAME, EARLIER = Settled(seq=51), Settled(seq=50), Settled(seq=49)
EMPTY, EMPTY_BEFORE = Settled(seq=0, empty_at=90.0), Settled(seq=0, empty_at=89.9)


@pytest.mark.parametrize(
    ("batch", "listeners", "taken_at", "expected"),
    [
        pytest.param(head(0, 0), [], None, HELD, id="nobody lives: nothing is sent"),
        pytest.param(head(0, 0, age_s=1.9), [SAME], None, HELD, id="just accepted: the bridge is about to send it"),
        pytest.param(head(0, 0, age_s=2.0), [SAME], None, FREE, id="never forwarded, and the grace is over"),
        pytest.param(head(0, 0, being_sent=True), [SAME], None, HELD, id="our forwarder has it"),
        pytest.param(head(), [LATER, LATER], None, FREE, id="everybody has received a later one"),
        pytest.param(head(), [LATER, SAME], None, DOUBTFUL, id="one has received it as its last: it may be at work on it"),
        pytest.param(head(), [SAME, EARLIER], None, HELD, id="nobody has received a later one"),
        pytest.param(head(), [EMPTY, LATER], None, FREE, id="one queue was empty after it was sent, the other moved on"),
        pytest.param(head(), [EMPTY_BEFORE], None, HELD, id="the queue was empty only before it was sent"),
        pytest.param(head(), [EMPTY, EMPTY_BEFORE], None, DOUBTFUL, id="one has had it, one may still come to it"),
        pytest.param(head(seq=0, forwards=2), [LATER, EMPTY], None, HELD, id="its copy may be in the recovery queue"),
        pytest.param(head(seq=0, forwards=2), [EARLIER], 98.1, HELD, id="its copy was taken a moment ago"),
        pytest.param(head(seq=0, forwards=2), [EARLIER], 98.0, FREE, id="its copy was taken a grace ago"),
        pytest.param(head(seq=0, forwards=3), [EARLIER], 97.0, HELD, id="the third copy waits twice as long"),
        pytest.param(head(seq=0, forwards=3), [EARLIER], 96.0, FREE, id="and no longer"),
        pytest.param(head(seq=0, forwards=30), [EARLIER], 90.0, FREE, id="no copy waits beyond the patience"),
        pytest.param(head(seq=0, forwards=2), [], 10.0, HELD, id="recovery, and nobody lives"),
    ],
)
def test_verdict(batch, listeners, taken_at, expected):
    assert verdict(batch, *listeners, taken_at=taken_at) is expected


seqs = st.integers(0, 100)
times = st.one_of(st.just(NEVER), st.floats(0, NOW))
settled = st.builds(Settled, seq=seqs, empty_at=times)
heads = st.builds(
    Head,
    seq=seqs,
    forwards=st.integers(0, 40),
    seen_at=st.floats(0, NOW),
    age_s=st.floats(0, 100),
    being_sent=st.booleans(),
)
taken = st.one_of(st.none(), st.floats(0, NOW))
RANK = {HELD: 0, DOUBTFUL: 1, FREE: 2}


@given(heads, st.lists(settled, max_size=4), taken)
def test_what_is_being_sent_or_has_no_taker_is_never_sent(batch, listeners, taken_at):
    answer = verdict(batch, *listeners, taken_at=taken_at)
    if batch.being_sent or not listeners:
        assert answer is HELD


@given(heads, st.lists(settled, min_size=1, max_size=4), settled, taken)
def test_one_more_listener_that_may_have_a_fanned_out_batch_keeps_it_from_being_free(batch, listeners, one, taken_at):
    fanned_out = batch.forwards > 0 and bool(batch.seq)
    if fanned_out and not one.has_had(batch):
        assert verdict(batch, *listeners, one, taken_at=taken_at) is not FREE


@given(heads, st.lists(st.tuples(settled, st.integers(0, 50), st.floats(0, 50)), min_size=1, max_size=4), taken, st.floats(0, 50))
def test_time_and_progress_never_take_a_batch_back_into_hands(batch, steps, taken_at, later):
    before = verdict(batch, *(s for s, _, _ in steps), taken_at=taken_at)
    moved = [Settled(seq=s.seq + n, empty_at=max(s.empty_at, s.empty_at + t)) for s, n, t in steps]
    aged = Head(seq=batch.seq, forwards=batch.forwards, seen_at=batch.seen_at, age_s=batch.age_s + later, being_sent=batch.being_sent)
    assert RANK[verdict(aged, *moved, taken_at=taken_at, now=NOW + later)] >= RANK[before]


@given(st.integers(0, 10_000), st.floats(0.1, 60), st.floats(0, 600))
def test_the_wait_for_a_recovery_copy_grows_and_is_bounded(forwards, grace_s, patience_s):
    wait = recovery_wait_s(forwards, grace_s=grace_s, patience_s=patience_s)
    assert grace_s <= wait <= max(grace_s, patience_s)
    assert wait <= recovery_wait_s(forwards + 1, grace_s=grace_s, patience_s=patience_s)
