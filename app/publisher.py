"""A producer's side of ``POST /events``: sends until the broadcaster has said yes or no.

    with Publisher("http://127.0.0.1:4000") as publisher:
        publisher.send({"type": "order.paid", "source": "shop", "id": "4711", "data": {"amount": 12}})
        publisher.send_all(events_of_a_day())

Guaranteed: what :meth:`Publisher.send` and :meth:`Publisher.send_all` return for is accepted. An answer of "unknown" (503 and other faults of servers, 429, no
answer at all) is met by sending the very same events again, which is safe, since events of one key are one event. That is why an event needs an
id, or a key rule for its type: the broadcaster refuses others, and nobody makes up ids. Held in memory: one request. Not guaranteed: that
an event whose send raised :class:`NotTaken` is *not* accepted; send it again, later.
"""

import gzip
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, cast

import httpx
import msgspec

from app.errors import PermanentError, TransientError
from app.settings import MAX_BATCH_EVENTS

_AGAIN = frozenset({408, 425, 429})
_SERVER_S_FAULT = 500
"""From here on a status says nothing about the events: what failed there may have failed after they were stored."""
_PAUSE_S = (0.2, 5.0)
"""First and longest pause before a repetition, where the broadcaster names none."""
_TIMEOUT_S = 30.0
MAX_BODY_BYTES = 4 * 1024 * 1024
"""``send_all`` makes requests up to this size, and of ``MAX_BATCH_EVENTS``; the broadcaster may be set to take smaller ones."""
_COMPRESS_BYTES = 1024
_TOO_LARGE = 413
_NO_EVENT_S_FAULT = frozenset({401, 403, 404, 405, 415})
_NO_DOOR = frozenset({404, 405})
"""A broadcaster never says these of its ``/events``: something else is there."""
_NOTHING = "nothing answers there"

Event = bytes | dict[str, Any]
"""An event in plain form or a CloudEvent, as a dict or as its JSON text."""


class Refused(PermanentError):
    """The broadcaster refused a request as a whole; its text is what the broadcaster said.

    Attributes:
        status: the HTTP status.
        index: position of the event at fault in the request, from 0, or None.
        field: dotted name of the field at fault, or None.
    """

    def __init__(self, detail: str, *, status: int, index: int | None = None, field: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.index = index
        self.field = field


class NotTaken(TransientError):
    """The broadcaster did not take the events for as long as the publisher was to be patient.

    Attributes:
        answered: whether anything answered there at the last try.
    """

    def __init__(self, detail: str, *, answered: bool = True) -> None:
        super().__init__(detail)
        self.answered = answered


class UnfitToken(PermanentError, ValueError):
    """A token that no HTTP header holds."""


class Publisher:
    """Sends events to one broadcaster over one connection. Not thread-safe. Also a context manager that closes it."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        patience_s: float = 60.0,
        compress: bool = False,
        on_wait: Callable[[str, float], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """No connection is made yet.

        Args:
            url: the broadcaster's, as ``http://127.0.0.1:4000``.
            token: bearer token, where it wants one.
            patience_s: how long one request is repeated before :class:`NotTaken` is raised.
            compress: send long requests as gzip; for slow networks.
            on_wait: told before each pause: why, and for how many seconds.
            sleep: waits.
            transport: another way of the requests than HTTP over a socket.

        Raises:
            UnfitToken: the token holds something else than printable ASCII.
        """
        if not (token.isascii() and token.isprintable()):
            raise UnfitToken("the token must be printable ASCII, without line breaks: it travels in an HTTP header")
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._compress = compress
        self._on_wait = on_wait
        self._sleep = sleep
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_S, trust_env=False, transport=transport)

    def send(self, events: Event | Sequence[Event]) -> list[str]:
        """Send one request.

        Args:
            events: one event, or 1 to 500.

        Returns:
            The keys of the distinct events among them, in order.

        Raises:
            Refused: the request is wrong; none of its events was accepted.
            NotTaken: the broadcaster is away or full; whether the events were accepted is unknown.
        """
        several = [events] if isinstance(events, bytes | dict) else events
        return self._send_body(b"[" + b",".join(map(_text, several)) + b"]")

    def send_all(self, events: Iterable[Event]) -> int:
        """Send any number of events, in requests of up to 500 and about 4 MiB; a request that is too large is sent in halves.

        Args:
            events: read as they are sent.

        Returns:
            How many were accepted; equal ones of one request count once.

        Raises:
            Refused: an event is wrong; ``index`` is its position among all events. Those of the requests before it are accepted.
            NotTaken: as :meth:`send`; those of the requests before are accepted. It is safe to send everything again.
        """
        accepted = position = 0
        for texts in _requests(events):
            accepted += self._send_texts(texts, position)
            position += len(texts)
        return accepted

    def _send_texts(self, texts: list[bytes], position: int) -> int:
        try:
            return len(self._send_body(b"[" + b",".join(texts) + b"]"))
        except Refused as refused:
            if refused.status == _TOO_LARGE and refused.index is None and len(texts) > 1:
                middle = len(texts) // 2
                return self._send_texts(texts[:middle], position) + self._send_texts(texts[middle:], position + middle)
            if refused.index is None and (len(texts) > 1 or refused.status in _NO_EVENT_S_FAULT):
                raise
            index = position + (refused.index or 0)
            raise Refused(str(refused), status=refused.status, index=index, field=refused.field) from refused

    def _send_body(self, body: bytes) -> list[str]:
        headers = {}
        if self._compress and len(body) > _COMPRESS_BYTES:
            body = gzip.compress(body, 1, mtime=0)
            headers = {"Content-Encoding": "gzip"}
        give_up_at = time.monotonic() + self._patience_s
        tries = 0
        while True:
            tries += 1
            why, asked_s = self._attempt(body, headers)
            if isinstance(why, list):
                return why
            pause_s = asked_s if asked_s is not None else min(_PAUSE_S[1], _PAUSE_S[0] * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            if time.monotonic() + pause_s > give_up_at:
                raise NotTaken(
                    f"the broadcaster at {self.url} did not take the events ({why}); nothing is lost by sending them again",
                    answered=why != _NOTHING,
                )
            if self._on_wait:
                self._on_wait(why, pause_s)
            self._sleep(pause_s)

    def _attempt(self, body: bytes, headers: dict[str, str]) -> tuple[list[str] | str, float | None]:
        """The keys; or why they were not taken, and the pause that the broadcaster asks for."""
        try:
            answer = self._client.post(f"{self.url}/events", content=body, headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise PermanentError(f"{self.url!r} is no URL of a broadcaster: {error}") from error
        except httpx.TransportError as error:
            return _words_of(error), None
        if answer.status_code in _AGAIN or answer.status_code >= _SERVER_S_FAULT:
            return _detail(answer), _retry_after(answer)
        if answer.is_success:
            keys = _json_object(answer).get("keys")
            if isinstance(keys, list):
                return cast(list[str], keys), None
            raise PermanentError(f"{self.url} answers, but is no broadcaster")
        if answer.is_redirect or answer.status_code in _NO_DOOR:
            raise Refused(f"no broadcaster answers at {self.url}: {_status_line(answer)}", status=answer.status_code)
        problem = _json_object(answer)
        index, field = problem.get("index"), problem.get("field")
        raise Refused(
            _detail(answer),
            status=answer.status_code,
            index=index if isinstance(index, int) else None,
            field=field if isinstance(field, str) else None,
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _text(event: Event) -> bytes:
    return event if isinstance(event, bytes) else msgspec.json.encode(event)


def _requests(events: Iterable[Event]) -> Iterator[list[bytes]]:
    """Group events into requests."""
    texts: list[bytes] = []
    size = 0
    for text in map(_text, events):
        if texts and (len(texts) == MAX_BATCH_EVENTS or size + len(text) > MAX_BODY_BYTES):
            yield texts
            texts, size = [], 0
        texts.append(text)
        size += len(text) + 1
    if texts:
        yield texts


def _words_of(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return _NOTHING
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {_TIMEOUT_S:g} s"
    return f"the connection broke: {str(error) or type(error).__name__}"


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _detail(answer: httpx.Response) -> str:
    said = _json_object(answer).get("detail")
    return said if isinstance(said, str) and said else _status_line(answer)


def _status_line(answer: httpx.Response) -> str:
    return f"HTTP {answer.status_code} {answer.reason_phrase}".strip()


def _retry_after(answer: httpx.Response) -> float | None:
    """The seconds that ``Retry-After`` names; its form as a date is not used by the broadcaster, and not read."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
