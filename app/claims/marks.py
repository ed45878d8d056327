"""The mark of a finished key, as short as it can be without losing anything: Redis keeps millions of them.

| form | of | bytes with ``listener-1`` |
|---|---|---|
| ``d``, the 16 bytes of the digest, owner | digests as :mod:`app.events.digests` makes them | 27 |
| ``D|digest|owner`` | any other digest; marks of earlier releases | 36 |

Guarantees: a mark holds the whole digest, so content that disagrees with it is always found; what is written is read back equal. An
earlier release takes the short form for none of its own: it claims the key, and then finds it in the ledger.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence

from app.events.digests import DIGEST_BYTES, DIGEST_VERSION

SHORT = b"d"
LONG = b"D|"
_HEAD = len(SHORT) + DIGEST_BYTES
_SHORTENED = re.compile(r"1[A-Za-z0-9_-]{21}[AQgw]").fullmatch
"""Version 1, and 22 characters of base64 whose last four bits are nothing, so that its bytes say the same."""
_TO_PLAIN = str.maketrans("-_", "+/")
_TO_URL = bytes.maketrans(b"+/", b"-_")


_PACKED, _TEXT = 18, 24
"""Bytes, and characters of base64, that a digest takes where many are turned in one call: two zero bytes more, or ``AA``."""


def marks_of(digests: Sequence[str], owner: str) -> list[bytes]:
    """The marks of keys that were finished with these contents, by this listener."""
    end = owner.encode()
    return [head + end for head in heads_of(digests)]


def heads_of(digests: Sequence[str]) -> list[bytes]:
    """What marks of these contents begin with, whoever their owner is."""
    if not all(map(_SHORTENED, digests)):
        return [heads_of([digest])[0] if _SHORTENED(digest) else long_head_of(digest) for digest in digests]
    packed = a2b_base64("".join([digest[1:] + "AA" for digest in digests]).translate(_TO_PLAIN))
    return [SHORT + packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), _PACKED)]


def long_head_of(digest: str) -> bytes:
    """The same in the long form, in which an earlier release has written it."""
    return LONG + digest.encode() + b"|"


def is_short(value: bytes) -> bool:
    """Whether a stored value is a mark of the short form."""
    return value.startswith(SHORT) and len(value) > _HEAD


def digests_in(marks: Sequence[bytes]) -> list[str]:
    """The digests in marks of the short form."""
    packed = b"".join([mark[len(SHORT) : _HEAD] + b"\0\0" for mark in marks])
    text = b2a_base64(packed, newline=False).translate(_TO_URL).decode()
    return [DIGEST_VERSION + text[at : at + _TEXT - 2] for at in range(0, len(text), _TEXT)]


def owner_in(mark: bytes) -> str:
    """The owner in a mark of the short form."""
    return mark[_HEAD:].decode("utf-8", "replace")
