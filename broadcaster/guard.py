"""Who may talk to the broadcaster: a bearer token where one is set, and no web page of another site.

Guarantees: with a token set, every HTTP route but ``/health/…`` answers 401 without it (compared in constant time); Socket.IO
clients are checked when they enter a namespace, and webhooks with a signature by that. A browser that sends the ``Origin`` of another site is refused (403), token or not: on
a loopback address without a token, any page that a user visits could otherwise publish events.
"""

import hmac
from urllib.parse import urlsplit

from broadcaster.problems import problem
from broadcaster.sockets import Asgi, Message, Receive, Send


class Guard:
    """ASGI: lets a request through or answers it.

    Args:
        app: what is guarded.
        token: the bearer token, or empty for none.
        open_paths: need no token; what is behind them knows by other means whose the request is.
    """

    def __init__(self, app: Asgi, *, token: str, open_paths: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._open_paths = open_paths
        self._token = b"Bearer " + token.encode() if token else b""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not scope["path"].startswith(("/socket.io/", "/health/")):
            headers = dict(scope["headers"])
            if not _same_site(headers):
                await problem(403, "requests from pages of other sites are refused")(scope, receive, send)
                return
            known_otherwise = scope["path"] in self._open_paths and scope["method"] == "POST"
            if self._token and not known_otherwise and not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
                answer = problem(401, "a bearer token is required", headers={"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _same_site(headers: dict[bytes, bytes]) -> bool:
    origin = headers.get(b"origin")
    if origin is None:
        return True
    try:
        site = urlsplit(origin.decode("latin-1")).netloc
    except ValueError:
        return False
    return site.encode("latin-1").lower() == headers.get(b"host", b"").lower()
