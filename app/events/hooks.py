"""Webhooks: how a request of somebody else's system becomes an event, and how it shows that it is theirs.

| field of ``[hooks.NAME]`` | default | meaning |
|---|---|---|
| ``type`` | | expression |
| ``source`` | the hook's name | expression |
| ``id`` | none | expression; an integer becomes text. Not needed where the type's policy has a key rule |
| ``time`` | none | expression; RFC 3339 text |
| ``data`` | ``body`` | expression |
| ``signature`` | none | ``"github"``, ``"standard-webhooks"``, or a table ``{header, algorithm, encoding, prefix}`` for a plain HMAC of the body |
| ``secret_env`` | | name of the environment variable that holds the secret, or a list of names while one replaces another |

Expressions are JMESPath over ``{headers, body}``: names of headers in lower case, as in ``headers."x-github-event"``; the body is JSON, or a
form with JSON in its field ``payload``, which is then the body. A text in quotes, ``'github'``, stands for itself.

Guaranteed: the same request gives the same event. Not guaranteed: that it is a good event (:class:`app.events.parsing.EventParser` says that), nor
that an id taken from a header is covered by the signature: signatures cover the body, and of headers only what their scheme says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.errors import InvalidEvent
from app.events.expressions import compile_reader

Reader = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """How a request is signed.

    Attributes:
        scheme: ``standard-webhooks``, or ``hmac``: a MAC of the body alone in one header.
        header: in lower case.
        algorithm: of the hash.
        encoding: of the MAC in the header.
        prefix: what stands before it there.
    """

    scheme: Literal["hmac", "standard-webhooks"] = "hmac"
    header: str
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""


GITHUB = Signature(header="x-hub-signature-256", prefix="sha256=")
"""Source: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries"""
STANDARD = Signature(scheme="standard-webhooks", header="webhook-signature", encoding="base64", prefix="v1,")
"""Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One webhook. See the module's docstring for the fields.

    Raises:
        ValueError: an expression cannot be read; the text begins with the field's name.
    """

    name: str
    type: str
    source: str | None = None
    id: str | None = None
    time: str | None = None
    data: str = "body"
    signature: Signature | None = None
    secret_env: tuple[str, ...] = ()
    _readers: dict[str, Reader] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("type", "source", "id", "time", "data")}
        object.__setattr__(self, "_readers", {name: compile_reader(name, text) for name, text in given.items() if text is not None})

    def event_of(self, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        """A request as a plain event.

        Args:
            headers: by name in lower case.
            body: a JSON value.

        Raises:
            InvalidEvent: an expression does not fit the request; or finds no type, or no source.
        """
        request = {"headers": dict(headers), "body": body}
        event: dict[str, Any] = {"source": self.name}
        for name, read in self._readers.items():
            value = read(request)
            if value is None and name in ("type", "source"):
                raise InvalidEvent(f"the request has no {name}: {getattr(self, name)} finds nothing", field=name)
            event[name] = str(value) if name == "id" and type(value) is int else value
        return {name: value for name, value in event.items() if value is not None}
