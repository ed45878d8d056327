"""Tells whoever has a live page open what became of a task's events.

Guarantees: the task itself pays at most one GET a second, and nothing more while nobody watches; a thread does the telling, at most
``1 / PAUSE_S`` times a second; what waits is bounded; an outage of Redis is nobody's error here. Not guaranteed: that anybody hears it.
"""

import contextlib
import threading
import time
from collections import Counter
from itertools import islice

from app.errors import RedisUnavailable
from app.messages import Delivery
from app.outcomes import SAMPLE_EVENTS, Told, channel, encoded, watched_key
from app.redis_client import Client, translated
from workers.tally import Tally

LOOK_S = 1.0
LOOK_AGAIN_S = 10.0
"""After Redis did not answer."""
PAUSE_S = 0.2
MAX_EVENTS = 400
"""Events that are named in one message."""
MAX_DEPLOYMENTS = 8


class Outcomes:
    """What one process of a listener tells. Thread-safe; not to be carried over a fork once something was told."""

    def __init__(self, client: Client, listener: str) -> None:
        self._client = client
        self._listener = listener
        self._looks: dict[str, tuple[bool, float]] = {}
        self._lock = threading.Lock()
        self._more = threading.Event()
        self._closing = threading.Event()
        self._counts: dict[str, Counter[str]] = {}
        self._events: dict[str, list[tuple[str, str, str]]] = {}
        self._thread: threading.Thread | None = None

    def sample(self, delivery: Delivery) -> frozenset[str]:
        """Keys whose outcome is to be noted, of each batch the first ones: none while nobody watches."""
        if not self._watched(delivery.deployment):
            return frozenset()
        keys = iter(delivery.keys)
        return frozenset(key for part in delivery.batches for key in [*islice(keys, part.events)][:SAMPLE_EVENTS])

    def tell(self, deployment: str, tally: Tally) -> None:
        """Tell of a task for which :meth:`sample` named keys. Never waits."""
        if not tally.sample:
            return
        with self._lock:
            counts = self._counts.setdefault(deployment, Counter())
            counts.update(won=tally.won, skipped=tally.skipped, failed=tally.failed, left=tally.left)
            events = self._events.setdefault(deployment, [])
            events.extend(tally.seen[: MAX_EVENTS - len(events)])
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._speak, name="outcomes", daemon=True)
                self._thread.start()
        self._more.set()

    def close(self) -> None:
        """Tell nothing any more."""
        self._closing.set()
        self._more.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _watched(self, deployment: str) -> bool:
        watched, look_at = self._looks.get(deployment, (False, 0.0))
        now = time.monotonic()
        if now < look_at:
            return watched
        if len(self._looks) >= MAX_DEPLOYMENTS:
            self._looks.clear()
        self._looks[deployment] = (watched, now + LOOK_S)  # before the call, so that of several threads one asks
        try:
            with translated():
                watched = bool(self._client.exists(watched_key(deployment)))
        except RedisUnavailable:
            self._looks[deployment] = (False, time.monotonic() + LOOK_AGAIN_S)
            return False
        self._looks[deployment] = (watched, time.monotonic() + LOOK_S)
        return watched

    def _speak(self) -> None:
        while True:
            self._more.wait()
            if self._closing.is_set():
                return
            self._more.clear()
            with self._lock:
                counts, self._counts = self._counts, {}
                events, self._events = self._events, {}
            with contextlib.suppress(RedisUnavailable), translated():
                for deployment, counted in counts.items():
                    told = Told(listener=self._listener, events=events.get(deployment, []), **counted)
                    self._client.publish(channel(deployment), encoded(told))
            self._closing.wait(PAUSE_S)
