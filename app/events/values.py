"""JSON values: which ones the stores can hold, and their canonical text.

Guaranteed: a value without a fault is encoded by BSON and comes back equal, and its canonical text is the same in every
process and for every order of fields. Not covered: the size of a value; the doors limit that.

Source: https://www.mongodb.com/docs/manual/reference/limits/ (100 levels; MongoDB 6.0 really holds 180),
https://www.rfc-editor.org/rfc/rfc7493 (I-JSON: no lone surrogates).
"""

import math
from typing import Any, NamedTuple

import msgspec

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
MAX_LEVELS = 96
"""Levels of objects and arrays in an event's data: MongoDB's 100 without the four that wrap data in an inbox document
(document, ``events``, event, ``body``)."""

canonical = msgspec.json.Encoder(order="deterministic").encode
"""Canonical JSON of a value without a fault, in UTF-8: fields sorted by code point, no spaces, only ``"``, ``\\`` and control
characters escaped, floats in their shortest form that reads back equal and never without ``.`` or ``e``. So 1, 1.0 and "1"
differ, and so do 0.0 and -0.0 (``-0`` is the integer 0)."""

_NESTED = f"is nested more than {MAX_LEVELS} levels deep"


class Fault(NamedTuple):
    """Why a value cannot be held."""

    path: str
    """Where, from the value down, as in ``.legs[3].carrier``; empty for the value itself."""
    reason: str
    """A predicate that follows the name of the field, as in ``is not finite``."""


def find_fault(value: object, *, levels: int = MAX_LEVELS, strings: bool = True) -> Fault | None:
    """The first thing in a value that the stores could not hold, or None.

    Args:
        value: any Python object; only what a JSON decoder makes is without a fault (dict, list, str, int, float, bool, None).
        levels: how many levels of dicts and lists are allowed.
        strings: whether to look into strings, for lone surrogates and for NUL in names. A caller that knows by other means
            that there are none saves half the time.
    """
    return _fault(value, levels, strings)


def _fault(value: Any, levels: int, strings: bool) -> Fault | None:
    kind = type(value)
    if kind is dict:
        return _fault_in_object(value, levels, strings)
    if kind is list:
        return _fault_in_array(value, levels, strings)
    if kind is str:
        return Fault("", "holds a lone surrogate, which is no Unicode text") if strings and _has_surrogate(value) else None
    if kind is int:
        return None if INT_MIN <= value <= INT_MAX else Fault("", "is an integer of more than 64 bits")
    if kind is float:
        return None if math.isfinite(value) else Fault("", "is not finite, or too large for a number")
    if value is None or kind is bool:
        return None
    return Fault("", f"is a {kind.__name__}, which is no JSON value")


def _fault_in_object(value: dict[Any, Any], levels: int, strings: bool) -> Fault | None:
    if levels < 1:
        return Fault("", _NESTED)
    for name, item in value.items():
        if type(name) is not str:
            return Fault("", f"has a field name that is a {type(name).__name__}, not a string")
        if strings and ("\0" in name or _has_surrogate(name)):
            return Fault("", f"has a field name with a {'NUL' if chr(0) in name else 'lone surrogate'}: {shown(name)}")
        kind = type(item)
        if (kind is str and not strings) or item is None or (kind is int and INT_MIN <= item <= INT_MAX):
            continue
        fault = _fault(item, levels - 1, strings)
        if fault is not None:
            return Fault(f".{shown(name)}{fault.path}", fault.reason)
    return None


def _fault_in_array(value: list[Any], levels: int, strings: bool) -> Fault | None:
    if levels < 1:
        return Fault("", _NESTED)
    for index, item in enumerate(value):
        kind = type(item)
        if (kind is str and not strings) or item is None or (kind is int and INT_MIN <= item <= INT_MAX):
            continue
        fault = _fault(item, levels - 1, strings)
        if fault is not None:
            return Fault(f"[{index}]{fault.path}", fault.reason)
    return None


def _has_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(text: str, limit: int = 80) -> str:
    """A producer's text made fit for a message: one line, printable, valid Unicode, not long."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else ascii(text)[1:-1]
