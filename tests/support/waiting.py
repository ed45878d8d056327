"""Waiting for conditions instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def eventually(
    predicate: Callable[[], Value], timeout_s: float = 10.0, message: str | Callable[[], object] = "", *, every_s: float = 0.02
) -> Value:
    """Ask again and again until the answer is true, and return that answer.

    Args:
        predicate: asked at least once; an AssertionError of it counts as "not yet" and is shown at the end.
        timeout_s: longest wait.
        message: what was awaited, or a function that tells the state at the end.
        every_s: pause between two questions.

    Raises:
        AssertionError: the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        last: object
        try:
            last = answer = predicate()
            if answer:
                return answer
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            told = message() if callable(message) else message
            raise AssertionError(f"not within {timeout_s:g} s: {told or 'the condition'} (last answer: {last!r})")
        time.sleep(every_s)
