"""Who may talk to the broadcaster."""

import asyncio

import pytest

from broadcaster.guard import Guard


@pytest.mark.parametrize(
    "path, headers, token, status",
    [
        ("/stats", {}, "", 200),
        ("/stats", {}, "secret", 401),
        ("/stats", {"authorization": "Bearer wrong"}, "secret", 401),
        ("/stats", {"authorization": "secret"}, "secret", 401),
        ("/stats", {"authorization": "Bearer sécret"}, "secret", 401),
        ("/stats", {"authorization": "Bearer secret"}, "secret", 200),
        ("/health/ready", {}, "secret", 200),
        ("/health/live", {}, "secret", 200),
        ("/events", {"host": "127.0.0.1:4000", "origin": "http://127.0.0.1:4000"}, "", 200),
        ("/events", {"host": "127.0.0.1:4000", "origin": "https://elsewhere.example"}, "", 403),
        ("/events", {"host": "127.0.0.1:4000", "origin": "null"}, "", 403),
        ("/events", {"host": "127.0.0.1:4000", "origin": "http://[broken"}, "", 403),
    ],
)
def test_the_guard(path: str, headers: dict[str, str], token: str, status: int):
    answers: list[int] = []

    async def app(_scope, _receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]}
    asyncio.run(Guard(app, token=token)(scope, None, send))  # type: ignore[arg-type]
    assert answers == [status]
