"""Requests' heads within bounds: a client can neither send one without end, nor hold a connection by sending it slowly, nor send many
requests without waiting for answers.

uvicorn's httptools protocol bounds none of these. (Bodies: :mod:`broadcaster.body`.)
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broadcaster.limits import network_of

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; what one read brings beyond it is not counted."""
HEAD_TIMEOUT_S = 15.0
MAX_WAITING = 16
"""Requests of one connection that wait for an answer to the one before. Hardly any client sends more than one; one that sends thousands
keeps the event loop busy with parsing them."""

Rubbish = Callable[[str, str], None]
"""Told of a client that is cut: its address as rate limits know it, and why."""


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with an end for heads.

    Args:
        options: uvicorn's.
        on_rubbish: told of what is no HTTP.
    """

    def __init__(self, *, on_rubbish: Rubbish = lambda _client, _why: None, **options: Any) -> None:
        super().__init__(**options)
        self._on_rubbish = on_rubbish

    _in_head = True
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected: its first head must come."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which keeps all of a head until it is complete."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        self._on_rubbish(network_of(self.client[0]) if self.client else "", msg)
        super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A head begins."""
        if len(self.pipeline) >= MAX_WAITING:
            raise ValueError("too many requests that wait for an answer")  # ends the parsing, and with it the connection
        self._in_head = True
        self._head_bytes = 0
        self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
