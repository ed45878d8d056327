"""The HTTP doors: ``POST /events`` and ``POST /burst``.

| route | answer |
|---|---|
| ``POST /events`` | 202 ``{accepted, keys, batch}``, after the majority write. Plain JSON, or CloudEvents: structured, batch, binary |
| ``POST /burst`` | 202 ``{accepted, batches, start}``: ``{"count": n}`` sample flights on the same way; only on a loopback address |

``keys`` holds one key per distinct event, in the request's order. Refusals: :mod:`broadcaster.problems`.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import samples
from app.errors import InvalidEvent
from app.events.event import Event
from app.events.parsing import IDEMPOTENCY_KEY, EventParser
from app.settings import Settings
from app.stores.submission import Submission, prepare
from broadcaster.answers import Json
from broadcaster.body import Budget, read_body
from broadcaster.ingress import Ingress

INLINE_BYTES = 16 * 1024
"""Bodies up to this size are read in the event loop; longer ones in a thread, so that nobody waits for them."""
READERS = 2
MAX_BURST = 10_000


class Burst(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /burst``; without ``start`` it goes on where the last one ended."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BURST)]
    start: Annotated[int, msgspec.Meta(ge=0, lt=samples.TOTAL)] | None = None


class Doors:
    """What takes events in over HTTP."""

    def __init__(self, ingress: Ingress, parser: EventParser, settings: Settings) -> None:
        self._ingress = ingress
        self._parser = parser
        self._settings = settings
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._budget = Budget()
        self._next_sample = 0

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()
        router.add_api_route("/events", self.publish, methods=["POST"], status_code=202, openapi_extra=_EVENTS_BODY)
        router.add_api_route("/burst", self.burst, methods=["POST"], status_code=202)
        return router

    async def publish(self, request: Request) -> Response:
        """Accept one event or several, as a whole or not at all."""
        self._ingress.check_open()
        with self._budget.share() as share:
            body = await read_body(request, share, limit=self._settings.max_request_bytes)
            if len(body) <= INLINE_BYTES:
                submission = self._read(request, body)
            else:
                submission = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, request, body)
            del body
            receipt = await self._ingress.submit(submission, door="http")
        return Json({"accepted": receipt.accepted, "keys": receipt.keys, "batch": receipt.batch}, 202)

    async def burst(self, request: Request) -> Response:
        """Accept sample flights."""
        if not self._settings.loopback:
            raise HTTPException(403, "sample events are off outside loopback addresses")
        with self._budget.share() as share:
            order = _burst(await read_body(request, share, limit=1_000))
        start = self._next_sample if order.start is None else order.start
        batches: list[str] = []
        accepted = 0
        for events in await asyncio.to_thread(self._samples, start, order.count):
            receipt = await self._ingress.accept(events, door="burst")
            accepted += receipt.accepted
            batches.append(receipt.batch)
        self._next_sample = (start + order.count) % samples.TOTAL
        return Json({"accepted": accepted, "batches": batches, "start": start}, 202)

    def hang_up(self) -> None:
        """Wait no longer for bodies that have not arrived."""
        self._budget.close()

    def close(self) -> None:
        """Let the threads go."""
        self._readers.shutdown(wait=False)

    def _read(self, request: Request, body: bytes) -> Submission:
        headers = request.headers
        key = headers.get(IDEMPOTENCY_KEY)
        if "ce-specversion" in headers:
            events = self._parser.binary(headers, body, key)
        else:
            events = self._parser.request(body, headers.get("content-type"), key)
        return prepare(events, max_events=self._settings.max_batch_events)

    def _samples(self, start: int, count: int) -> list[list[Event]]:
        """``count`` flights from ``start`` on, round the end, in batches."""
        rows = list(samples.flights(count, start))
        rows += samples.flights(count - len(rows))
        size = self._settings.max_batch_events
        return [self._parser.values(rows[at : at + size]) for at in range(0, len(rows), size)]


def _burst(body: bytes) -> Burst:
    try:
        return msgspec.json.decode(body, type=Burst)
    except msgspec.ValidationError as error:
        raise InvalidEvent(f"the body must be like {{'count': 100}}: {error}", field="count") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidEvent("the body is not JSON", status=400) from None


_EVENTS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            media: {"schema": schema}
            for media, schema in (
                ("application/json", {"type": ["object", "array"]}),
                ("application/cloudevents+json", {"type": "object"}),
                ("application/cloudevents-batch+json", {"type": "array", "items": {"type": "object"}}),
            )
        },
    }
}
