"""A foreign feed: connects to somebody else's Socket.IO server and accepts its events into the inbox.

| thread | does |
|---|---|
| ``foreign-…`` | stays connected; puts each payload into the buffer; says how the feed does |
| ``accept-…`` | reads payloads, accepts them by group commit, announces what was stored to the forwarder of this process |

Guarantees: what is counted as accepted is in the inbox by majority write; a server that asks for an acknowledgement gets it then, and not
before, and none for what is given up; what is no event goes to ``failures`` as ``malformed``, with the
payload; memory is bounded, and what is given up for that is counted and said. MongoDB away or the inbox full: payloads wait in the
buffer. Two bridges on one feed accept each event twice, and it is processed once.

Not guaranteed: that every event of the server arrives. What it emits while nobody is connected, or while the buffer is full, is lost,
unless it waits for acknowledgements and emits again. Two bridges on one feed make that rarer.
"""

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import structlog
from pymongo.database import Database

from app.errors import DedupError, InvalidEvent, RedisUnavailable, TransientError
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.events.source_file import secret
from app.events.sources import Source
from app.feeding import EVERY_S, FeedState, FeedStates
from app.messages import Announcement
from app.settings import Settings
from app.stores.inbox import Inbox
from app.stores.mongo import Document
from app.stores.submission import Submission, prepare
from broadcaster.bridge.buffer import Buffer
from broadcaster.bridge.client import Acknowledge, OrderedClient
from broadcaster.bridge.link import CONNECT_TIMEOUT_S, Link
from broadcaster.bridge.malformed import MAX_KEPT, MalformedStore
from broadcaster.bridge.outage import Outage
from broadcaster.ingress import Ingress, Stored
from broadcaster.watch import InboxWatch

log: Any = structlog.get_logger()

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_LEAVE_WITHIN_S = 1.5
_SAY_EVERY_S = 10.0


class ForeignFeed:
    """One foreign server as a source of events.

    Args:
        source: where it is, and how its payloads become events.
        settings: of this process.
        policies: of this process.
        db: the deployment's database.
        announce: takes announcements of what was stored; must not wait.
        variables: hold the secrets that the source names.

    Raises:
        PolicyError: a secret that the source names is not set.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        policies: Policies,
        db: Database[Document],
        announce: Callable[[list[Announcement]], None],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.accepted = 0
        self.given_up = 0
        self._settings = settings
        self._parser = EventParser(policies, settings)
        self._db = db
        self._announce = announce
        self._buffer = Buffer()
        self._malformed = MalformedStore(source, db, max_kept=min(MAX_KEPT, settings.failures_max // 2))  # no feed closes the doors
        self._full_said_at = float("-inf")
        self._client = OrderedClient(timeout_s=CONNECT_TIMEOUT_S)
        self._client.hear(source.event, source.namespace, self._on_payload)
        self._link = Link(
            self._client,
            source.namespace,
            f"feed {source.name}",
            _options(source, secret(source, variables or {})),
            on_connected=lambda: log.info("feed.connected", feed=source.name),
            pause_s=(_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
            look_s=EVERY_S,
        )

    @property
    def connected(self) -> bool:
        """Whether payloads can arrive now."""
        return self._link.connected

    def state(self) -> FeedState:
        """How it does."""
        return FeedState(
            name=self.source.name,
            node=f"{socket.gethostname()}#{os.getpid()}",
            url=self.source.url.rpartition("@")[2],
            connected=self.connected,
            received=self._buffer.received,
            accepted=self.accepted,
            malformed=self._malformed.seen,
            unkept=self._malformed.unkept,
            unaccepted=self._buffer.refused + self.given_up,
            rubbish=self._client.rubbish,
            waiting=len(self._buffer),
        )

    # ------------------------------------------------------------------------------------------------------ the connection

    def run(self, stop: threading.Event, states: Callable[[], FeedStates | None]) -> None:
        """Stay connected until told to stop.

        Args:
            stop: tells it.
            states: where to say how it does, once that is known.
        """
        self._link.run(stop, lambda: self._say(states()))
        self._say(states(), leaving=True)

    def close(self) -> None:
        """End the connection, from any thread."""
        self._link.close()

    def _on_payload(self, arguments: list[Any], acknowledge: Acknowledge) -> None:
        payload = arguments[0] if len(arguments) == 1 else arguments
        received = Received(payload, acknowledge)
        if not self._buffer.put(received, self._client.message_bytes) and time.monotonic() - self._full_said_at > _SAY_EVERY_S:
            self._full_said_at = time.monotonic()
            log.error("feed.full", feed=self.source.name, waiting=len(self._buffer), unaccepted=self._buffer.refused)

    def _say(self, states: FeedStates | None, *, leaving: bool = False) -> None:
        if states is not None:
            try:
                (states.remove if leaving else states.put)(self.state())
            except RedisUnavailable:
                return  # the next word will do

    # ---------------------------------------------------------------------------------------------------------- accepting

    def accept(self, stop: threading.Event) -> None:
        """Accept what arrives until told to stop, and a moment longer what is there then."""
        asyncio.run(self._accept(stop))

    async def _accept(self, stop: threading.Event) -> None:
        ingress = Ingress(
            Inbox(self._db).write,
            max_events=self._settings.max_batch_events,
            repeat_for_s=self._settings.mongo_timeout_ms / 1000,
            on_stored=self._stored,
        )
        watch = asyncio.create_task(InboxWatch(self._db, ingress, self._settings).run())
        leaving = Leaving(stop)
        while not leaving.now(waiting=len(self._buffer)):
            received = await asyncio.to_thread(self._buffer.first, self._settings.max_batch_events, 0.25)
            if received:
                left = await self._settle(ingress, received, leaving)
                self._buffer.drop(len(received))
                self.given_up += left
        if self.given_up + len(self._buffer):
            self.given_up += len(self._buffer)
            log.error("feed.given_up", feed=self.source.name, payloads=self.given_up)
        watch.cancel()
        await asyncio.wait([watch])

    async def _settle(self, ingress: Ingress, received: list["Received"], leaving: "Leaving") -> int:
        """Store payloads, as events or as malformed, for as long as it takes. Returns how many were left when it was time to go."""
        waiting: list[tuple[Received, Submission]] = []
        no_events: list[Received] = []
        for one in received:
            try:
                waiting.append((one, self._read(one.payload)))
            except InvalidEvent as error:
                self._malformed.note(one.payload, error)
                no_events.append(one)
        outage = Outage(f"inbox, for feed {self.source.name}")
        pause_s = _FIRST_PAUSE_S
        while True:
            waiting, reason = await self._submit(ingress, waiting, no_events)
            try:
                await asyncio.to_thread(self._malformed.flush)
            except TransientError as away:
                reason = away
            else:
                while no_events:
                    no_events.pop().acknowledge()  # sent again, it would be no event again
            if reason is None:
                outage.over()
                return 0
            outage.note(reason)
            if leaving.now(waiting=len(waiting)):
                return len(waiting)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _submit(
        self, ingress: Ingress, waiting: list[tuple["Received", Submission]], no_events: list["Received"]
    ) -> tuple[list[tuple["Received", Submission]], DedupError | None]:
        """Submit payloads together. Returns those that are to be tried again, and why; adds to those that are no events."""
        answers = await asyncio.gather(*(ingress.submit(one, door="feed") for _, one in waiting), return_exceptions=True)
        left: list[tuple[Received, Submission]] = []
        reason: DedupError | None = None
        for (one, submission), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, TransientError):
                left.append((one, submission))
                reason = answer
            elif isinstance(answer, DedupError):
                self._malformed.note(one.payload, answer)
                no_events.append(one)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self.accepted += 1
                one.acknowledge()
        return left, reason

    def _read(self, payload: Any) -> Submission:
        try:
            return prepare(self._parser.values([self.source.event_of(payload)]))
        except InvalidEvent:
            raise
        except Exception as error:
            # One that reading does not foresee must not hold up all behind it: it is kept with the malformed ones.
            log.exception("feed.unreadable", feed=self.source.name)
            raise InvalidEvent(f"reading it failed: {type(error).__name__}") from error

    def _stored(self, batches: list[Stored]) -> None:
        self._announce([batch.announcement() for batch in batches])


class Received(NamedTuple):
    """A payload, and how to say that it is taken."""

    payload: Any
    acknowledge: Acknowledge


class Leaving:
    """When to stop accepting: at once when nothing waits, else after a moment."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._deadline: float | None = None

    def now(self, *, waiting: int) -> bool:
        """Whether it is time to go."""
        if not self._stop.is_set():
            return False
        if self._deadline is None:
            self._deadline = time.monotonic() + _LEAVE_WITHIN_S
        return not waiting or time.monotonic() > self._deadline


def _options(source: Source, auth: Any) -> dict[str, Any]:
    """How to connect: a token that is a text is sent in both of the places where servers look for one."""
    token = auth if isinstance(auth, str) else None
    return {
        "url": source.url,
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "auth": {"token": token} if token else auth,
        "transports": [source.transport],
    }
