"""Whether a webhook's request is signed by whom it should be.

Guarantees: the MAC is compared in constant time; a request of the Standard Webhooks scheme is at most ``TOLERANCE_S`` old by its own, signed
timestamp. Not guaranteed: that it comes for the first time. A request that somebody sends again is the same event, as long as its id
comes from what is signed.
"""

import base64
import binascii
import hmac
import time
from collections.abc import Callable, Mapping

from starlette.exceptions import HTTPException

from app.errors import PolicyError
from app.events.hooks import Hook, Signature

TOLERANCE_S = 300
"""Source: the reference implementations of Standard Webhooks."""
_STANDARD_PREFIX = "whsec_"


class Verifier:
    """Checks the requests of one hook.

    Args:
        hook: has a signature.
        variables: hold its secrets.
        clock: seconds since 1970.

    Raises:
        PolicyError: a secret is missing, or cannot be one.
    """

    def __init__(self, hook: Hook, variables: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> None:
        assert hook.signature is not None
        self._signature = hook.signature
        self._secrets = [_secret(hook, name, variables) for name in hook.secret_env]
        self._clock = clock

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Let a request pass.

        Args:
            headers: names in lower case.
            body: as it was signed: without Content-Encoding.

        Raises:
            HTTPException: 401.
        """
        signed = self._prologue(headers) + body if self._signature.scheme == "standard-webhooks" else body
        given = headers.get(self._signature.header)
        if given is None:
            raise self._refusal(f"the request has no {self._signature.header}")
        expected = [self._expected(secret, signed) for secret in self._secrets]
        candidates = given.split() if self._signature.scheme == "standard-webhooks" else [given.strip()]
        right = False
        for candidate in candidates:
            normal = self._normal(candidate)
            for mac in expected:
                right |= hmac.compare_digest(mac, normal)
        if not right:
            raise self._refusal(f"{self._signature.header} is not the signature of this body")

    def _prologue(self, headers: Mapping[str, str]) -> bytes:
        id_, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not id_ or not (sent_at.isascii() and sent_at.isdigit() and len(sent_at) < 15):
            raise self._refusal("the request needs webhook-id and webhook-timestamp")
        if abs(self._clock() - int(sent_at)) > TOLERANCE_S:
            raise self._refusal(f"webhook-timestamp is more than {TOLERANCE_S} s from now")
        return f"{id_}.{sent_at}.".encode("latin-1", "replace")

    def _expected(self, secret: bytes, signed: bytes) -> bytes:
        mac = hmac.digest(secret, signed, self._signature.algorithm)
        text = mac.hex() if self._signature.encoding == "hex" else base64.b64encode(mac).decode()
        return f"{self._signature.prefix}{text}".encode()

    def _normal(self, given: str) -> bytes:
        """A signature as ours are written: hexadecimal digits in lower case."""
        prefix = self._signature.prefix
        if self._signature.encoding == "hex" and given.startswith(prefix):
            given = prefix + given[len(prefix) :].lower()
        return given.encode("latin-1", "replace")

    def _refusal(self, detail: str) -> HTTPException:
        return HTTPException(401, detail, headers={"WWW-Authenticate": f'Signature header="{self._signature.header}"'})


def _secret(hook: Hook, variable: str, variables: Mapping[str, str]) -> bytes:
    text = variables.get(variable, "").strip()
    if not text:
        raise PolicyError(f"the hook {hook.name} names the variable {variable} for its secret, which is not set")
    if _is_standard(hook.signature):
        try:
            return base64.b64decode(text.removeprefix(_STANDARD_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise PolicyError(f"the hook {hook.name} needs a secret in base64, as in whsec_…, and {variable} holds none") from None
    return text.encode()


def _is_standard(signature: Signature | None) -> bool:
    return signature is not None and signature.scheme == "standard-webhooks"
