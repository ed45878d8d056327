"""A client that sends the head of its request slowly, or never, is closed; one between two requests is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from broadcaster import heads

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def _short_time_for_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_TIMEOUT_S", 0.1)


async def hello(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, int]]:
    """A server that says hello; where it is."""
    server = uvicorn.Server(uvicorn.Config(hello, lifespan="off", log_config=None))  # type: ignore[arg-type]
    server.config.load()
    made = await asyncio.get_running_loop().create_server(
        lambda: heads.BoundedHeads(config=server.config, server_state=server.server_state, app_state={}), "127.0.0.1"
    )
    async with made, asyncio.timeout(5):
        yield made.sockets[0].getsockname()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", REQUEST + b"GET /"], ids=["nothing", "half", "one and a half"])
def test_an_unfinished_head_ends_the_connection(sent: bytes):
    async def scenario() -> None:
        async with listening() as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            answered = await reader.read()
            assert answered.startswith(b"HTTP/1.1 204") == sent.startswith(REQUEST)
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())


def test_a_connection_between_two_requests_is_left_open():
    async def scenario() -> None:
        async with listening() as address:
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(2):
                writer.write(REQUEST)
                assert b"204" in await reader.readuntil(b"\r\n\r\n")
                later, silent = await asyncio.open_connection(*address)
                assert await later.read() == b"", "the time of one that came later is over, so this one's would be, too"
                silent.close()
            writer.write(REQUEST)
            assert b"204" in await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())
