"""The live page's files, and the rules under which a browser runs them.

Guarantees: only these files are served, whatever the path; scripts and styles come from this server alone, none is inline, and no other
site can show the page in a frame, so that an event's content cannot become code. The files hold no data: they are served without
the token, and the page asks for it.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

PREFIX = "/static/"
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_RULES = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def is_open(path: str, method: str) -> bool:
    """Whether a request is for the page's files, which need no token."""
    return method in ("GET", "HEAD") and (path == "/" or path.startswith(PREFIX))


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    content: bytes
    headers: dict[str, str]


class Page:
    """The files, read once."""

    def __init__(self) -> None:
        self._files = {}
        for file in files("broadcaster").joinpath("static").iterdir():
            suffix = file.name[file.name.rfind(".") :]
            if suffix in _MEDIA:
                content = file.read_bytes()
                tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
                headers = _RULES | {"Content-Type": f"{_MEDIA[suffix]}; charset=utf-8", "ETag": tag}
                self._files[file.name] = _File(content=content, headers=headers)

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()
        router.add_api_route("/", self.index, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
        router.add_api_route(PREFIX + "{name}", self.file, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
        return router

    async def index(self, request: Request) -> Response:
        """The page."""
        return self._answer("index.html", request)

    async def file(self, name: str, request: Request) -> Response:
        """One of its files."""
        return self._answer(name, request)

    def _answer(self, name: str, request: Request) -> Response:
        found = self._files.get(name)
        if found is None:
            raise HTTPException(404, "the live page has no such file")
        if request.headers.get("if-none-match") == found.headers["ETag"]:
            return Response(status_code=304, headers=found.headers)
        return Response(found.content, headers=found.headers)
