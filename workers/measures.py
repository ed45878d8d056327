"""What a listener's process counts for the metrics, and adds to the deployment's totals once a heartbeat (:mod:`app.totals`).

Guarantees: the task itself adds a few numbers in memory per slice and per delivery, never per event where all are of one type, and never
waits; a thread does the adding; an outage of Redis is nobody's error here, and what was counted meanwhile is added afterwards, once.
Not guaranteed: what was counted since the last heartbeat before the process was killed.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from app.errors import RedisUnavailable
from app.messages import Delivery, Part
from app.redis_client import Client
from app.totals import BOUNDS_S, OTHER, Totals, duration_fields, new_process, outcome_field
from workers.tally import Tally

MAX_DEPLOYMENTS = 8
MAX_FIELDS = 2_000
"""Different numbers that wait to be added; beyond, new event types count as one. A process counts some dozens."""
END_S = 1.0
"""How long the end of a process waits for its last addition."""

Sums = dict[tuple[str, str], int]


class Measures:
    """The numbers of one process. Thread-safe; to be made after a fork.

    Args:
        client: of Redis.
        listener: name of this listener.
        every_s: time between two additions.
    """

    def __init__(self, client: Client, listener: str, *, every_s: float) -> None:
        self._client = client
        self._listener = listener
        self._every_s = every_s
        self._process = new_process()
        self._durations = {name: duration_fields(name, listener) for name in BOUNDS_S}
        self._lock = threading.Lock()
        self._sums: dict[str, Sums] = {}
        self._adding = threading.Lock()
        self._waiting: dict[str, tuple[int, Sums]] = {}
        self._totals: dict[str, Totals] = {}
        self._numbers = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def count(self, delivery: Delivery, tally: Tally) -> None:
        """Note what became of a delivery's events."""
        told = tally.by_type(delivery)
        self._note(
            delivery.deployment, {(outcome_field(self._listener, outcome), kind): events for (outcome, kind), events in told.items()}
        )

    def committed(self, delivery: Delivery, keys: Collection[str]) -> None:
        """Note that these events of a delivery were committed now: how long after a door took them, by this host's clock."""
        now = time.time()
        for part, events in _by_part(delivery, keys).items():
            self._note(delivery.deployment, self._observed("ledger", max(0.0, now - part.accepted_ms / 1000), events))

    @contextmanager
    def timing(self, duration: str, deployment: str) -> Iterator[None]:
        """Note how long the block takes, however it ends; ``duration`` is one of :data:`app.totals.BOUNDS_S`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._note(deployment, self._observed(duration, time.monotonic() - began, 1))

    def took_over(self, deployment: str, claims: int) -> None:
        """Note claims that were won from owners whose leases had run out."""
        self._note(deployment, {(f"takeover:{self._listener}", ""): claims})

    def lost(self, deployment: str) -> None:
        """Note an own claim that another was seen to hold."""
        self._note(deployment, {(f"lost:{self._listener}", ""): 1})

    def add_now(self) -> None:
        """Add what has been counted.

        Raises:
            RedisUnavailable: Redis is away; the next call tries again.
        """
        with self._adding:
            with self._lock:
                sums, self._sums = self._sums, {}
            for deployment, more in sums.items():
                _, waiting = self._waiting.get(deployment, (0, {}))
                if not waiting:
                    self._numbers += 1
                    self._waiting[deployment] = (self._numbers, more)
                else:  # that one may have been added although its answer was lost: it stays as it is, and goes first
                    self._note(deployment, more)
            for deployment, (number, waiting) in list(self._waiting.items()):
                self._totals_of(deployment).add(waiting, process=self._process, number=number)
                del self._waiting[deployment]

    def close(self) -> None:
        """Add the rest, waiting at most ``END_S`` for it, and count nothing more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=END_S)

    def _totals_of(self, deployment: str) -> Totals:
        if deployment not in self._totals:
            self._totals[deployment] = Totals(self._client, deployment)
        return self._totals[deployment]

    def _observed(self, duration: str, seconds: float, times: int) -> Sums:
        fields = self._durations[duration]
        bucket = fields[bisect_left(BOUNDS_S[duration], seconds)]
        return {(bucket, ""): times, (fields[-1], ""): int(seconds * 1e6) * times}

    def _note(self, deployment: str, more: Sums) -> None:
        with self._lock:
            sums = self._sums.get(deployment)
            if sums is None:
                if len(self._sums) >= MAX_DEPLOYMENTS:
                    return
                sums = self._sums[deployment] = {}
            for (name, kind), number in more.items():
                known = len(sums) < MAX_FIELDS or (name, kind) in sums
                what = (name, kind if known or not kind else OTHER)
                sums[what] = sums.get(what, 0) + number
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="measures", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._closing.wait(self._every_s)
            try:
                self.add_now()
                if ending:
                    self.add_now()  # what had to wait behind one whose answer was lost
            except RedisUnavailable:
                continue


def _by_part(delivery: Delivery, keys: Collection[str]) -> dict[Part, int]:
    """How many of these events each batch of a delivery has."""
    if not keys:
        return {}
    return {delivery.batches[0]: len(keys)} if len(delivery.batches) == 1 else Counter(map(delivery.part_of, keys))
