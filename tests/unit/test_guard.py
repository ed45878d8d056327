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

    scope = {"type": "http", "method": "GET", "path": path, "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]}
    asyncio.run(Guard(app, token=token)(scope, None, send))  # type: ignore[arg-type]
    assert answers == [status]


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/static/live.js", 200),
        ("POST", "/", 401),
        ("POST", "/static/live.js", 401),
        ("GET", "/static", 401),
        ("GET", "/failures", 401),
        ("POST", "/failures/decisions", 401),
    ],
)
def test_only_the_live_page_s_own_files_need_no_token(method: str, path: str, status: int):
    assert _answer(Guard(_app, token="secret"), path, {}, method=method) == status


@pytest.mark.parametrize(
    "host, status",
    [
        (None, 200),
        ("127.0.0.1:4000", 200),
        ("127.0.0.2", 200),
        ("localhost:4000", 200),
        ("LOCALHOST:4000", 200),
        ("dedup.localhost", 200),
        ("[::1]:4000", 200),
        ("elsewhere.example:4000", 403),
        ("localhost.elsewhere.example", 403),
        ("127.0.0.1.elsewhere.example", 403),
        ("192.0.2.7:4000", 403),
        ("0.0.0.0:4000", 403),
        ("", 403),
        ("[broken", 403),
    ],
)
def test_without_a_token_a_loopback_address_answers_to_the_names_of_this_machine_only(host: str | None, status: int):
    # A page whose own name has been made to mean 127.0.0.1 sends the same Origin and Host
    headers = {} if host is None else {"host": host, "origin": f"http://{host}"}
    guard = Guard(_app, token="", local=True, open_paths=frozenset({"/hooks/signed"}))
    assert _answer(guard, "/stats", headers) == status
    assert _answer(guard, "/", headers) == status
    assert _answer(guard, "/socket.io/", headers) == status
    assert _answer(guard, "/socket.io/", headers, kind="websocket") == (200 if status == 200 else "websocket.close")
    assert _answer(guard, "/health/live", headers) == 200, "for probes, whatever they call us"
    if host != "[broken":
        assert _answer(guard, "/hooks/signed", {"host": host or ""}, method="POST") == 200, "a signature says whose it is"


def test_with_a_token_or_outside_loopback_any_name_will_do():
    headers = {"host": "dedup.example", "origin": "http://dedup.example", "authorization": "Bearer secret"}
    assert _answer(Guard(_app, token="secret", local=True), "/stats", headers) == 200
    assert _answer(Guard(_app, token="secret", local=False), "/stats", headers) == 200


async def _app(_scope, _receive, send) -> None:
    await send({"type": "http.response.start", "status": 200})


def _answer(guard: Guard, path: str, headers: dict[str, str], *, method: str = "GET", kind: str = "http") -> object:
    """The status of the answer; of a WebSocket that is refused the message that says so."""
    answers: list[object] = []

    async def send(message) -> None:
        if message["type"] != "http.response.body":
            answers.append(message.get("status", message["type"]))

    scope = {"type": kind, "path": path, "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]}
    if kind == "http":
        scope["method"] = method
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    assert len(answers) == 1
    return answers[0]
