"""The HTTP routes that only read.

| route | answer |
|---|---|
| ``GET /events`` | the ledger's newest events, newest first, by ``type`` and ``listener``; ``limit`` 1 to 1,000; ``brief``: without their content |
| ``GET /events/{key}`` | where a key is (percent-encoded in the URL): ledger, failures or inbox, and who has it now; 404 when nowhere |
| ``GET /stats`` | numbers; see :mod:`broadcaster.stats` |
| ``GET /health/live`` | 200 while the process answers |
| ``GET /health/ready`` | 200 when events are accepted, else 503 with the reasons. Redis is shown, but producers do not need it |
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pymongo.database import Database
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import TransientError
from app.settings import Settings
from app.stores.mongo import Document
from broadcaster.answers import Json
from broadcaster.ingress import Ingress
from broadcaster.lookup import find_event, recent_events
from broadcaster.problems import RESPONSES
from broadcaster.stats import Report, state_of

MAX_KEY_BYTES = 512
HEALTH_WAIT_S = 1.5

Filter = Annotated[str | None, Query(max_length=256)]


class Reads:
    """What answers questions over HTTP."""

    def __init__(self, db: Database[Document], report: Report, ingress: Ingress, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._report = report
        self._ingress = ingress

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(responses=RESPONSES)
        router.add_api_route("/events", self.recent, methods=["GET"], response_model=None)
        router.add_api_route("/events/{key:path}", self.event, methods=["GET"], response_model=None)
        router.add_api_route("/stats", self.stats, methods=["GET"], response_model=None)
        router.add_api_route("/health/live", self.live, methods=["GET"], response_model=None)
        router.add_api_route("/health/ready", self.ready, methods=["GET"], response_model=None)
        return router

    async def recent(
        self, type: Filter = None, listener: Filter = None, limit: Annotated[int, Query(ge=1, le=1000)] = 50, brief: bool = False
    ) -> Response:
        """The newest processed events."""
        found = await asyncio.to_thread(recent_events, self._db, type=type, listener=listener, limit=limit, bodies=not brief)
        return Json({"events": found})

    async def event(self, key: str) -> Response:
        """Where an event is."""
        known = 0 < len(key.encode("utf-8", "replace")) <= MAX_KEY_BYTES
        found = await asyncio.to_thread(find_event, self._db, self._settings, key) if known else None
        if found is None:
            raise HTTPException(404, "no event of this key is known")
        return Json(found)

    async def stats(self) -> Response:
        """Numbers of this process and of the deployment."""
        return Json(await self._report.stats())

    async def live(self) -> Response:
        """Whether the process answers."""
        return Json({"status": "live"})

    async def ready(self) -> Response:
        """Whether events are accepted, and if not, why; and when the sweeper last succeeded, which tells whether they will be processed."""
        report = self._report
        mongo, redis, sweeper = await asyncio.gather(
            report.mongo.get(wait_s=HEALTH_WAIT_S), report.redis.get(wait_s=HEALTH_WAIT_S), report.sweeper.get(wait_s=HEALTH_WAIT_S)
        )
        reasons = [] if mongo.value else [f"MongoDB: {mongo.error or 'no primary answers'}"]
        try:
            self._ingress.check_open()
        except TransientError as error:
            reasons.append(str(error))
        answer: dict[str, Any] = {"ready": not reasons, "reasons": reasons, "mongo": state_of(mongo), "redis": state_of(redis)}
        answer["sweeper"] = {"error": sweeper.error} if sweeper.value is None else sweeper.value
        return Json(answer, 503, {"Retry-After": str(TransientError.retry_after_s)}) if reasons else Json(answer)
