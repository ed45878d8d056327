"""Marks of finished keys: nothing of a digest is lost, and what cannot be shortened stays as it is."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.claims.marks import digests_in, heads_of, is_short, marks_of, owner_in
from app.events.digests import digest_of


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_short_marks_say_what_was_put_in(hashes, owner):
    digests = ["1" + urlsafe_b64encode(hashed)[:-2].decode() for hashed in hashes]

    marks = marks_of(digests, owner)

    assert marks == [b"d" + hashed + owner.encode() for hashed in hashes]
    assert all(map(is_short, marks))
    assert digests_in(marks) == digests
    assert {owner_in(mark) for mark in marks} == {owner}


@given(st.builds(digest_of, st.text(st.characters(codec="utf-8")), st.integers(-(2**63), 2**63 - 1)))
def test_whatever_the_door_digests_is_marked_short(digest):
    assert is_short(marks_of([digest], "listener-1")[0])


OTHERS = {
    "other form": "d1",
    "empty": "",
    "other version": "2" + digest_of("t", 1)[1:],
    "bits beyond the digest": digest_of("t", 1)[:-1] + "B",
    "longer": digest_of("t", 1) + "A",
    "other alphabet": "1" + "+" * 21 + "A",
}


@pytest.mark.parametrize("digest", OTHERS.values(), ids=OTHERS.keys())
def test_any_other_digest_stays_as_it_is(digest):
    assert marks_of([digest], "listener-1") == [f"D|{digest}|listener-1".encode()]


def test_digests_of_several_forms_are_marked_each_in_its_own():
    digests = [digest_of("t", 1), "d1", digest_of("t", 2)]

    assert heads_of(digests) == [*heads_of(digests[:1]), b"D|d1|", *heads_of(digests[2:])]


@pytest.mark.parametrize("value", [b"", b"d", b"d" + bytes(16), b"D|d1|listener-1", b"P|d1|x"])
def test_what_is_no_short_mark_is_not_taken_for_one(value):
    assert not is_short(value)
