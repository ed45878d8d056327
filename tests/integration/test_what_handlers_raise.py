"""Whatever a handler raises or returns is written down, counted, and harms only its event (G5)."""

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.support.pipelines import Plant, count_effect, entry, patient_plant
from workers.handlers import PermanentFailure, RetryLater
from workers.pipeline import process

ATTEMPTS = 5


@pytest.fixture
def plant(make_settings) -> Iterator[Plant]:
    with patient_plant(make_settings, {"max_attempts": ATTEMPTS}) as made:
        yield made


class Stop(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Lazy(dict[str, int]):
    def items(self) -> Any:
        raise KeyError("gone")


Ends = Callable[[], Any]


def throws(make: Callable[[], BaseException]) -> Ends:
    def function() -> None:
        raise make()

    return function


ODD: dict[str, tuple[Ends, str]] = {
    "exit 1": (lambda: sys.exit(1), "SystemExit: 1"),
    "exit -1": (lambda: sys.exit(-1), "SystemExit: -1"),
    "no Exception": (throws(lambda: Stop("enough")), "Stop: enough"),
    "no text": (throws(Unprintable), "Unprintable: (RuntimeError"),
    "surrogate": (throws(lambda: ValueError("no such file: \udcff.csv")), "ValueError: no such file: \\udcff.csv"),
    "later, as a timedelta": (throws(lambda: RetryLater(timedelta(minutes=5))), "TypeError: "),  # type: ignore[arg-type]
    "later than ever": (throws(lambda: RetryLater(float("inf"))), "ValueError: RetryLater takes seconds"),
    "later than dates go": (throws(lambda: RetryLater(1e12)), "ValueError: RetryLater takes seconds"),
    "a long text": (throws(lambda: ValueError("x" * 17_000_000)), "ValueError: xxx"),
    "a result that raises": (lambda: Lazy(a=1), "KeyError: 'gone'"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_it_is_counted_and_ends_dead_and_its_neighbours_are_processed(plant: Plant, name: str, asynchronous: bool) -> None:
    end, reason = ODD[name]
    runs: list[int] = []

    def handle(event: Any, context: Any) -> Any:
        if event.key != "odd":
            return None if asynchronous else count_effect(event, context)
        runs.append(context.attempt)
        return end()

    async def handle_async(event: Any, context: Any) -> Any:
        return handle(event, context)

    listener = plant.listener("listener-1", handle_async if asynchronous else handle)
    process(listener, plant.accept(entry("a"), entry("odd"), entry("b")))
    while plant.failure("odd")["state"] == "retrying" and len(runs) < 3 * ATTEMPTS:
        process(listener, plant.retry(entry("odd")))

    failure = plant.failure("odd")
    assert (failure["state"], failure["attempts"]) == ("dead", ATTEMPTS)
    assert failure["reason"].startswith(reason)
    assert runs[-1] == ATTEMPTS
    assert set(plant.ledger()) == {"a", "b"}


def test_a_long_reason_for_coming_later_is_cut(plant: Plant) -> None:
    def handler(_event: Any, _context: Any) -> None:
        raise RetryLater(0, "x" * 17_000_000)

    process(plant.listener("listener-1", handler), plant.accept(entry("a")))
    assert plant.failure("a")["reason"] == "x" * 500


def test_a_permanent_failure_may_say_anything(plant: Plant) -> None:
    def handler(_event: Any, _context: Any) -> None:
        raise PermanentFailure("\ud800")

    process(plant.listener("listener-1", handler), plant.accept(entry("a")))
    assert (plant.failure("a")["state"], plant.failure("a")["reason"]) == ("dead", "PermanentFailure: \\ud800")


def test_control_c_ends_a_program_that_borrows_the_pipeline(plant: Plant) -> None:

    def handler(_event: Any, _context: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # Socket.IO's client, where a test has used it, leaves its own
    try:
        with pytest.raises(KeyboardInterrupt):
            process(plant.listener("listener-1", handler), plant.accept(entry("a")))
    finally:
        signal.signal(signal.SIGINT, before)
    assert plant.failures() == {}
    assert plant.claim_states() == {}


def test_the_pools_own_end_is_no_failure(plant: Plant) -> None:
    def handler(_event: Any, _context: Any) -> None:
        sys.exit(-(256 - signal.SIGTERM))  # as billiard does in a child

    with pytest.raises(SystemExit):
        process(plant.listener("listener-1", handler), plant.accept(entry("a")))
    assert plant.failures() == {}


def test_nor_is_it_a_start_that_never_ended(plant: Plant) -> None:
    """Of a suspect, whose start is counted before it runs."""

    def handler(_event: Any, _context: Any) -> None:
        sys.exit(-(256 - signal.SIGTERM))

    with pytest.raises(SystemExit):
        process(plant.listener("listener-1", handler), plant.accept(entry("a"), forwards=3))
    assert plant.starts() == {("a", "d1"): 0}
