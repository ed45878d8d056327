"""The route ``GET /metrics``.

Guarantees: it answers while stores are away, within some seconds, and says which (``dedup_up``); however often it is asked, the text is
made once in ``FRESH_S``. The bearer token holds for it as for every route.
"""

import asyncio
from collections.abc import Callable, Iterator

from fastapi import APIRouter
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from app.settings import Settings
from app.stores.records import utc_now
from broadcaster.metrics.deployment import FRESH_S, Deployment, DeploymentLook
from broadcaster.metrics.families import Here, of_deployment, of_here

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Answers scrapes. Belongs to one event loop.

    Args:
        look: asks the stores.
        here: what is true of this process now.
        settings: of this process.
    """

    def __init__(self, look: DeploymentLook, here: Callable[[], Here], settings: Settings) -> None:
        self._look = look
        self._here = here
        self._settings = settings
        self._process = ProcessCollector(registry=None)
        self._task: asyncio.Task[bytes] | None = None
        self._began_at = 0.0

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter()
        router.add_api_route("/metrics", self.scrape, methods=["GET"], response_model=None, include_in_schema=False)
        return router

    async def scrape(self) -> Response:
        """Everything, in Prometheus' text format."""
        loop = asyncio.get_running_loop()
        if self._task is None or (self._task.done() and loop.time() - self._began_at > FRESH_S):
            self._began_at = loop.time()
            self._task = loop.create_task(self._text())
        await asyncio.wait([self._task])
        return Response(self._task.result(), headers={"Content-Type": CONTENT_TYPE})

    async def _text(self) -> bytes:
        found = await self._look.take()
        here = self._here()
        return await asyncio.to_thread(generate_latest, _Everything(lambda: self._families(found, here)))

    def _families(self, found: Deployment, here: Here) -> Iterator[Metric]:
        yield from of_deployment(found, self._settings, utc_now())
        yield from of_here(here, mongo_up=found.in_mongo.value is not None)
        yield from self._process.collect()


class _Everything(Collector):
    """What is collected is made at that moment."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return self._families()
