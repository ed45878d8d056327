"""The routes that list failures, and take an operator's decisions about them.

| route | answer |
|---|---|
| ``GET /failures`` | the ones changed last, without bodies, by ``state`` and ``type``; ``limit`` 1 to 500; ``more``: there are others |
| ``POST /failures/decisions`` | 200 ``{done}``; the body is ``{"decision", "key", "digest"}``; 409 with the sentence that says why not |

``decision`` is one of those of :mod:`app.decisions`: ``retry``, ``discard``, ``accept-new``, ``keep-old``. The body must say that it is JSON, which a form
of another site cannot.
"""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from pymongo.database import Database
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.decisions import DecisionRefused, Decisions
from app.events.policies import Policies
from app.naming import FailureState
from app.stores.mongo import Document, translated
from broadcaster.answers import Json
from broadcaster.body import in_form
from broadcaster.limits import client_of
from broadcaster.problems import RESPONSES
from broadcaster.reception import Reception

MAX_BODY = 4_000
_HIDDEN = {"_id": 0, "v": 0, "body": 0, "error.traceback": 0}

State = Annotated[FailureState | None, Query()]
Type = Annotated[str | None, Query(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=500)]


class Decision(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /failures/decisions``."""

    decision: Literal["retry", "discard", "accept-new", "keep-old"]
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    digest: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


log = structlog.get_logger(__name__)


class FailureRoutes:
    """Failures over HTTP."""

    def __init__(self, db: Database[Document], reception: Reception, policies: Policies) -> None:
        self._db = db
        self._reception = reception
        self._decisions = Decisions.on(db, by="the live page", policies=policies)

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(responses=RESPONSES)
        router.add_api_route("/failures", self.recent, methods=["GET"], response_model=None)
        router.add_api_route("/failures/decisions", self.decide, methods=["POST"], response_model=None, openapi_extra=_BODY)
        return router

    async def recent(self, state: State = None, type: Type = None, limit: Limit = 50) -> Response:
        """The failures that changed last."""
        query = {name: value for name, value in (("state", state), ("type", type)) if value}
        found = await asyncio.to_thread(self._find, query, limit + 1)
        return Json({"failures": found[:limit], "more": len(found) > limit})

    async def decide(self, request: Request) -> Response:
        """Take one decision."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "a decision is application/json")
        with self._reception.budget.share(client_of(request.scope)) as share:
            order = in_form(
                await self._reception.body(request, share, limit=MAX_BODY), Decision, "a decision names decision, key and digest"
            )
        try:
            done = await asyncio.to_thread(self._decisions.by_name()[order.decision], order.key, order.digest)
        except DecisionRefused as error:
            raise HTTPException(409, str(error)) from error
        log.info("failure.decided", decision=order.decision, key=order.key, digest=order.digest, done=done)
        return Json({"done": done})

    def _find(self, query: dict[str, Any], limit: int) -> list[Document]:
        with translated("listing failures"):
            return list(self._db["failures"].find(query, _HIDDEN).sort("updated_at", -1).limit(limit).max_time_ms(2_000))


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["decision", "key", "digest"],
                    "additionalProperties": False,
                    "properties": {
                        "decision": {"enum": ["retry", "discard", "accept-new", "keep-old"]},
                        "key": {"type": "string", "minLength": 1, "maxLength": 512},
                        "digest": {"type": "string", "minLength": 1, "maxLength": 64},
                    },
                }
            }
        },
    }
}
