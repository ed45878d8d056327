"""Webhooks that come as forms: ``payload=…`` with JSON in it, percent-encoded, as GitHub and others send unless told otherwise.

Guaranteed: the same body gives the same JSON text. Other forms are refused: their fields are texts without types, and nobody says which of
several fields of one name counts.
"""

from urllib.parse import parse_qsl

from app.errors import InvalidEvent

FORM = "application/x-www-form-urlencoded"
FIELD = "payload"
_REMEDY = "let the sender use application/json"


def payload_of(body: bytes) -> bytes:
    """The JSON text in a form's only field, ``payload``.

    Raises:
        InvalidEvent: another form, or none.
    """
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=2)
    except ValueError:
        raise InvalidEvent(f"the body is no form, or one of many fields: {_REMEDY}", field="Content-Type") from None
    if [name for name, _ in fields] != [FIELD]:
        raise InvalidEvent(f"a webhook's form must have one field, {FIELD}, with JSON in it: {_REMEDY}", field="Content-Type")
    return fields[0][1].encode()
