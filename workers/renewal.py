"""Lease renewal: one thread per process, all of its claims in one call, at a third of the lease.

Guarantees: while a handler runs within its time, its claims' leases run on, and a claim that Redis forgot is made again.
A claim is reported lost only when another claim id holds its key; an absent Redis loses nothing, since the ledger decides.
Renewal of everything ends when a run takes longer than its type's ``max_handler_s``: then its events are for others.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from app.claims.store import ClaimStore, Held
from app.errors import RedisUnavailable

log = structlog.get_logger()


class Renewal:
    """Renews the claims of this process. Thread-safe.

    Args:
        renew_ms: time between two calls.
        hang_grace_s: how long a run may outlive its time before it counts as hung.
        on_hang: called once when a run has outlived its time by so much; None for nothing.
        on_lost: called with the deployment for each claim that another was seen to hold.
    """

    def __init__(
        self,
        renew_ms: int,
        *,
        hang_grace_s: float = 10.0,
        on_hang: Callable[[], None] | None = None,
        on_lost: Callable[[str], None] = lambda _deployment: None,
    ) -> None:
        self._every_s = renew_ms / 1000
        self._hang_grace_s = hang_grace_s
        self._on_hang = on_hang
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], tuple[ClaimStore, Held]] = {}
        self._lost: set[tuple[str, str]] = set()
        self._runs: dict[object, tuple[float, str]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, store: ClaimStore, claims: Sequence[Held]) -> Iterator[None]:
        """Renew ``claims`` until the end of the block."""
        ids = [(c.claim_id, c.key) for c in claims]
        with self._lock:
            self._held.update(zip(ids, ((store, c) for c in claims), strict=True))
        self._ensure_thread()
        try:
            yield
        finally:
            with self._lock:
                for one in ids:
                    self._held.pop(one, None)
                    self._lost.discard(one)

    def lost(self, claim_id: str, key: str) -> bool:
        """Whether another claim id was seen to hold the key."""
        return (claim_id, key) in self._lost

    def drop(self, claim_id: str, keys: Sequence[str]) -> None:
        """Stop renewing keys that are finished or given back before their block ends."""
        with self._lock:
            for key in keys:
                self._held.pop((claim_id, key), None)

    @contextmanager
    def running(self, key: str, max_s: float) -> Iterator[None]:
        """Note that a handler runs; after ``max_s`` nothing of this process is renewed any more."""
        run = object()
        self._runs[run] = (time.monotonic() + max_s, key)
        try:
            yield
        finally:
            self._runs.pop(run, None)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="lease-renewal", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            overdue_s, key = max(((time.monotonic() - end, key) for end, key in list(self._runs.values())), default=(-1.0, ""))
            if overdue_s <= 0:
                self._renew_all()
                continue
            log.warning("handler.over_time", key=key, overdue_s=round(overdue_s, 1))
            if overdue_s > self._hang_grace_s and self._on_hang is not None:
                log.error("handler.hung", key=key, overdue_s=round(overdue_s, 1))
                self._on_hang()

    def _renew_all(self) -> None:
        with self._lock:
            held = list(self._held.items())
        by_store: dict[int, list[tuple[tuple[str, str], ClaimStore, Held]]] = {}
        for one, (store, claim) in held:
            by_store.setdefault(id(store), []).append((one, store, claim))
        for group in by_store.values():
            store = group[0][1]
            try:
                answers = store.renew([claim for _, _, claim in group])
            except RedisUnavailable as error:
                log.warning("claim.renewal_failed", claims=len(group), error=str(error))
                continue
            for (one, _, claim), kept in zip(group, answers, strict=True):
                if not kept:
                    with self._lock:
                        if self._held.pop(one, None) is not None:
                            self._lost.add(one)
                            log.warning("claim.lost", key=claim.key, token=claim.token)
                            self._on_lost(store.deployment)
            self._give_back_dropped(store, [claim for (_, _, claim), kept in zip(group, answers, strict=True) if kept])

    def _give_back_dropped(self, store: ClaimStore, claims: Sequence[Held]) -> None:
        """Of claims that were dropped while the call was on its way: it may have made them again, and nobody would hold them."""
        with self._lock:
            dropped = [claim for claim in claims if (claim.claim_id, claim.key) not in self._held]
        for claim_id in {claim.claim_id for claim in dropped}:
            keys = [claim.key for claim in dropped if claim.claim_id == claim_id]
            try:
                store.release(keys, claim_id=claim_id)
            except RedisUnavailable as error:
                log.warning("claim.release_failed", keys=len(keys), error=str(error))


def kill_this_process() -> None:
    """End a process whose handler hangs, so that its pool starts another in its place."""
    os.kill(os.getpid(), signal.SIGKILL)
