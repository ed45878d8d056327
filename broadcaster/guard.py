"""Who may talk to the broadcaster: a bearer token where one is set, and no web page of another site.

Guarantees: with a token set, every HTTP route but ``/health/…`` and the live page's own files, which hold no data, answers 401 without it
(compared in constant time); Socket.IO clients are checked when they enter a namespace, and webhooks with a signature by that. A
browser that sends the ``Origin`` of another site is refused (403), token or not: on a loopback address without a token, any page
that a user visits could otherwise publish events. There, a request must also name this machine as its ``Host``: a page can
make its own name mean 127.0.0.1 (DNS rebinding), and then its ``Origin`` is the same as ours.
"""

import hmac
import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from broadcaster.live.page import is_open
from broadcaster.problems import problem
from broadcaster.sockets import Asgi, Message, Receive, Send

_CLOSE: Message = {"type": "websocket.close", "code": 1008}


class Guard:
    """ASGI: lets a request through or answers it.

    Args:
        app: what is guarded.
        token: the bearer token, or empty for none.
        open_paths: need no token; what is behind them knows by other means whose the request is.
        local: the broadcaster is bound to a loopback address.
    """

    def __init__(self, app: Asgi, *, token: str, open_paths: frozenset[str] = frozenset(), local: bool = False) -> None:
        self._app = app
        self._open_paths = open_paths
        self._token = b"Bearer " + token.encode() if token else b""
        self._only_our_names = local and not token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] in ("http", "websocket") and not scope["path"].startswith("/health/"):
            headers = dict(scope["headers"])
            if self._only_our_names and not self._known_otherwise(scope) and not _names_this_machine(headers.get(b"host")):
                if scope["type"] == "websocket":
                    await send(_CLOSE)
                else:
                    why = "without a token, this broadcaster answers to the names of this machine only, such as localhost: set DEDUP_TOKEN"
                    await problem(403, why)(scope, receive, send)
                return
            if scope["type"] == "http" and not scope["path"].startswith("/socket.io/") and (refusal := self._refusal(scope, headers)):
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> Asgi | None:
        if is_open(scope["path"], scope["method"]):
            return None
        if not _same_site(headers):
            return problem(403, "requests from pages of other sites are refused")
        if self._token and not self._known_otherwise(scope) and not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            return problem(401, "a bearer token is required", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _known_otherwise(self, scope: Message) -> bool:
        return scope["path"] in self._open_paths and scope.get("method") == "POST"


def _same_site(headers: dict[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    if origin is None:
        return True
    try:
        site = urlsplit(origin.decode("latin-1")).netloc
    except ValueError:
        return False
    return site.encode("latin-1").lower() == headers.get(b"host", b"").lower()


@lru_cache(maxsize=16)  # producers have few names for it, and reading one was a tenth of a request
def _names_this_machine(host: bytes | None) -> bool:
    """Whether the Host is a loopback name; one without a Host is no browser."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
