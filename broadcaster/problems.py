"""Refusals and failures in the words that every door has for them: status, detail, the event's index and field, and when to come back.

| our error | status | meaning for the producer |
|---|---|---|
| ``InvalidEvent`` | 400, 409, 413, 422 | the same request is refused again |
| ``RateLimited`` | 429, with ``Retry-After`` | not taken: send the same events again, later |
| ``StoreUnavailable``, ``CommitUnknown``, ``InboxFull`` | 503, with ``Retry-After`` | unknown, or not taken: send the same events again |

HTTP says it as ``application/problem+json`` (RFC 9457), Socket.IO in the acknowledgement. Guarantees: whatever a client sends, it gets a problem document and never a traceback.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import DedupError, InvalidEvent, PermanentError, RateLimited, TransientError
from broadcaster.answers import encode

log = structlog.get_logger(__name__)


_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "index": {"type": "integer", "minimum": 0},
        "field": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": False,
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    kind: {"description": what, "content": {"application/problem+json": {"schema": _SCHEMA}}}
    for kind, what in (("4XX", "refused"), ("5XX", "unknown, or not taken"))
}
"""For routers: how every refusal looks in ``/openapi.json``."""


def words_of(error: DedupError) -> dict[str, Any]:
    """``status`` and ``detail``; ``index``, ``field`` and ``retry_after_s`` where they are known."""
    words: dict[str, Any] = {"status": 422, "detail": str(error)}
    if isinstance(error, InvalidEvent):
        words |= {"status": error.status, "index": error.index, "field": error.field}
    elif isinstance(error, TransientError):
        words |= {"status": 429 if isinstance(error, RateLimited) else 503, "retry_after_s": error.retry_after_s}
    return {name: value for name, value in words.items() if value is not None}


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """A problem document; ``more`` are its extension members, left out where they are None."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    content |= {name: value for name, value in more.items() if value is not None}
    return Response(encode(content), status, dict(headers or {}), media_type="application/problem+json")


def install(api: FastAPI) -> None:
    """Make every error of a route a problem document."""
    for ours in (PermanentError, TransientError):
        api.add_exception_handler(ours, _ours)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(RequestValidationError, _arguments)
    api.add_exception_handler(Exception, _unexpected)


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DedupError)
    words = words_of(error)
    retry_after_s = words.pop("retry_after_s", None)
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return problem(words.pop("status"), words.pop("detail"), headers=headers, **words)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=error.headers)


async def _arguments(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return problem(422, f"{name}: {first['msg']}", field=name)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request.failed", method=request.method, path=request.url.path, exc_info=error)
    return problem(500, "an unexpected error, which the broadcaster has logged")
