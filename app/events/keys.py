"""Dedup keys: one string that says which event this is.

Guaranteed: keys are injective and typed. Different rules, different versions of a rule, or different values give different
keys: ("a~b", "c") and ("a", "b~c"), 1 and "1", order/42 and invoice/42 all differ. A key has no ``/ ? # +``, no whitespace and
no control characters, so that it can stand in URLs, task ids and log lines. Not guaranteed: that two keys with the same look
in Unicode are equal; nothing is normalised.

    id~<source>~<id>                        the default: CloudEvents' source and id
    type~<type>[@<version>]~<part>~<part>…  a type's own rule; the version is left out when it is 1
    hash~<type>[@<version>]~<digest>        a type whose key is its content
    malformed~<feed>~<digest>               a payload of a foreign feed that is no event
"""

import re
from collections.abc import Iterable
from typing import Any

from app.errors import InvalidEvent

MAX_KEY_BYTES = 512
"""Longest key, in bytes of UTF-8."""

# Written out, so that a key does not change with the Unicode tables of a Python release.
_SPACES = "\u0020\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
_ESCAPES = {ord(char): "".join(f"%{byte:02X}" for byte in char.encode()) for char in "%~/?#+" + _SPACES + _CONTROLS}
_NO_PART = {float: "a number with a fraction or an exponent", dict: "an object", list: "an array", bytes: "binary"}
_UNSAFE = re.compile("[" + re.escape("".join(map(chr, _ESCAPES))) + "]").search


def id_key(source: str, id: str) -> str:
    """Key of an event by its source and id."""
    return _bounded(f"id~{_escaped(source)}~{_escaped(id)}")


def rule_key(type: str, version: int, parts: Iterable[tuple[str, Any]]) -> str:
    """Key of an event by its type's rule.

    Args:
        type: the event's own type, also where a pattern such as ``flight.*`` names the rule.
        version: the rule's version, from 1.
        parts: for each expression of the rule, its text and its value.

    Raises:
        InvalidEvent: a value is missing or empty, or cannot be part of a key; ``field`` is the expression.
    """
    return _bounded("~".join([f"type~{_versioned(type, version)}", *[_part(value, name) for name, value in parts]]))


def hash_key(type: str, version: int, digest: str) -> str:
    """Key of an event by its content."""
    return _bounded(f"hash~{_versioned(type, version)}~{_escaped(digest)}")


def malformed_key(feed: str, digest: str) -> str:
    """Key under which a payload is kept that is no event."""
    return _bounded(f"malformed~{_escaped(feed)}~{_escaped(digest)}")


def _versioned(type: str, version: int) -> str:
    text = _escaped(type).replace("@", "%40")
    return text if version == 1 else f"{text}@{version}"


def _part(value: Any, field: str) -> str:
    kind = type(value)
    if kind is str:
        if not value:
            raise InvalidEvent(f"the key needs {field}, which is empty", field=field)
        return _escaped(value)
    if kind is int:
        return f"={value}"
    if kind is bool:
        return "=true" if value else "=false"
    if value is None:
        raise InvalidEvent(f"the key needs {field}, which is missing", field=field)
    named = _NO_PART.get(kind, kind.__name__)
    raise InvalidEvent(f"the key needs {field} as a string, an integer or a boolean, and it is {named}", field=field)


def _escaped(text: str) -> str:
    if _UNSAFE(text) is not None:
        text = text.translate(_ESCAPES)
    return "%3D" + text[1:] if text.startswith("=") else text


def _bounded(key: str) -> str:
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError:
        raise InvalidEvent("the key would hold a lone surrogate, which is no Unicode text") from None
    if size > MAX_KEY_BYTES:
        raise InvalidEvent(f"the key would be {size} bytes long, and {MAX_KEY_BYTES} is the most")
    return key
