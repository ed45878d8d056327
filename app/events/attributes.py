"""The two shapes in which producers write events: plain JSON, and CloudEvents 1.0.

Both are read into ``Attributes``, the same for all that follows. Guaranteed of it: type and source are there, attributes have
the right types and lengths and no control characters, time is RFC 3339, bytes are decoded. The values have been checked by
``app.events.values`` before.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md, …/formats/json-format.md, …/bindings/http-protocol-binding.md
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from datetime import date
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from app.errors import InvalidEvent
from app.events.json_text import compact, decode
from app.events.values import shown

DEFAULT_SOURCE = "default"
"""Source of a plain event that names none: the same at every door, so that an id sent again by another door is the same event."""
MAX_ATTRIBUTE_BYTES = 512
"""Longest type, source or id, in bytes of UTF-8."""

PLAIN_FIELDS = frozenset({"type", "source", "id", "time", "data"})
_CORE = PLAIN_FIELDS | {"specversion", "data_base64"}
_OPTIONAL_TEXTS = frozenset({"subject", "datacontenttype", "dataschema"})
_NAME = re.compile(r"[a-z0-9]+").fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
).fullmatch
_JSON_MEDIA = re.compile(r"(?:application|text)/(?:[^/]+\+)?json").fullmatch
_TEXT_MEDIA = re.compile(r"text/.+|application/(?:[^/]+\+)?xml").fullmatch


class Attributes(NamedTuple):
    """An event as its producer wrote it, before it has a key."""

    type: str
    source: str
    id: str | None
    time: str | None
    data: Any
    extra: dict[str, Any]


def read_plain(item: dict[str, Any]) -> Attributes:
    """Read a plain event: ``type``; optional ``data``, ``id``, ``source``, ``time``; nothing else.

    Raises:
        InvalidEvent: without an index.
    """
    if not item.keys() <= PLAIN_FIELDS:
        name = min(item.keys() - PLAIN_FIELDS)
        hint = "; send CloudEvents as application/cloudevents+json" if "specversion" in item else ""
        raise InvalidEvent(f"{shown(name)} is no field of a plain event (there are type, data, id, source, time){hint}", field=shown(name))
    return Attributes(
        _required(item, "type"), _text(item, "source") or DEFAULT_SOURCE, _text(item, "id"), _time(item), item.get("data"), {}
    )


def read_cloudevent(item: dict[str, Any]) -> Attributes:
    """Read a CloudEvent in its JSON format. Its id may be missing where something else says what its key is.

    Raises:
        InvalidEvent: without an index.
    """
    version = item.get("specversion")
    if version != "1.0":
        raise InvalidEvent(f'specversion must be "1.0", not {shown(compact(version).decode())}', field="specversion")
    data = item.get("data")
    if item.get("data_base64") is not None:
        if data is not None:
            raise InvalidEvent("an event has data or data_base64, not both", field="data_base64")
        data = _bytes(item["data_base64"])
    extra = {name: _extra(item, name) for name, value in item.items() if name not in _CORE and value is not None}
    return Attributes(_required(item, "type"), _required(item, "source"), _text(item, "id"), _time(item), data, extra)


def cloudevent_of_binary(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The JSON format of a CloudEvent that came in binary mode: attributes in ``ce-`` headers, the body as data.

    The data is what the same event holds in structured mode, so that both have one digest: a JSON value for JSON media types
    and without Content-Type, a string for UTF-8 text and XML, else bytes.

    Raises:
        InvalidEvent: a header or a JSON body is malformed.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    item: dict[str, Any] = {name[3:]: _header(name, value) for name, value in lower.items() if name.startswith("ce-")}
    for name in ("data", "data_base64", "datacontenttype"):
        if name in item:
            raise InvalidEvent(f"ce-{name} is no header of CloudEvents", index=0, field=f"ce-{name}")
    content_type = lower.get("content-type", "").strip()
    if content_type:
        item["datacontenttype"] = content_type
    if not body:
        return item
    media = content_type.partition(";")[0].strip().lower()
    if not media or is_json_media(media):
        return item | {"data": decode(body)}
    if _TEXT_MEDIA(media):
        try:
            return item | {"data": body.decode()}
        except UnicodeDecodeError:
            pass  # text in another encoding is bytes to us
    return item | {"data_base64": b64encode(body).decode()}


def is_json_media(media: str) -> bool:
    """Whether a media type, in lower case and without parameters, is one of JSON."""
    return _JSON_MEDIA(media) is not None


def check_text(value: object, name: str, limit: int | None = MAX_ATTRIBUTE_BYTES) -> str:
    """An attribute's value as text.

    Raises:
        InvalidEvent: it is no string, empty, too long, or holds control characters.
    """
    if type(value) is not str:
        raise InvalidEvent(f"{name} must be a string, not {shown(compact(value).decode())}", field=name)
    if not value:
        raise InvalidEvent(f"{name} is empty", field=name)
    if not value.isprintable() and _CONTROL(value):
        raise InvalidEvent(f"{name} holds a control character", field=name)
    if limit is not None and len(value) * 4 > limit and len(value.encode()) > limit:
        raise InvalidEvent(f"{name} is longer than {limit} bytes", field=name)
    return value


def _required(item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if value is None:
        raise InvalidEvent(f"the event has no {name}", field=name)
    return check_text(value, name)


def _text(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    return None if value is None else check_text(value, name)


def _time(item: dict[str, Any]) -> str | None:
    time = item.get("time")
    if time is None:
        return None
    text = check_text(time, "time")
    matched = _RFC3339(text)
    if not matched or not _is_date(matched[1]):
        raise InvalidEvent(f"time must be as in RFC 3339, like 2013-01-01T10:00:00Z, not {shown(text)}", field="time")
    return text


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _extra(item: dict[str, Any], name: str) -> Any:
    if not _NAME(name):
        raise InvalidEvent(f"{shown(name)} is no name of an attribute: CloudEvents has lower-case letters and digits", field=shown(name))
    value = item[name]
    if name not in _OPTIONAL_TEXTS and type(value) in (int, bool):
        return value
    return check_text(value, name, limit=None)


def _bytes(value: object) -> bytes:
    try:
        if isinstance(value, str):
            return b64decode(value, validate=True)
    except (Base64Error, ValueError):
        pass
    raise InvalidEvent("data_base64 must be a string in base64", field="data_base64")


def _header(name: str, value: str) -> str:
    """A header's value: percent-encoded UTF-8, in quotes or not."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeError:
        raise InvalidEvent(f"{name} is not percent-encoded UTF-8", index=0, field=name) from None
