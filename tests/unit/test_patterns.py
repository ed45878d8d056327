"""Patterns of event types."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.events.patterns import matches, overlap


@pytest.mark.parametrize(
    ("pattern", "type_", "expected"),
    [
        ("flight.departed", "flight.departed", True),
        ("flight.departed", "flight.departed2", False),
        ("flight.*", "flight.departed", True),
        ("flight.*", "flight.", True),
        ("flight.*", "flight", False),
        ("*", "", True),
        ("*.b", "a.b", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "a--b--c", True),
        ("a*b*c", "acb", False),
        ("ab*ba", "aba", False),
        ("a?c", "abc", False),
        ("a[bc]", "ab", False),
        ("a.c", "abc", False),
    ],
)
def test_only_the_star_is_special(pattern, type_, expected):
    assert matches(pattern, type_) is expected


@given(st.text("ab*", max_size=6), st.text("ab", max_size=6))
def test_as_a_plain_search_would(pattern, type_):
    def search(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return search(p[1:], t) or (bool(t) and search(p, t[1:]))
        return bool(t) and p[0] == t[0] and search(p[1:], t[1:])

    assert matches(pattern, type_) == search(pattern, type_)


@given(st.text("ab*", max_size=5), st.text("ab*", max_size=5), st.text("ab", max_size=6))
def test_what_fits_both_overlaps(one, other, type_):
    if matches(one, type_) and matches(other, type_):
        assert overlap(one, other)


@given(st.text("ab*", max_size=4), st.text("ab*", max_size=4))
def test_what_overlaps_has_a_type_that_fits_both(one, other):
    types = ("".join(letters) for length in range(9) for letters in product("ab", repeat=length))
    assert overlap(one, other) == any(matches(one, t) and matches(other, t) for t in types)
