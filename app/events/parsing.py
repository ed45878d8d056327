"""The door's reading: from what a producer sent to complete events, a request whole or not at all.

Guaranteed: whatever the input, the answer is a list of 1 to ``max_batch_events`` events of different keys, or ``InvalidEvent``
with status, index and field. What passes fits into the stores: 64-bit integers, finite floats, valid Unicode, no NUL in names,
nesting within bounds. Equal events of one request are folded into one. Not covered: authentication, compression, and the
16 MB of an inbox document, which depends on BSON.

    400  not JSON, or not UTF-8
    413  the request, an event, or the number of events is too large
    409  one key twice in a request with different content
    422  everything else
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from app.errors import InvalidEvent
from app.events.attributes import Attributes, check_text, cloudevent_of_binary, is_json_media, read_cloudevent, read_plain
from app.events.event import Event
from app.events.forms import FORM, payload_of
from app.events.hooks import Hook
from app.events.json_text import compact, decode, elements, holds_escape, is_array, least_size, refuse_double_names
from app.events.policies import Policies
from app.events.values import MAX_LEVELS, Fault, find_fault, shown
from app.settings import Settings

PLAIN = "application/json"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
IDEMPOTENCY_KEY = "Idempotency-Key"
WRONG_ARGUMENTS = "publish takes one event, or a list of events"
LONG_BYTES = 64 * 1024
"""Longer requests are read event by event: reading one as a whole would hold up all other threads for up to a third of a second."""

_CHARSET = re.compile(r'charset\s*=\s*"?([^";\s]+)', re.IGNORECASE).search

Reader = Callable[[dict[str, Any]], Attributes]


class EventParser:
    """Reads events for every door. Immutable; safe to share between threads.

    In each method, ``idempotency_key`` is the value of that header: allowed with exactly one event, whose id it becomes when
    the event has none.
    """

    def __init__(self, policies: Policies, settings: Settings) -> None:
        self._policies = policies
        self._max_request_bytes = settings.max_request_bytes
        self._max_event_bytes = settings.max_event_bytes
        self._max_events = settings.max_batch_events

    def request(self, body: bytes, content_type: str | None = None, idempotency_key: str | None = None) -> list[Event]:
        """Read the body of an HTTP request: plain JSON (the default), or CloudEvents structured or batch.

        Raises:
            InvalidEvent: as in the module's docstring.
        """
        self._check_size(body)
        media = _media_type(content_type)
        if media not in (PLAIN, STRUCTURED, BATCH):
            raise InvalidEvent(f"the Content-Type must be {PLAIN}, {STRUCTURED} or {BATCH}", field="Content-Type")
        read = read_plain if media == PLAIN else read_cloudevent
        if len(body) > LONG_BYTES and is_array(body):
            if media != STRUCTURED and (texts := elements(body)) is not None:
                return self._events(self._read_apart(texts, idempotency_key), read, idempotency_key)
        else:
            self._refuse_absurd(body)
        value = decode(body)
        if not isinstance(value, list if media == BATCH else dict if media == STRUCTURED else (dict, list)):
            shape = {PLAIN: "an object or an array of objects", STRUCTURED: "an object", BATCH: "an array of objects"}[media]
            raise InvalidEvent(f"a body of {media} must be {shape}")
        items = _as_list(value)
        written = self._checked(items, idempotency_key)
        refuse_double_names(body, written, _as_list)
        return self._events(items, read, idempotency_key)

    def binary(self, headers: Mapping[str, str], body: bytes, idempotency_key: str | None = None) -> list[Event]:
        """Read a CloudEvent in HTTP's binary mode (a request with a ``ce-specversion`` header).

        Data is a JSON value for JSON media types and without Content-Type, a string for UTF-8 text and XML, else bytes.

        Args:
            headers: names in any case.
            body: the data.
            idempotency_key: as in the class's docstring.

        Raises:
            InvalidEvent: as in the module's docstring.
        """
        self._check_size(body)
        items = [cloudevent_of_binary(headers, body)]
        self._checked(items, idempotency_key)
        if isinstance(items[0].get("data"), dict | list):
            refuse_double_names(body, compact(items[0]["data"]), lambda data: [{"data": data}])
        return self._events(items, read_cloudevent, idempotency_key)

    def webhook(self, hook: Hook, headers: Mapping[str, str], body: bytes, idempotency_key: str | None = None) -> list[Event]:
        """Read a webhook's request as one event.

        Args:
            hook: whose request it is; its signature has been checked.
            headers: names in lower case.
            body: JSON, or a form with JSON in its field ``payload``.
            idempotency_key: as in the class's docstring.

        Raises:
            InvalidEvent: as in the module's docstring.
        """
        self._check_size(body)
        media = _media_type(headers.get("content-type"))
        if media == FORM:
            body = payload_of(body)
        elif not is_json_media(media):
            raise InvalidEvent(f"a webhook's body must be JSON, not {shown(media)}", field="Content-Type")
        self._refuse_absurd(body)
        value = decode(body)
        self._checked([{"body": value}], None)
        refuse_double_names(body, compact(value), lambda read: [{"body": read}])
        event = [hook.event_of(headers, value)]
        self._checked(event, idempotency_key)
        return self._events(event, read_plain, idempotency_key)

    def values(self, items: Sequence[object], idempotency_key: str | None = None) -> list[Event]:
        """Read events given as Python dicts, as a JSON decoder makes them; one with ``specversion`` is a CloudEvent.

        Raises:
            InvalidEvent: as in the module's docstring; 422 also for values that JSON does not have, such as tuples and dates.
        """
        self._checked(items, idempotency_key)
        return self._events(items, _read_any, idempotency_key)

    def argument(self, text: bytes) -> list[Event]:
        """Read the arguments of a message as JSON text: an array with one event, or with one array of events; otherwise as :meth:`values`.

        Raises:
            InvalidEvent: as in the module's docstring.
        """
        self._check_size(text)
        arguments = elements(text)
        if arguments is None:
            decode(text)
            raise InvalidEvent("the message is nested too deeply")
        if len(arguments) != 1:
            raise InvalidEvent(WRONG_ARGUMENTS)
        only = bytes(arguments[0])
        texts = elements(only) if is_array(only) else arguments
        if texts is None or not only.startswith((b"[", b"{")):
            raise InvalidEvent(WRONG_ARGUMENTS)
        return self._events(self._read_apart(texts, None), _read_any, None)

    def _check_size(self, body: bytes) -> None:
        if len(body) > self._max_request_bytes:
            raise InvalidEvent(f"the request has {len(body)} bytes, and {self._max_request_bytes} are the most", status=413)

    def _checked(self, items: Sequence[Any], idempotency_key: str | None) -> bytes:
        """Check everything that does not depend on what the fields mean; the events as JSON text."""
        self._check_number(items, idempotency_key)
        _refuse_faults(items, strings=False)
        try:
            written = compact(items)
        except UnicodeEncodeError:
            written = None
        if written is None or holds_escape(written, b"\\u0000"):
            _refuse_faults(items, strings=True)
        assert written is not None
        if len(written) > self._max_event_bytes:
            self._refuse_large(items)
        return written

    def _check_number(self, items: Sequence[object], idempotency_key: str | None) -> None:
        if not items:
            raise InvalidEvent("the request has no events")
        if len(items) > self._max_events:
            raise InvalidEvent(f"the request has {len(items)} events, and {self._max_events} are the most", status=413)
        if idempotency_key is not None:
            if len(items) > 1:
                raise InvalidEvent(f"{IDEMPOTENCY_KEY} is for requests of one event; give each event an id", field=IDEMPOTENCY_KEY)
            check_text(idempotency_key, IDEMPOTENCY_KEY)

    def _read_apart(self, texts: Sequence[msgspec.Raw], idempotency_key: str | None) -> list[Any]:
        """The events of a long request, each read and checked by itself."""
        self._check_number(texts, idempotency_key)
        items: list[Any] = []
        for index, text in enumerate(map(bytes, texts)):
            try:
                self._refuse_absurd(text)
                item = [decode(text)]
                refuse_double_names(text, self._checked(item, None), _as_list)
            except InvalidEvent as error:
                error.index = index
                raise
            items += item
        return items

    def _refuse_absurd(self, text: bytes) -> None:
        """Refuse before it is read what would only be refused afterwards, at the cost of a value a hundred times as large."""
        if len(text) > LONG_BYTES and (size := least_size(text)) > self._max_event_bytes:
            raise InvalidEvent(f"the event has at least {size} bytes, and {self._max_event_bytes} are the most", status=413, index=0)

    def _refuse_large(self, items: Sequence[Any]) -> None:
        for index, item in enumerate(items):
            size = len(compact(item))
            if size > self._max_event_bytes:
                raise InvalidEvent(f"the event has {size} bytes, and {self._max_event_bytes} are the most", status=413, index=index)

    def _events(self, items: Sequence[Any], read: Reader, idempotency_key: str | None) -> list[Event]:
        """The events of checked items, each key once."""
        events: dict[str, Event] = {}
        for index, item in enumerate(items):
            try:
                event = self._event(read(item), idempotency_key)
            except InvalidEvent as error:
                error.index = index
                raise
            known = events.setdefault(event.key, event)
            if known.digest != event.digest:
                raise InvalidEvent(f"the key {event.key} stands twice in the request, with different content", status=409, index=index)
        return list(events.values())

    def _event(self, given: Attributes, idempotency_key: str | None) -> Event:
        type_, source, id_, time, data, extra = given
        if id_ is None:
            id_ = idempotency_key
        whole = {"type": type_, "source": source, **extra}
        if id_ is not None:
            whole["id"] = id_
        if time is not None:
            whole["time"] = time
        if data is not None:
            whole["data"] = data
        key, digest = self._policies.of(type_).identify(whole)
        return Event(key=key, digest=digest, type=type_, source=source, id=id_, time=time, data=data, extra=extra)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_any(item: dict[str, Any]) -> Attributes:
    return read_cloudevent(item) if "specversion" in item else read_plain(item)


def _media_type(content_type: str | None) -> str:
    if not content_type:
        return PLAIN
    charset = _CHARSET(content_type)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidEvent(f"the body must be UTF-8, not {charset[1]}", status=400, field="Content-Type")
    return content_type.partition(";")[0].strip().lower()


def _refuse_faults(items: Sequence[Any], *, strings: bool) -> None:
    for index, item in enumerate(items):
        if type(item) is not dict:
            raise InvalidEvent("an event must be an object with a type", index=index)
        fault = find_fault(item, levels=MAX_LEVELS + 1, strings=strings)
        if fault is not None:
            raise _refusal(fault, index)


def _refusal(fault: Fault, index: int) -> InvalidEvent:
    field = fault.path.removeprefix(".")
    return InvalidEvent(f"{field or 'the event'} {fault.reason}", index=index, field=field or None)
