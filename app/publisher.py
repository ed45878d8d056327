"""A producer's side of ``POST /events``: sends until the broadcaster has said yes or no.

Guaranteed: what :meth:`Publisher.send` returns for is accepted. An answer of "unknown" (503, 429, no answer at all) is met by
sending the very same events again, which is safe, since events of one key are one event. Not guaranteed: that an event whose
send raised :class:`NotTaken` is *not* accepted; send it again, later.
"""

import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, cast

import httpx
import msgspec

from app.errors import PermanentError, TransientError

_AGAIN = frozenset({408, 425, 429, 502, 503, 504})
_PAUSE_S = (0.2, 5.0)
"""First and longest pause before a repetition, where the broadcaster names none."""
_TIMEOUT_S = 30.0


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
    """The broadcaster did not take the events for as long as the publisher was to be patient."""


class Publisher:
    """Sends events to one broadcaster over one connection. Not thread-safe. Also a context manager that closes it."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        patience_s: float = 60.0,
        on_wait: Callable[[str, float], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """No connection is made yet.

        Args:
            url: the broadcaster's, as ``http://127.0.0.1:4000``.
            token: bearer token, where it wants one.
            patience_s: how long one request is repeated before :class:`NotTaken` is raised.
            on_wait: told before each pause: why, and for how many seconds.
            sleep: waits.
            transport: another way of the requests than HTTP over a socket.
        """
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._on_wait = on_wait
        self._sleep = sleep
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_S, trust_env=False, transport=transport)

    def send(self, events: Sequence[bytes | dict[str, Any]]) -> list[str]:
        """Send one request.

        Args:
            events: 1 to 500 events in plain form, each as JSON bytes or as a dict.

        Returns:
            The keys of the distinct events among them, in order.

        Raises:
            Refused: the request is wrong; none of its events was accepted.
            NotTaken: the broadcaster is away or full; whether the events were accepted is unknown.
        """
        body = b"[" + b",".join(e if isinstance(e, bytes) else msgspec.json.encode(e) for e in events) + b"]"
        give_up_at = time.monotonic() + self._patience_s
        tries = 0
        while True:
            tries += 1
            why, asked_s = self._attempt(body)
            if isinstance(why, list):
                return why
            pause_s = asked_s if asked_s is not None else min(_PAUSE_S[1], _PAUSE_S[0] * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            if time.monotonic() + pause_s > give_up_at:
                raise NotTaken(f"the broadcaster at {self.url} did not take the events ({why}); nothing is lost by sending them again")
            if self._on_wait:
                self._on_wait(why, pause_s)
            self._sleep(pause_s)

    def _attempt(self, body: bytes) -> tuple[list[str] | str, float | None]:
        """The keys; or why they were not taken, and the pause that the broadcaster asks for."""
        try:
            answer = self._client.post(f"{self.url}/events", content=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise PermanentError(f"{self.url!r} is no URL of a broadcaster: {error}") from error
        except httpx.TransportError as error:
            return _words_of(error), None
        if answer.status_code in _AGAIN:
            return _detail(answer), _retry_after(answer)
        if answer.is_success:
            keys = _json_object(answer).get("keys")
            if isinstance(keys, list):
                return cast(list[str], keys), None
            raise PermanentError(f"{self.url} answers, but is no broadcaster")
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


def _words_of(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "nothing answers there"
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
    return said if isinstance(said, str) and said else f"HTTP {answer.status_code} {answer.reason_phrase}".strip()


def _retry_after(answer: httpx.Response) -> float | None:
    """The seconds that ``Retry-After`` names; its form as a date is not used by the broadcaster, and not read."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
