"""``POST /hooks/{name}``: webhooks of other systems, as the policy file declares them (:mod:`app.events.hooks`).

| answer | |
|---|---|
| 202 ``{accepted, keys, batch}`` | after the majority write, as at ``POST /events`` |
| 401 | the signature is missing or wrong; of a hook without signature: the bearer token is |
| 404 | no hook of this name |

Everything else as at the other doors (:mod:`broadcaster.problems`). A hook with a signature needs no bearer token: whoever sends it could not
give one. Its signature is checked before anything is read from the body.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.events.forms import FORM
from app.events.hooks import Hook
from app.events.parsing import IDEMPOTENCY_KEY, EventParser
from broadcaster.answers import Json, receipt_view
from broadcaster.limits import client_of
from broadcaster.problems import RESPONSES
from broadcaster.reception import Reception
from broadcaster.signatures import Verifier

PREFIX = "/hooks/"


class Webhooks:
    """The door for webhooks.

    Args:
        hooks: by name.
        variables: hold the hooks' secrets.
        reception: shared with the other doors.
        parser: shared too.

    Raises:
        PolicyError: a secret is missing.
    """

    def __init__(self, hooks: Mapping[str, Hook], variables: Mapping[str, str], reception: Reception, parser: EventParser) -> None:
        self._hooks = hooks
        self._verifiers = {name: Verifier(hook, variables) for name, hook in hooks.items() if hook.signature is not None}
        self._reception = reception
        self._parser = parser

    @property
    def signed_paths(self) -> frozenset[str]:
        """Paths whose requests show by a signature whose they are."""
        return frozenset(PREFIX + name for name in self._verifiers)

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter(responses=RESPONSES)
        router.add_api_route(PREFIX + "{name}", self.take, methods=["POST"], status_code=202, openapi_extra=_BODY)
        return router

    async def take(self, name: str, request: Request) -> Response:
        """Accept one request of a webhook as one event."""
        hook = self._hooks.get(name)
        if hook is None:
            raise HTTPException(404, "there is no hook of this name")
        client = client_of(request.scope)
        signed = name in self._verifiers
        (self._reception.enter_to_sign if signed else self._reception.enter)(client)
        with self._reception.budget.share(client) as share:
            body = await self._reception.body(request, share)
            headers = _headers(request)
            if signed:
                client = self._verified(name, headers, body, client)
            receipt = await self._reception.accept(
                lambda: self._parser.webhook(hook, headers, body, headers.get(IDEMPOTENCY_KEY.lower())),
                len(body),
                client=client,
                door=_door(name),
            )
        return Json(receipt_view(receipt), 202)

    def _verified(self, name: str, headers: Mapping[str, str], body: bytes, client: str) -> str:
        """Check a signature; who counts as the client from here on. Wrong ones cost the address that sent them."""
        try:
            self._verifiers[name].check(headers, body)
        except HTTPException:
            self._reception.limits.enter(client)
            raise
        self._reception.limits.enter(_door(name))
        return _door(name)


def _door(name: str) -> str:
    return f"hook:{name}"


def _headers(request: Request) -> dict[str, str]:
    """By name in lower case; what came several times is joined by commas."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


_PAYLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {"payload": {"type": "string"}},
    "required": ["payload"],
    "additionalProperties": False,
}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}, FORM: {"schema": _PAYLOAD}}}}
