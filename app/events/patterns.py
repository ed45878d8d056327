"""Patterns of event types: text in which ``*`` stands for any run of characters, and nothing else is special."""

import re
from collections.abc import Callable
from functools import lru_cache

_REMEMBERED = 4096


def matches(pattern: str, type: str) -> bool:
    """Whether ``type`` fits ``pattern``. In linear time, because producers choose the types."""
    return bool(_matcher_of(pattern)(type))


@lru_cache(maxsize=_REMEMBERED)
def _matcher_of(pattern: str) -> Callable[[str], object]:
    """Atomic groups never go back."""
    if "*" not in pattern:
        return pattern.__eq__
    first, *middle, last = map(re.escape, pattern.split("*"))
    return re.compile(first + "".join(f"(?>.*?{piece})" for piece in middle) + ".*" + last, re.DOTALL).fullmatch


def overlap(one: str, other: str) -> bool:
    """Whether some type fits both patterns."""
    if not one or not other:
        return set(one + other) <= {"*"}
    if one[0] == "*":
        return overlap(one[1:], other) or overlap(one, other[1:])
    if other[0] == "*":
        return overlap(other, one)
    return one[0] == other[0] and overlap(one[1:], other[1:])
