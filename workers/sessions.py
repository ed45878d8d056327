"""The MongoDB sessions of a slice: one for its plain transactions, one for each event whose transaction runs on the event loop.

Their ids stand in the claims before anything is written, so that whoever takes an event over can end the transaction that its
owner left open.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.client_session import ClientSession

from app.messages import EventRef
from workers.runtime import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """What :func:`sessions_of` opened.

    Attributes:
        plain: for transactions with plain handlers; None where no event of the slice has transactional ones.
        on_loop: by key, for events with ``async def`` transactional handlers.
    """

    plain: ClientSession | None = None
    on_loop: Mapping[str, AsyncClientSession] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether any event of the slice has one."""
        return self.plain is not None or bool(self.on_loop)

    def id_for(self, key: str) -> str:
        """Hex id of the session in whose transaction an event commits; empty where it needs none."""
        session = self.on_loop.get(key) or self.plain
        return bytes(session.session_id["id"]).hex() if session is not None else ""


@contextmanager
def sessions_of(runtime: Runtime, events: Sequence[EventRef]) -> Iterator[Sessions]:
    """Open the sessions that a slice needs, and end them with the block."""
    handlers = {kind: runtime.handlers.for_type(kind) for _, _, kind in events}
    on_loop = {kind for kind, found in handlers.items() if any(h.is_async and not h.at_least_once for h in found)}
    plain = runtime.db.client.start_session() if any(not h.at_least_once and not h.is_async for h in chain(*handlers.values())) else None
    opened: dict[str, AsyncClientSession] = {}
    try:
        if on_loop:
            keys = [key for key, _, kind in events if kind in on_loop]
            opened = runtime.loop.run(_started(runtime.async_db().client, keys))
        yield Sessions(plain=plain, on_loop=opened)
    finally:
        if opened:
            runtime.loop.run(_end(opened))
        if plain is not None:
            plain.end_session()


async def _started(client: AsyncMongoClient[Any], keys: Sequence[str]) -> dict[str, AsyncClientSession]:
    return {key: client.start_session() for key in keys}


async def _end(opened: Mapping[str, AsyncClientSession]) -> None:
    for session in opened.values():
        await session.end_session()
