"""The bridge process: its threads, and how they begin and end.

| thread | does |
|---|---|
| ``watch`` | takes and renews the lease, hears which listeners live |
| ``sweep`` | asks MongoDB which deployment this is; sweeps, while this bridge is the active one |
| ``forward`` | sends what was announced |
| ``feed-…`` | one a broadcaster: receives announcements |
| ``foreign-…``, ``accept-…`` | two a foreign feed: receives its events, accepts them (:mod:`broadcaster.bridge.foreign`) |

One lease for forwarding and sweeping together: so the sweeper knows what the forwarder has in hand. No thread ends before it is
told to: whatever goes wrong in one is logged, and it goes on after a pause.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from celery import Celery

from app.errors import DedupError, RedisUnavailable, TransientError
from app.events.policies import Policies
from app.events.sources import Source
from app.feeding import FeedStates
from app.messages import Announcement
from app.redis_client import connect as connect_redis
from app.settings import Settings
from app.stores import mongo
from app.stores.inbox import Inbox
from app.stores.meta import deployment_id
from broadcaster.bridge.feed import Feed
from broadcaster.bridge.foreign import ForeignFeed
from broadcaster.bridge.forwarder import Forwarder
from broadcaster.bridge.intake import Intake
from broadcaster.bridge.notes import Notes
from broadcaster.bridge.outage import Outage
from broadcaster.bridge.watch import Watch
from broadcaster.sending import Sender
from broadcaster.sweeper.sweeper import Sweeper

log: Any = structlog.get_logger()

INTAKE_EVENTS = 50_000
"""So many announced events wait for the forwarder at most: some tens of megabytes."""
_SOONER = 5
_AFTER_FAILURE_S = 1.0
_STOP_WITHIN_S = 2.0


class Bridge:
    """A bridge. Start it once, stop it once.

    Args:
        settings: of this process.
        app: the Celery application.
        sources: foreign servers to listen to.
        variables: the environment, which holds the sources' secrets.

    Raises:
        PolicyError: the policy file is wrong, or a secret that it names is not set.
    """

    def __init__(self, settings: Settings, app: Celery, sources: Sequence[Source] = (), variables: Mapping[str, str] | None = None) -> None:
        # Results are for others to ask for: Redis' backend would subscribe to each sent task's.
        app.conf.update(result_backend="disabled://")
        self._settings = settings
        self._db = mongo.connect(settings, role="bridge")
        self._redis = connect_redis(settings)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.watch = Watch(settings, self._redis, owner=self.owner)
        self.intake = Intake(INTAKE_EVENTS)
        self.feeds = [Feed(url, settings.token, self._accept) for url in settings.bridge_sources]
        self.sweeper = Sweeper(settings, self._db, self._redis, app, being_sent=self.intake.holds)
        self._forwarder = Forwarder(
            self.intake, self.watch, Sender(app), Notes(Inbox(self._db), self.intake), high_water=settings.queue_high_water
        )
        self.foreign = self._foreign_of(sources, variables or {}) if sources else []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; servers that are away are waited for."""
        self._thread("sweep", self._sweep)
        self._thread("watch", self._look)
        self._thread("forward", partial(self._forwarder.run, self._stop))
        for number, feed in enumerate(self.feeds):
            self._thread(f"feed-{number}", partial(feed.run, self._stop))
        for foreign in self.foreign:
            self._thread(f"foreign-{foreign.source.name}", partial(foreign.run, self._stop, self._states))
            self._thread(f"accept-{foreign.source.name}", partial(foreign.accept, self._stop))

    def stop(self) -> None:
        """Stop within 3 seconds, give the lease back, close the connections; what is in hand stays in the inbox."""
        self._stop.set()
        for foreign in self.foreign:
            foreign.close()
        for feed in self.feeds:
            feed.close()
        deadline = time.monotonic() + _STOP_WITHIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        closing = threading.Thread(target=self._close, name="close", daemon=True)
        closing.start()
        closing.join(max(0.1, deadline - time.monotonic()))
        log.info("bridge.stopped", unfinished=[thread.name for thread in self._threads if thread.is_alive()])

    def _close(self) -> None:
        """Close the clients; a MongoDB that is away would be waited for, so it gets a thread that may be left behind."""
        self._redis.close()
        self._db.client.close()

    # ----------------------------------------------------------------------------------------------------- the threads

    def _accept(self, announced: list[Announcement]) -> None:
        if self.watch.active and (dropped := self.intake.offer(announced)):
            log.warning("bridge.dropped", batches=dropped)

    def _foreign_of(self, sources: Sequence[Source], variables: Mapping[str, str]) -> list[ForeignFeed]:
        policies = Policies.load(self._settings.policies, self._settings)
        return [ForeignFeed(source, self._settings, policies, self._db, self._accept_own, variables) for source in sources]

    def _accept_own(self, announced: list[Announcement]) -> None:
        if dropped := self.intake.offer(announced, own=True):
            log.warning("bridge.dropped", batches=dropped)

    def _states(self) -> FeedStates | None:
        deployment = self.watch.deployment
        return FeedStates(self._redis, deployment) if deployment else None

    def _look(self) -> None:
        outage = Outage("redis")
        while not self._stop.is_set():
            try:
                self.watch.look()
                outage.over()
            except RedisUnavailable as error:
                outage.note(error)
            if not self.watch.active:
                self.intake.clear()
            self._stop.wait(self.watch.pause_s if self.watch.deployment else 0.02)
        with contextlib.suppress(RedisUnavailable):  # then the lease ends by itself
            self.watch.leave()

    def _sweep(self) -> None:
        outage = Outage("sweep")
        was_active = False
        sweep_s = self._settings.sweep_ms / 1000
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            began = time.monotonic()
            pause_s = sweep_s
            try:
                deployment = deployment_id(self._db)
                self.watch.use(deployment)
                if self.watch.active:
                    if not was_active:
                        self.sweeper.restart()
                    if self.sweeper.sweep(deployment).more:
                        pause_s = sweep_s / _SOONER
                    pause_s = max(pause_s, 2 * (time.monotonic() - began))  # however much there is, others need the servers too
                was_active = self.watch.active
                outage.over()
            except TransientError as error:
                outage.note(error)
        self.sweeper.close()

    def _thread(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=lambda: self._forever(name, run), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _forever(self, name: str, run: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                run()
            except DedupError as error:
                log.error("bridge.failed", thread=name, error=str(error))
            except Exception:
                log.exception("bridge.failed", thread=name)
            self._stop.wait(_AFTER_FAILURE_S)
