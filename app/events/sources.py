"""Foreign Socket.IO servers whose events are taken in: where they are, and how their payloads become events.

| field | default | meaning |
|---|---|---|
| ``url`` | | of the server: ``http``, ``https``, ``ws`` or ``wss`` |
| ``event`` | | name of the Socket.IO event to listen to |
| ``namespace`` | ``/`` | |
| ``auth`` | nothing | a token (sent as ``{"token": …}`` and as a bearer token), or an object; ``env:NAME`` is read from the environment, or from ``.env`` |
| ``transport`` | ``websocket`` | or ``polling`` |
| ``type`` | the event's name | expression |
| ``source`` | the feed's name | expression |
| ``key`` | none | expressions whose values say which event it is; they become its id. Not needed where the type's policy has a key rule |
| ``time`` | none | expression; RFC 3339 text |
| ``data`` | the payload | expression |

Expressions are JMESPath over the payload; a text in quotes, ``'flight.departed'``, stands for itself. A payload is the event's argument,
or the list of its arguments where there are several. A CloudEvent is read as one, and expressions that are given win over its
attributes.

Guaranteed: two payloads with the same key values give the same id, whichever bridge takes them; different values give different
ids (one integer alone and its text are the same). Not guaranteed: that what comes out is a good event; :class:`app.events.parsing.EventParser` says that.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from app.errors import InvalidEvent
from app.events.digests import digest_of
from app.events.expressions import compile_reader
from app.events.keys import malformed_key
from app.events.values import canonical, find_fault

RESERVED = frozenset({"connect", "disconnect", "connect_error", "*"})
MAX_KEPT_BYTES = 64 * 1024
"""Of a malformed payload that is longer as JSON, or that no store could hold as it is, so much is kept, as text."""

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One foreign server, and one of its events. See the module's docstring for the fields; ``name`` stands in logs and numbers.

    Raises:
        ValueError: an expression cannot be read; the text begins with the field's name.
    """

    name: str
    url: str
    event: str
    namespace: str = "/"
    auth: str | dict[str, Any] | None = field(default=None, repr=False)
    transport: Literal["websocket", "polling"] = "websocket"
    type: str | None = None
    source: str | None = None
    key: tuple[str, ...] = ()
    time: str | None = None
    data: str | None = None
    _readers: dict[str, Reader] = field(init=False, repr=False, compare=False)
    _key: tuple[tuple[str, Reader], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("type", "source", "time", "data")}
        object.__setattr__(self, "_readers", {name: compile_reader(name, text) for name, text in given.items() if text is not None})
        object.__setattr__(self, "_key", tuple((text, compile_reader("key", text)) for text in self.key))

    def event_of(self, payload: Any) -> dict[str, Any]:
        """A payload as an event for :meth:`~app.events.parsing.EventParser.values`.

        Raises:
            InvalidEvent: an expression does not fit the payload, or finds nothing.
        """
        if isinstance(payload, dict) and "specversion" in payload:
            event = dict(payload)
        else:
            event = {"type": self.event, "source": self.name, "data": payload}
        for name, read in self._readers.items():
            value = read(payload)
            if value is None and name != "data":
                raise InvalidEvent(f"the payload has no {name}: {getattr(self, name)} finds nothing", field=name)
            event[name] = value
        if self._key:
            event["id"] = _id([self._part(text, read(payload)) for text, read in self._key])
        return event

    def _part(self, text: str, value: Any) -> str | int | bool:
        if type(value) not in (str, int, bool) or value == "":
            found = "is missing" if value in (None, "") else f"is a {type(value).__name__}"
            raise InvalidEvent(f"the key needs {text} as a string, an integer or a boolean, and it {found}", field=text)
        if type(value) is str and (fault := find_fault(value)) is not None:
            raise InvalidEvent(f"the key cannot be made of {text}: its value {fault.reason}", field=text)
        return value  # type: ignore[no-any-return]  # narrowed above


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """A payload that is no event, as ``failures`` keeps it: the same payload has the same key and digest, however often it comes."""

    key: str
    digest: str
    data: Any


def malformed(source: Source, payload: Any) -> Malformed:
    """What to keep of a payload that cannot be an event: itself where a store can hold it and it is short, else the beginning of its text."""
    whole = payload if type(payload) is bytes or find_fault(payload) is None else _as_text(payload)
    digest = digest_of(source.event, whole)
    return Malformed(key=malformed_key(source.name, digest), digest=digest, data=_beginning(whole))


def _beginning(whole: Any) -> Any:
    if isinstance(whole, bytes):
        return whole[:MAX_KEPT_BYTES]
    text = whole.encode() if isinstance(whole, str) else canonical(whole)
    return whole if len(text) <= MAX_KEPT_BYTES else text[:MAX_KEPT_BYTES].decode(errors="ignore")


def _as_text(payload: Any) -> str:
    try:
        return json.dumps(payload, default=repr)
    except (RecursionError, ValueError, TypeError):
        return f"a {type(payload).__name__} that cannot be written down"


def _id(parts: list[str | int | bool]) -> str:
    """One string or integer as it is; anything else as a JSON array, so that different values give different ids."""
    only = parts[0]
    if len(parts) == 1 and type(only) is not bool and not str(only).startswith("["):
        return str(only)
    return canonical(parts).decode()
