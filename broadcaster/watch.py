"""What the broadcaster knows about the stores without making anybody wait for them.

:class:`Look` asks a store in a thread, once for all who want to know at the time, and nobody waits longer than they say.
:class:`InboxWatch` looks at the inbox and at ``failures`` every second, and closes ingress while one of them is at its limit.

Guarantees: at most one thread per look hangs in a store that does not answer. Not guaranteed: that an answer is newer than
``fresh_s``, and that a limit is never exceeded by what comes in within a second.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from pymongo.database import Database

from app.errors import DedupError
from app.settings import Settings
from app.stores.capacity import Held, measure, why_full
from app.stores.mongo import Document
from app.stores.records import utc_now
from broadcaster.answers import age_s
from broadcaster.ingress import Ingress

INTERVAL_S = 1.0

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Generic[T]):
    """What a look brought: a value, or why there is none."""

    value: T | None = None
    error: str = ""


class Look(Generic[T]):
    """A question to a store, asked at most once at a time.

    Args:
        ask: blocks; raises one of our errors when the store is away.
        fresh_s: an answer serves for this long.
    """

    def __init__(self, ask: Callable[[], T], *, fresh_s: float) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._asked_at = float("-inf")
        self._task: asyncio.Task[Seen[T]] | None = None

    async def get(self, *, wait_s: float) -> Seen[T]:
        """The answer, or that there is none after ``wait_s``."""
        loop = asyncio.get_running_loop()
        if self._task is None or (self._task.done() and loop.time() - self._asked_at > self._fresh_s):
            self._asked_at = loop.time()
            self._task = loop.create_task(self._look())
        await asyncio.wait([self._task], timeout=wait_s)
        return self._task.result() if self._task.done() else Seen(error=f"no answer within {wait_s:g} s")

    async def _look(self) -> Seen[T]:
        try:
            return Seen(value=await asyncio.to_thread(self._ask))
        except DedupError as error:
            return Seen(error=str(error))


class InboxWatch:
    """Closes and opens ingress by what the inbox and ``failures`` hold (:mod:`app.stores.capacity`)."""

    def __init__(self, db: Database[Document], ingress: Ingress, settings: Settings) -> None:
        self._ingress = ingress
        self._settings = settings
        self.look = Look(lambda: measure(db), fresh_s=0.1)

    async def run(self) -> None:
        """Look at the inbox until cancelled."""
        while True:
            seen = await self.look.get(wait_s=self._settings.mongo_timeout_ms / 1000)
            if seen.value is not None:
                self._judge(seen.value)
            await asyncio.sleep(INTERVAL_S)

    def _judge(self, held: Held) -> None:
        reason = why_full(held, self._settings)
        if bool(reason) != bool(self._ingress.full):
            oldest_s = 0.0 if held.oldest_at is None else age_s(held.oldest_at, utc_now())
            log.warning(
                "inbox.full" if reason else "inbox.open",
                reason=reason,
                batches=held.batches,
                bytes=held.bytes,
                oldest_s=oldest_s,
                failures=held.failures,
            )
        self._ingress.full = reason
