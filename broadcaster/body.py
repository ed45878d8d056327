"""Reading requests' bodies without ever holding more of them than the limits allow.

Guarantees: of one body never more than its limit is held, packed or unpacked; of one client's never more than half of the budget, or
three quarters with small ones, so that nobody can use it up alone, and large bodies of an address leave room for its small ones; of all
together never more than the budget. A gzip bomb costs no more than a body of the limit.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from app.errors import InboxFull, InvalidEvent, StoreUnavailable

Form = TypeVar("Form")

READ_TIMEOUT_S = 30.0
"""A body that has not arrived by then is given up: a client must not hold a connection by sending slowly."""
BUDGET_BYTES = 64 * 1024 * 1024
"""Bodies of all requests under way; the objects read from them take several times as much."""
SMALL_BYTES = 64 * 1024
INLINE_BYTES = 16 * 1024
"""Bodies up to this size are unpacked and read in the event loop; longer ones in a thread, so that nobody waits for them."""
STEP_BYTES = 1024 * 1024
_GZIP = ("gzip", "x-gzip")
_GZIP_WINDOW = 31
"""zlib's number for: a gzip header and trailer are expected, and the largest window."""


class Budget:
    """Bytes of bodies under way. Belongs to one event loop."""

    def __init__(self, limit: int = BUDGET_BYTES) -> None:
        self._free = limit
        self._client_limit = limit // 2
        self._small_limit = limit // 4 * 3
        self._by_client: Counter[str] = Counter()
        self._closed = False
        self._reading: set[asyncio.Timeout] = set()

    @contextmanager
    def share(self, client: str) -> Iterator["Share"]:
        """What one request of a client takes; given back at its end."""
        share = Share(self, client)
        try:
            yield share
        finally:
            self.give(share.taken, client)

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

    def take(self, size: int, client: str, *, small: bool) -> None:
        """Take some, for a request that is still small or not.

        Raises:
            InboxFull: nothing is left.
        """
        if size > self._free:
            raise InboxFull("more requests arrive at a time than fit into memory")
        if self._by_client[client] + size > (self._small_limit if small else self._client_limit):
            raise InboxFull("more requests of this client arrive at a time than one client may have under way")
        self._free -= size
        self._by_client[client] += size

    def give(self, size: int, client: str) -> None:
        """Give some back."""
        self._free += size
        self._by_client[client] -= size
        if self._by_client[client] <= 0:
            del self._by_client[client]


class Share:
    """One request's part of the budget."""

    def __init__(self, budget: Budget, client: str) -> None:
        self.budget = budget
        self.taken = 0
        self._client = client

    def take(self, size: int) -> None:
        """Take more; raises as :meth:`Budget.take`."""
        self.budget.take(size, self._client, small=self.taken + size <= SMALL_BYTES)
        self.taken += size

    def give(self, size: int) -> None:
        """Give some back before the end."""
        self.budget.give(size, self._client)
        self.taken -= size


async def read_body(request: Request, share: Share, *, limit: int, unpackers: Executor) -> bytes:
    """The whole body, unpacked.

    Args:
        request: whose body it is.
        share: takes what is held.
        limit: most bytes, packed and unpacked.
        unpackers: threads in which large bodies are unpacked.

    Raises:
        InvalidEvent: 413 longer than ``limit``, by its Content-Length, by what has arrived or by what it unpacks to; 400 malformed
            length, or what claims to be gzip is none.
        InboxFull: too many bodies at a time.
        StoreUnavailable: the broadcaster is stopping.
        HTTPException: 408 too slow; 415 packed otherwise; 400 the client went away.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_GZIP):
        raise HTTPException(415, f"Content-Encoding {encoding[:40]} is not supported, gzip is", headers={"Accept-Encoding": "gzip"})
    declared = request.headers.get("content-length")
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            raise InvalidEvent("Content-Length is not a number", status=400, field="Content-Length")
        if len(declared) > 18 or int(declared) > limit:
            raise _too_long(limit)
    chunks: list[bytes] = []
    try:
        async with share.budget.patience(READ_TIMEOUT_S):
            async for chunk in request.stream():
                share.take(len(chunk))
                if share.taken > limit:
                    raise _too_long(limit)
                chunks.append(chunk)
    except ClientDisconnect:
        raise HTTPException(400, "the client went away before its body had arrived") from None
    body = b"".join(chunks)
    return await _unpacked(body, share, limit=limit, unpackers=unpackers) if encoding in _GZIP else body


async def _unpacked(packed: bytes, share: Share, *, limit: int, unpackers: Executor) -> bytes:
    """Unpack step by step: never more than a step beyond what was taken from the budget, and never more than the limit."""
    loop = asyncio.get_running_loop()
    gzip = zlib.decompressobj(_GZIP_WINDOW)
    pieces: list[bytes] = []
    size = 0
    rest = packed
    step = INLINE_BYTES
    try:
        while not gzip.eof:
            share.take(step)
            if step == INLINE_BYTES:
                piece = gzip.decompress(rest, step)
            else:
                piece = await loop.run_in_executor(unpackers, gzip.decompress, rest, step)
            share.give(step - len(piece))
            size += len(piece)
            if size > limit:
                raise _too_long(limit)
            if not piece and not gzip.eof:
                raise InvalidEvent("the body ends before its gzip data does", status=400, field="Content-Encoding")
            pieces.append(piece)
            rest = gzip.unconsumed_tail
            step = STEP_BYTES
    except zlib.error as error:
        raise InvalidEvent(f"the body is not gzip: {error}", status=400, field="Content-Encoding") from None
    if gzip.unused_data:
        raise InvalidEvent("the body goes on after its gzip data", status=400, field="Content-Encoding")
    return b"".join(pieces)


def in_form(body: bytes, form: type[Form], rule: str, *, field: str | None = None) -> Form:
    """A body of JSON as a struct.

    Args:
        body: the text.
        form: of what it must be.
        rule: what it must be, for whoever sent something else.
        field: named in the refusal.

    Raises:
        InvalidEvent: 400, it is not JSON; 422, it is of another form.
    """
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        raise InvalidEvent(f"{rule}: {error}", field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidEvent("the body is not JSON", status=400) from None


def _too_long(limit: int) -> InvalidEvent:
    return InvalidEvent(f"the request is longer than {limit} bytes, which are the most", status=413)
