"""A client that sends the head of its request slowly, or never, is closed; one between two requests is not."""

import asyncio
from typing import Any

import pytest
import uvicorn

from broadcaster import heads


async def hello(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /"])
def test_an_unfinished_head_ends_the_connection(monkeypatch: pytest.MonkeyPatch, sent: bytes):
    monkeypatch.setattr(heads, "HEAD_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        server = uvicorn.Server(uvicorn.Config(hello, lifespan="off", log_config=None))  # type: ignore[arg-type]
        server.config.load()
        listening = await loop.create_server(
            lambda: heads.BoundedHeads(config=server.config, server_state=server.server_state, app_state={}), "127.0.0.1"
        )
        async with listening, asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            writer.write(sent)
            answered = await reader.read()
            assert answered.startswith(b"HTTP/1.1 204") == (b"\r\n\r\n" in sent)
            writer.close()
            idle_reader, idle = await asyncio.open_connection(*listening.sockets[0].getsockname())
            for _ in range(2):
                idle.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"204" in await idle_reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.2)
            idle.close()
            await idle.wait_closed()

    asyncio.run(scenario())
