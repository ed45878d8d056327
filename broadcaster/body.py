"""Reading requests' bodies without ever holding more of them than the limits allow.

Guarantees: of one body never more than its limit is held, of all together never more than the budget.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from app.errors import InboxFull, InvalidEvent, StoreUnavailable

READ_TIMEOUT_S = 30.0
"""A body that has not arrived by then is given up: a client must not hold a connection by sending slowly."""
BUDGET_BYTES = 64 * 1024 * 1024
"""Bodies of all requests under way; the objects read from them take several times as much."""


class Budget:
    """Bytes of bodies under way. Belongs to one event loop."""

    def __init__(self, limit: int = BUDGET_BYTES) -> None:
        self._free = limit
        self._closed = False
        self._reading: set[asyncio.Timeout] = set()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request takes; given back at its end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._free += share.taken

    @asynccontextmanager
    async def patience(self, timeout_s: float) -> AsyncIterator[None]:
        """Wait for a body this long, or until :meth:`close`.

        Raises:
            HTTPException: 408 the time is over.
            StoreUnavailable: the broadcaster is stopping.
        """
        try:
            async with asyncio.timeout(0 if self._closed else timeout_s) as reading:
                self._reading.add(reading)
                try:
                    yield
                finally:
                    self._reading.discard(reading)
        except TimeoutError:
            if self._closed:
                raise StoreUnavailable("the broadcaster is stopping") from None
            raise HTTPException(408, f"the body did not arrive within {timeout_s:g} s") from None

    def close(self) -> None:
        """Give up bodies that are still arriving, and read no more."""
        self._closed = True
        for reading in self._reading:
            reading.reschedule(asyncio.get_running_loop().time())

    def take(self, size: int) -> None:
        """Take some.

        Raises:
            InboxFull: nothing is left.
        """
        if size > self._free:
            raise InboxFull("more requests arrive at a time than fit into memory")
        self._free -= size


class Share:
    """One request's part of the budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.taken = 0

    def take(self, size: int) -> None:
        """Take more; raises as :meth:`Budget.take`."""
        self.budget.take(size)
        self.taken += size


async def read_body(request: Request, share: Share, *, limit: int, timeout_s: float = READ_TIMEOUT_S) -> bytes:
    """The whole body.

    Raises:
        InvalidEvent: 413 longer than ``limit``, by its Content-Length or by what has arrived; 400 malformed length.
        InboxFull: too many bodies at a time.
        StoreUnavailable: the broadcaster is stopping.
        HTTPException: 408 too slow; 415 compressed; 400 the client went away.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPException(415, f"Content-Encoding {encoding[:40]} is not supported")
    declared = request.headers.get("content-length")
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            raise InvalidEvent("Content-Length is not a number", status=400, field="Content-Length")
        if len(declared) > 18 or int(declared) > limit:
            raise _too_long(limit)
    chunks: list[bytes] = []
    try:
        async with share.budget.patience(timeout_s):
            async for chunk in request.stream():
                share.take(len(chunk))
                if share.taken > limit:
                    raise _too_long(limit)
                chunks.append(chunk)
    except ClientDisconnect:
        raise HTTPException(400, "the client went away before its body had arrived") from None
    return b"".join(chunks)


def _too_long(limit: int) -> InvalidEvent:
    return InvalidEvent(f"the request is longer than {limit} bytes, which are the most", status=413)
