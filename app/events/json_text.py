"""JSON text: read so that nothing is lost or guessed.

Guaranteed: ``decode`` returns what the text says, with integers of any size exact, or refuses it. Not guaranteed: that the
stores can hold the value; ``app.events.values`` checks that.

A name that stands twice in one object is refused (422). RFC 8259 leaves open what it means: readers take the first, the last
or both, so producer and consumer could see two different events under one key.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from app.errors import InvalidEvent
from app.events.values import MAX_LEVELS, find_fault

compact = msgspec.json.Encoder().encode
"""JSON text without spaces of a value without a fault; the order of fields is kept. An event's size is measured in it."""

_decode = msgspec.json.Decoder().decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_INDENT = 256
"""So many blanks before an array are seen through."""
_READ_AGAIN_BYTES = 1024 * 1024


def decode(text: bytes) -> Any:
    """The value of a JSON text.

    Where msgspec refuses, the standard library reads again: it takes NaN, infinities, lone surrogates and long integers, which
    are no values for us either, but which the checks that follow can name with their place.

    Raises:
        InvalidEvent: status 400 when it is not UTF-8 or not JSON, 422 when it is nested too deeply to be read at all.
    """
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(text)


def is_array(text: bytes) -> bool:
    """Whether a JSON text is an array, by its first character."""
    return text[:_INDENT].lstrip(b" \t\r\n").startswith(b"[")


def elements(text: bytes) -> list[msgspec.Raw] | None:
    """The texts of a JSON array's elements, unread; None for what ``decode`` can say more about.

    For long texts: whoever reads one element after the other lets other threads run in between; the decoding of a whole text
    does not.

    Raises:
        InvalidEvent: a very long array is not JSON; reading it again to say where would take too long.
    """
    try:
        return _decode_array(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if len(text) <= _READ_AGAIN_BYTES:
            return None
        raise InvalidEvent(f"the body is not JSON: {error}", status=400) from None


def least_size(text: bytes) -> int:
    """A size that the value of a JSON text has at least when written by ``compact``, found without reading it."""
    return sum(map(text.count, (b"{", b"}", b"[", b"]", b",", b":")))


def _decode_leniently(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"the body is not UTF-8: byte {error.start} fits no character", status=400) from None
    except json.JSONDecodeError as error:
        raise InvalidEvent(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})", status=400) from None
    except RecursionError:
        raise InvalidEvent("the body is nested too deeply") from None
    except ValueError:  # more digits than Python converts
        raise InvalidEvent("the body holds an integer of more than 64 bits") from None


def refuse_double_names(text: bytes, written: bytes, events: Callable[[Any], list[Any]]) -> None:
    """Refuse a JSON text with a name twice in one object.

    The decoder keeps the last one silently. A text that is its value written anew, as `JSON.stringify` would, has none.
    Of the others, one with such a name holds more colons than its value written anew; only texts with an escaped colon or a miscount are
    read again.

    Args:
        text: the JSON text.
        written: its decoded value as ``compact`` writes it.
        events: gives the events in a value of the text, for the place in the error.

    Raises:
        InvalidEvent: there is such a name; with the index of its event and the field's path.
    """
    if _is_as_written(text, written):
        return
    if not holds_escape(text, b"\\u003") and text.count(b":") == written.count(b":"):
        return
    read = json.loads(text, object_pairs_hook=_marked)
    for index, item in enumerate(events(read)):
        fault = find_fault(item, levels=MAX_LEVELS + 1)
        if fault is not None:
            field = fault.path.removeprefix(".")
            raise InvalidEvent(f"{field} stands twice in one object", index=index, field=field)


def holds_escape(text: bytes, escape: bytes) -> bool:
    """Whether a JSON text holds an escape sequence; quick where it holds none at all."""
    return b"\\" in text and escape in text


def _is_as_written(text: bytes, written: bytes) -> bool:
    """Whether a text is just what ``compact`` made of its value, or of a list with nothing but its value."""
    return text == written or (len(written) == len(text) + 2 and written.startswith(text, 1))


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of one with a name twice only that name, with a value that ``find_fault`` stops at."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            return {name: _TWICE}
        fields[name] = value
    return fields


_TWICE = object()
