"""The HTTP doors: ``POST /events`` and ``POST /burst``.

| route | answer |
|---|---|
| ``POST /events`` | 202 ``{accepted, keys, batch}``, after the majority write. Plain JSON, or CloudEvents: structured, batch, binary; also as gzip |
| ``POST /burst`` | 202 ``{accepted, batches, start}``: ``{"count": n}`` sample flights on the same way; only on a loopback address |

``keys`` holds one key per distinct event, in the request's order. Refusals: :mod:`broadcaster.problems`.
"""

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import samples
from app.events.attributes import MAX_ATTRIBUTE_BYTES
from app.events.event import Event
from app.events.parsing import IDEMPOTENCY_KEY, EventParser
from app.settings import Settings
from broadcaster.answers import Json, receipt_view
from broadcaster.body import in_form
from broadcaster.ingress import Ingress
from broadcaster.limits import client_of
from broadcaster.problems import RESPONSES
from broadcaster.reception import Reception

MAX_BURST = 10_000


class Burst(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /burst``; without ``start`` it goes on where the last one ended."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_BURST)]
    start: Annotated[int, msgspec.Meta(ge=0, lt=samples.TOTAL)] | None = None


class Doors:
    """What takes events in over HTTP."""

    def __init__(self, reception: Reception, ingress: Ingress, parser: EventParser, settings: Settings) -> None:
        self._reception = reception
        self._ingress = ingress
        self._parser = parser
        self._settings = settings
        self._next_sample = 0

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(responses=RESPONSES)
        router.add_api_route(
            "/events", self.publish, methods=["POST"], status_code=202, openapi_extra=_events_body(self._settings.max_batch_events)
        )
        router.add_api_route("/burst", self.burst, methods=["POST"], status_code=202, openapi_extra=_BURST_BODY)
        return router

    async def publish(self, request: Request) -> Response:
        """Accept one event or several, as a whole or not at all."""
        client = client_of(request.scope)
        self._reception.enter(client)
        with self._reception.budget.share(client) as share:
            body = await self._reception.body(request, share)
            receipt = await self._reception.accept(lambda: self._read(request, body), len(body), client=client, door="http")
        return Json(receipt_view(receipt), 202)

    async def burst(self, request: Request) -> Response:
        """Accept sample flights."""
        if not self._settings.loopback:
            raise HTTPException(403, "sample events are off outside loopback addresses")
        with self._reception.budget.share(client_of(request.scope)) as share:
            order = in_form(
                await self._reception.body(request, share, limit=1_000), Burst, 'the body must be like {"count": 100}', field="count"
            )
        start = self._next_sample if order.start is None else order.start
        batches: list[str] = []
        accepted = 0
        for events in await asyncio.to_thread(self._samples, start, order.count):
            receipt = await self._ingress.accept(events, door="burst")
            accepted += receipt.accepted
            batches.append(receipt.batch)
        self._next_sample = (start + order.count) % samples.TOTAL
        return Json({"accepted": accepted, "batches": batches, "start": start}, 202)

    def _read(self, request: Request, body: bytes) -> list[Event]:
        headers = request.headers
        key = headers.get(IDEMPOTENCY_KEY)
        if "ce-specversion" in headers:
            return self._parser.binary(headers, body, key)
        return self._parser.request(body, headers.get("content-type"), key)

    def _samples(self, start: int, count: int) -> list[list[Event]]:
        """``count`` flights from ``start`` on, round the end, in batches."""
        rows = list(samples.flights(count, start))
        rows += samples.flights(count - len(rows))
        size = self._settings.max_batch_events
        return [self._parser.values(rows[at : at + size]) for at in range(0, len(rows), size)]


_BURST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "count": {"type": "integer", "minimum": 1, "maximum": MAX_BURST},
                        "start": {"type": "integer", "minimum": 0, "maximum": samples.TOTAL - 1},
                    },
                    "required": ["count"],
                    "additionalProperties": False,
                }
            }
        },
    }
}

_TEXT: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ATTRIBUTE_BYTES,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$",
    "description": f"at most {MAX_ATTRIBUTE_BYTES} bytes of UTF-8, without control characters",
}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
_PLAIN: dict[str, Any] = {
    "type": "object",
    "properties": {"type": _TEXT, "source": _TEXT, "id": _TEXT, "time": _TIME, "data": {}},
    "required": ["type"],
    "additionalProperties": False,
}
_CLOUD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "specversion": {"const": "1.0"},
        "type": _TEXT,
        "source": _TEXT,
        "id": _TEXT,
        "time": _TIME,
        "subject": _TEXT,
        "data": {},
    },
    "required": ["specversion", "type", "source", "id"],
}


def _events_body(max_events: int) -> dict[str, Any]:
    def several(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": item, "minItems": 1, "maxItems": max_events}

    schemas = {
        "application/json": {"anyOf": [_PLAIN, several(_PLAIN)]},
        "application/cloudevents+json": _CLOUD,
        "application/cloudevents-batch+json": several(_CLOUD),
    }
    return {"requestBody": {"required": True, "content": {media: {"schema": schema} for media, schema in schemas.items()}}}
