"""Reading bodies within bounds: packed ones, bombs, and what one client may hold."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import InboxFull, InvalidEvent
from broadcaster.body import STEP_BYTES, Budget, read_body

LIMIT = 3 * STEP_BYTES + 5


class Watched(Budget):
    """Notes the most that was taken at a time."""

    most = 0
    taken = 0

    def take(self, size: int, client: str, *, small: bool) -> None:
        super().take(size, client, small=small)
        self.taken += size
        self.most = max(self.most, self.taken)

    def give(self, size: int, client: str) -> None:
        super().give(size, client)
        self.taken -= size


def request(chunks: Sequence[bytes], headers: dict[str, str]) -> Request:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    return Request(scope, receive)


def read(body: bytes, *, encoding: str = "gzip", budget: Budget | None = None, chunk: int = 64 * 1024) -> bytes:
    async def main() -> bytes:
        chunks = [body[at : at + chunk] for at in range(0, len(body), chunk)]
        with ThreadPoolExecutor(1) as threads, (budget or Budget()).share("client") as share:
            return await read_body(request(chunks, {"content-encoding": encoding}), share, limit=LIMIT, unpackers=threads)

    return asyncio.run(main())


def refused(body: bytes, **more: Any) -> int:
    with pytest.raises((InvalidEvent, HTTPException)) as caught:
        read(body, **more)
    error = caught.value
    return error.status if isinstance(error, InvalidEvent) else error.status_code


@given(st.binary(max_size=2_000), st.integers(0, 9))
def test_what_was_packed_comes_out(body, level):
    assert read(gzip.compress(body, level), encoding="GZip") == body
    assert read(body, encoding="identity") == body


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, STEP_BYTES + 1, LIMIT - 1, LIMIT])
def test_sizes_up_to_the_limit(size):
    assert len(read(gzip.compress(b"x" * size))) == size
    assert len(read(b"x" * size, encoding="identity")) == size


def test_one_byte_too_long():
    assert refused(gzip.compress(b"x" * (LIMIT + 1))) == 413
    assert refused(b"x" * (LIMIT + 1), encoding="identity") == 413


def test_a_bomb_is_refused_without_being_unpacked():
    bomb = gzip.compress(bytes(400 * 1024 * 1024), 9)
    assert len(bomb) < LIMIT
    budget = Watched()
    assert refused(bomb, budget=budget) == 413
    assert budget.most < len(bomb) + LIMIT + 2 * STEP_BYTES
    assert (budget.taken, budget._free, dict(budget._by_client)) == (0, Watched()._free, {})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"\x1f\x8b",
        gzip.compress(b"x" * 1_000)[:-1],
        gzip.compress(b"x" * 1_000)[:-9],
        gzip.compress(b"x" * 1_000) + b"x",
        gzip.compress(b"a") * 2,
        zlib.compress(b"x"),
        gzip.compress(b"x" * 1_000)[:-8] + b"\0" * 8,
        b"\x1f\x8b" + b"\xff" * 100,
    ],
    ids=["nothing", "a letter", "magic", "last byte cut", "trailer cut", "rest", "two members", "zlib", "wrong checksum", "wrong header"],
)
def test_what_is_no_gzip_is_400(body):
    assert refused(body) == 400


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 255))
def test_broken_gzip_never_raises_anything_else(body, at, byte):
    packed = bytearray(gzip.compress(body))
    packed[at % len(packed)] = byte
    try:
        found: bytes | int = read(bytes(packed))
    except InvalidEvent as error:
        found = error.status
    assert found in (body, 400)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x" * 500])
def test_other_encodings_are_415(encoding):
    assert refused(b"x", encoding=encoding) == 415


def test_no_client_uses_up_the_budget():
    kib = 1024
    budget = Budget(1_000 * kib)
    with (
        budget.share("greedy") as first,
        budget.share("greedy") as second,
        budget.share("greedy") as small,
        budget.share("modest") as third,
    ):
        first.take(300 * kib)
        second.take(200 * kib)
        with pytest.raises(InboxFull, match="this client"):
            second.take(1)
        small.take(64 * kib)  # a small request of the same address still passes
        with pytest.raises(InboxFull, match="this client"):
            small.take(1)
        third.take(436 * kib)
        with pytest.raises(InboxFull, match="fit into memory"):
            third.take(1)
        first.give(300 * kib)
        second.take(200 * kib)
    assert (budget._free, dict(budget._by_client)) == (1_000 * kib, {})
    with contextlib.ExitStack() as shares:
        for _ in range(11):
            shares.enter_context(budget.share("greedy")).take(64 * kib)
        with pytest.raises(InboxFull, match="this client"):
            shares.enter_context(budget.share("greedy")).take(64 * kib)
