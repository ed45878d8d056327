"""What all doors share: a request is read within bounds, off the event loop where it is long, and handed to ingress.

Guarantees: bodies, rates and what is read at a time are bounded over all doors together; every door has the same answers for the same events.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request

from app.events.event import Event
from app.settings import Settings
from app.stores.submission import Submission, prepare
from broadcaster.body import INLINE_BYTES, Budget, Share, read_body
from broadcaster.ingress import Ingress, Receipt
from broadcaster.limits import RateLimits

READERS = 2

Read = Callable[[], list[Event]]


class Reception:
    """Belongs to one event loop. Each request first enters, is then read, and in the end accepted or refused.

    Args:
        ingress: takes the events.
        settings: the limits.
    """

    def __init__(self, ingress: Ingress, settings: Settings) -> None:
        self._ingress = ingress
        self._settings = settings
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self.limits = RateLimits(settings)
        self.budget = Budget()

    def enter(self, client: str) -> None:
        """Refuse early, before anything is read.

        Raises:
            InboxFull: the inbox is at its limit.
            StoreUnavailable: the broadcaster is stopping.
            RateLimited: the client sends too much.
        """
        self._ingress.check_open()
        self.limits.enter(client)

    def enter_to_sign(self, client: str) -> None:
        """The same for a request that is yet to show by its signature whose it is; costs the client nothing.

        Raises: as :meth:`enter`.
        """
        self._ingress.check_open()
        self.limits.check(client)

    async def body(self, request: Request, share: Share, *, limit: int | None = None) -> bytes:
        """A request's body; raises as :func:`~broadcaster.body.read_body`.

        Args:
            request: whose body it is.
            share: takes what is held.
            limit: most bytes; by default those of a request of events.
        """
        return await read_body(request, share, limit=limit or self._settings.max_request_bytes, unpackers=self._readers)

    async def accept(self, read: Read, size: int, *, client: str, door: str) -> Receipt:
        """Read events and store them.

        Args:
            read: makes the events; called in a thread when ``size`` is large.
            size: of what it reads, in bytes.
            client: whose they are.
            door: where they came in.

        Raises:
            InvalidEvent: they are refused.
            TransientError: they are not known to be stored.
        """

        def prepared() -> Submission:
            return prepare(read())

        if size <= INLINE_BYTES:
            submission = prepared()
        else:
            submission = await asyncio.get_running_loop().run_in_executor(self._readers, prepared)
        self.limits.spend(client, len(submission.entries))
        return await self._ingress.submit(submission, door=door)

    def close(self) -> None:
        """Let the threads go."""
        self._readers.shutdown(wait=False)
