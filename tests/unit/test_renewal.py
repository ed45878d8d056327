"""The renewal thread: what it asks for, when it stops, what it makes of the answers.

The store is a stand-in that answers as it is told; what Redis makes of renewals stands in tests/contract and tests/integration.
"""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.claims.store import Held
from app.errors import RedisUnavailable
from tests.support.clock import Clock
from tests.support.waiting import eventually
from workers.renewal import Renewal


class Store:
    """Answers renewals, and remembers them."""

    deployment = "test"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.released: list[str] = []
        self.lost: set[str] = set()
        self.away = False

    def renew(self, claims: Any) -> list[bool]:
        self.calls.append([c.key for c in claims])
        if self.away:
            raise RedisUnavailable("away")
        return [c.key not in self.lost for c in claims]

    def release(self, keys: Any, *, claim_id: str) -> int:
        self.released += keys
        return len(keys)


def held(key: str, claim_id: str = "c1") -> Held:
    return Held(key=key, digest="d", claim_id=claim_id, token=1, lease_ms=30, owner="listener-1")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def renewal() -> Iterator[Renewal]:
    made = Renewal(10)
    yield made
    made.close()


def test_what_is_held_is_renewed_in_one_call_again_and_again(renewal, store):
    with renewal.hold(store, [held("a"), held("b")]), renewal.hold(store, [held("c", "c2")]):
        eventually(lambda: store.calls.count(["a", "b", "c"]) >= 3, 5)


def test_after_the_block_nothing_is_renewed(renewal, store):
    with renewal.hold(store, [held("a")]):
        eventually(lambda: store.calls, 5)
    with renewal.hold(store, [held("b")]):
        eventually(lambda: ["b"] in store.calls, 5)
        assert store.calls[-1] == ["b"]


def test_what_was_dropped_is_renewed_no_more(renewal, store):
    with renewal.hold(store, [held("a"), held("b")]):
        renewal.drop("c1", ["a", "not held"])
        eventually(lambda: ["b"] in store.calls, 5)
        assert not renewal.lost("c1", "a")


def test_of_two_stores_each_is_asked_for_its_own(renewal, store):
    other = Store()
    with renewal.hold(store, [held("a")]), renewal.hold(other, [held("b")]):
        eventually(lambda: ["a"] in store.calls and ["b"] in other.calls, 5)


def test_a_claim_that_another_has_is_lost_and_the_rest_goes_on(renewal, store):
    store.lost = {"a"}
    with renewal.hold(store, [held("a"), held("b")]):
        eventually(lambda: renewal.lost("c1", "a"), 5)
        assert not renewal.lost("c1", "b")
        assert not renewal.lost("c2", "a"), "lost under this claim id, not under another"
        eventually(lambda: ["b"] in store.calls, 5)
    assert not renewal.lost("c1", "a"), "forgotten with the block"


def test_an_absent_redis_loses_nothing(renewal, store):
    store.away = True
    with renewal.hold(store, [held("a")]):
        eventually(lambda: len(store.calls) >= 3, 5)
        assert not renewal.lost("c1", "a")
        store.away = False
        eventually(lambda: len(store.calls) >= 5, 5)
        assert not renewal.lost("c1", "a")


def test_a_run_within_its_time_is_renewed(renewal, store):
    with renewal.hold(store, [held("a")]), renewal.running("a", 60):
        eventually(lambda: len(store.calls) >= 2, 5)


def test_when_a_run_outlives_its_time_nothing_is_renewed_until_it_ends(store):
    # Given a thread that says of each round that it found a run over its time
    rounds: list[int] = []
    renewal = Renewal(10, hang_grace_s=0.0, on_hang=lambda: rounds.append(len(store.calls)))
    try:
        with renewal.hold(store, [held("a")]):
            eventually(lambda: store.calls, 5)

            # When one is, beside another that is not
            with renewal.running("a", 0.0), renewal.running("b", 60):
                eventually(lambda: len(rounds) >= 5, 5)
                calls = len(store.calls)

            # Then no round since the first has renewed anything, and later ones do again
            assert set(rounds) == {calls}
            eventually(lambda: len(store.calls) > calls, 5)
    finally:
        renewal.close()


class CountingClock(Clock):
    """Counts who looks at it: the thread does in every round, once for each run."""

    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return super().__call__()

    def await_rounds(self, number: int = 3) -> None:
        """Wait until the thread has gone round since now."""
        before = self.looks
        eventually(lambda: self.looks >= before + number, 5)


def test_a_run_that_hangs_is_told_once_its_grace_is_over(store, monkeypatch):
    clock = CountingClock(0)
    monkeypatch.setattr("workers.renewal.time", SimpleNamespace(monotonic=clock))
    told = threading.Event()
    renewal = Renewal(10, hang_grace_s=10, on_hang=told.set)
    try:
        with renewal.hold(store, [held("a")]), renewal.running("a", 60):
            for passed_s in (59, 61, 69):
                clock.now = passed_s
                clock.await_rounds()
                assert not told.is_set(), f"after {passed_s} s"
            clock.now = 71
            assert told.wait(5)
    finally:
        renewal.close()


def test_a_thread_that_died_is_started_again(renewal, store):
    with renewal.hold(store, [held("a")]):
        eventually(lambda: store.calls, 5)
        renewal.close()
        eventually(lambda: not renewal._thread.is_alive(), 5)
        renewal._stop.clear()
    with renewal.hold(store, [held("b")]):
        eventually(lambda: ["b"] in store.calls, 5)
