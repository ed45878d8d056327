"""Refusals and failures as HTTP says them: ``application/problem+json`` (RFC 9457) with the event's index and field.

| our error | status | meaning for the producer |
|---|---|---|
| ``InvalidEvent`` | 400, 409, 413, 422 | the same request is refused again |
| ``StoreUnavailable``, ``CommitUnknown``, ``InboxFull`` | 503, with ``Retry-After`` | unknown, or not taken: send the same events again |

Guarantees: whatever a client sends, it gets a problem document and never a traceback.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import InboxFull, InvalidEvent, PermanentError, TransientError
from broadcaster.answers import encode

RETRY_S = 2
"""After an outage of the store."""
RETRY_FULL_S = 10
"""After the inbox was found full: it takes the listeners a while to empty it."""

log = structlog.get_logger(__name__)


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """A problem document; ``more`` are its extension members, left out where they are None."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    content |= {name: value for name, value in more.items() if value is not None}
    return Response(encode(content), status, dict(headers or {}), media_type="application/problem+json")


def install(api: FastAPI) -> None:
    """Make every error of a route a problem document."""
    api.add_exception_handler(InvalidEvent, _invalid_event)
    api.add_exception_handler(TransientError, _transient)
    api.add_exception_handler(PermanentError, _permanent)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(RequestValidationError, _arguments)
    api.add_exception_handler(Exception, _unexpected)


async def _invalid_event(_request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidEvent)
    return problem(error.status, str(error), index=error.index, field=error.field)


async def _transient(_request: Request, error: Exception) -> Response:
    seconds = RETRY_FULL_S if isinstance(error, InboxFull) else RETRY_S
    return problem(503, str(error), headers={"Retry-After": str(seconds)})


async def _permanent(_request: Request, error: Exception) -> Response:
    return problem(422, str(error))


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
