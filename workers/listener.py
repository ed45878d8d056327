"""What makes a Celery worker a listener: its queue from its node name, its heartbeat, its handlers checked at start, its logs.

``celery -A app worker -n listener-1@%h`` consumes ``events.listener-1`` and ``events.recovery``. A thread of the worker's main
process says every two seconds that it lives and what it has received; a busy pool does not silence it.
"""

import contextlib
import os
import sys
import threading
import time
from multiprocessing import current_process
from typing import Any

import billiard.util
import celery.apps.worker
import msgspec
import structlog
from celery.signals import (
    celeryd_init,
    setup_logging,
    task_received,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from kombu import Exchange, Queue

from app import redis_client, telemetry
from app.errors import DedupError, TransientError
from app.events.policies import Policies
from app.naming import RECOVERY_QUEUE, listener_of, queue_of
from app.presence import Beat, Presence, remember_listener
from app.settings import Settings
from app.stores import mongo
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from workers.ending import ending
from workers.flushing import TaskEventsTogether
from workers.handlers import check_times, load_handlers, registry
from workers.inhand import DeliveriesInHand
from workers.runtime import end_current

log = structlog.get_logger()


def settings() -> Settings:
    """This process's settings, as ``celeryconfig`` has read them."""
    import celeryconfig

    return celeryconfig.settings


def in_pool_child() -> bool:
    """Whether this is a child process of a pool, which replaces it when it dies."""
    from billiard import current_process as billiard_process

    return "Worker" in type(billiard_process()).__name__ or current_process().name != "MainProcess"


class Heart(threading.Thread):
    """The heartbeat of one worker node.

    Guarantees: an outage of Redis or MongoDB stops nothing; the next beat tries again.
    """

    def __init__(self, settings: Settings, node: str) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._settings = settings
        handlers = tuple(sorted(f"{handler.pattern} {handler.name}" for handler in registry))
        self._beat = Beat(node=node, listener=listener_of(node), pid=os.getpid(), started_ms=int(time.time() * 1000), handlers=handlers)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._redis = redis_client.connect(settings)
        self._db = mongo.connect(settings, role=f"{self._beat.listener}-heartbeat")
        self._presence: Presence | None = None
        self._remembered_at = float("-inf")

    def received(self, seq: int) -> None:
        """Note that a delivery with this sequence has arrived."""
        with self._lock:
            if seq > self._beat.received_seq:
                self._beat = msgspec.structs.replace(self._beat, received_seq=seq)

    def count(self, counts: dict[str, int]) -> None:
        """Add a task's outcome."""
        with self._lock:
            b = self._beat
            self._beat = msgspec.structs.replace(
                b, won=b.won + counts["won"], skipped=b.skipped + counts["skipped"], failed=b.failed + counts["failed"]
            )

    def run(self) -> None:
        """Beat until stopped."""
        waiting = False
        while not self._stopping.is_set():
            try:
                self._once()
                if waiting:
                    log.info("listener.resumed", listener=self._beat.listener)
                waiting = False
            except TransientError as error:
                if not waiting:
                    log.warning("listener.waiting", listener=self._beat.listener, error=str(error))
                waiting = True
            self._stopping.wait(self._settings.heartbeat_ms / 1000)
        log.info("listener.stopping", listener=self._beat.listener)

    def _once(self) -> None:
        if time.monotonic() - self._remembered_at > 10 or self._presence is None:
            self._presence = Presence(self._redis, deployment_id(self._db))
            remember_listener(self._db, self._beat.listener)
            self._remembered_at = time.monotonic()
        with self._lock:
            beat = self._beat
        self._presence.beat(beat)

    def stop(self) -> None:
        """Stop, and say that this node has gone."""
        self._stopping.set()
        if self._presence is not None:
            with contextlib.suppress(TransientError):
                self._presence.leave(self._beat.node, self._beat.pid)


_heart: Heart | None = None


def count(counts: dict[str, int]) -> None:
    """Add a task's outcome to this node's heartbeat."""
    if _heart is not None:
        _heart.count(counts)


@celeryd_init.connect
def prepare(sender: str, instance: Any, conf: Any, options: Any, **_: Any) -> None:
    """Before the worker is built: take the queue from the node name, load handlers and policies, check what must hold."""
    try:
        name = listener_of(sender)
        _configure_logs(name, instance, options)
        current = settings()
        policies = Policies.load(current.policies, current)
        load_handlers(current.handlers)
        check_times(registry, policies, lifetime_s=current.transaction_lifetime_s)
        if current.handlers and not any(registry):
            log.warning("listener.no_handlers", modules=current.handlers)
        _check_transactions(current)
    except (DedupError, ValueError) as error:
        sys.exit(f"dedup: {error}")
    instance.app.steps["consumer"].update((DeliveriesInHand, TaskEventsTogether))
    anonymous = Exchange("")
    conf.task_queues = [Queue(q, exchange=anonymous, routing_key=q) for q in (queue_of(name), RECOVERY_QUEUE)]


def _check_transactions(current: Settings) -> None:
    """Refuse transactional handlers on a standalone MongoDB; an absent server is waited for later."""
    db = mongo.connect(current, role="start")
    try:
        with contextlib.suppress(TransientError), mongo.translated("saying hello"):
            hello = db.client.admin.command("hello")
            if any(not h.at_least_once for h in registry) and not (hello.get("setName") or hello.get("msg") == "isdbgrid"):
                sys.exit(
                    "dedup: transactional handlers need MongoDB as a replica set, and this one is standalone: "
                    "start it with --replSet and run rs.initiate(), or declare the handlers with at_least_once=True"
                )
            Ledger(db).ensure_indexes()
            Failures(db).ensure_indexes()
    finally:
        db.client.close()


@worker_ready.connect
def start_heart(sender: Any, **_: Any) -> None:
    """Once the worker consumes: say so."""
    global _heart  # noqa: PLW0603 - signals have no other place to keep it
    _heart = Heart(settings(), sender.hostname)
    _heart.start()
    log.info("listener.ready", listener=listener_of(sender.hostname), handlers=[h.name for h in registry])


@worker_shutting_down.connect
def stop_heart(**_: Any) -> None:
    """At the first sign of the end: no more copies, please, and no more slices."""
    ending.begin()
    if _heart is not None:
        _heart.stop()


@task_received.connect
def note_received(request: Any, **_: Any) -> None:
    """Remember the highest sequence that has arrived here."""
    if _heart is not None:
        try:
            _heart.received(int(request.message.payload[0][0]["seq"]))
        except (KeyError, IndexError, TypeError, ValueError):
            return


@worker_process_init.connect
def forget_parent(**_: Any) -> None:
    """In a child of the pool: its clients are made anew at the first task."""
    global _heart  # noqa: PLW0603 - signals have no other place to keep it
    _heart = None


@worker_process_shutdown.connect
@worker_shutdown.connect
def tell_the_last(**_: Any) -> None:
    """At the end of a child of the pool, and of the worker: its last numbers."""
    end_current()


def _configure_logs(name: str, worker: Any, options: Any) -> None:
    """All lines in one form, from the first one on. Where that is JSON, Celery's banner and farewell, which are no lines, are left out."""
    telemetry.configure("listener", listener=name)
    if not sys.stderr.isatty():
        worker.quiet = True
        celery.apps.worker.safe_say = lambda *_: None  # type: ignore[attr-defined]  # the stubs leave it out
        log.info("listener.starting", celery=celery.__version__, concurrency=options.get("concurrency") or settings().concurrency)


@setup_logging.connect
def keep_logging(**_: Any) -> None:
    """Celery is not to set up logs of its own; the pool's lines, which it keeps apart, go the way of all others."""
    billiard.util.get_logger().propagate = True
