"""JSON answers: stored documents as clients see them, encoded by msgspec."""

import base64
from datetime import datetime
from typing import Any

import msgspec
from bson.int64 import Int64
from starlette.responses import Response

from app.stores.mongo import Document
from broadcaster.ingress import Receipt


def _plain(value: Any) -> Any:
    if isinstance(value, Int64):
        return int(value)
    return str(value)


encode = msgspec.json.Encoder(enc_hook=_plain).encode


class Json(Response):
    """A JSON answer; instants as RFC 3339 text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return encode(content)


def receipt_view(receipt: Receipt) -> dict[str, Any]:
    """What a producer is told about accepted events."""
    return {"accepted": receipt.accepted, "keys": list(receipt.keys), "batch": receipt.batch}


def event_view(document: Document) -> dict[str, Any]:
    """A document of the ledger or of ``failures`` with its body laid flat, as in CloudEvents."""
    view = {name: value for name, value in document.items() if name not in ("_id", "v", "body", "key")}
    body = dict(document.get("body") or {})
    data = body.pop("data", None)
    extra = body.pop("extra", {})
    if isinstance(data, bytes):
        view["data_base64"] = base64.b64encode(data).decode()
    elif "body" in document:
        view["data"] = data
    return {"key": document.get("key", document["_id"]), **body, **extra, **view}


def age_s(then: datetime, now: datetime) -> float:
    """Seconds between two instants, to the millisecond, not negative."""
    return round(max(0.0, (now - then).total_seconds()), 3)
