"""Fan-out: what was announced becomes one task per live listener, on that listener's queue, under an id of its own.

A batch goes at once, alone, as long as few come; small ones that come faster travel together (:mod:`broadcaster.pacing`,
:mod:`broadcaster.together`).

Guarantees: nothing is sent to a listener that is not alive, nor to a queue that is known to be above its high-water mark; a batch
is noted as forwarded only after the broker took its copies (:mod:`broadcaster.bridge.notes`); whatever goes wrong, no batch stays held.
Not guaranteed: that a batch is forwarded. What cannot be sent now is given up here, stays in the inbox, and is found by the sweeper.
"""

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import structlog

from app.errors import BrokerUnavailable
from app.messages import Announcement, delivery
from app.naming import queue_of, task_id
from broadcaster.bridge.flow import Gates, Order
from broadcaster.bridge.intake import Intake
from broadcaster.bridge.notes import Notes
from broadcaster.bridge.outage import Outage
from broadcaster.bridge.watch import Watch
from broadcaster.pacing import Pace
from broadcaster.sending import Outgoing, Sender
from broadcaster.together import together

log: Any = structlog.get_logger()

EVENTS_PER_ROUND = 5_000
"""So many events are sent in one go; with three listeners that is a megabyte or two."""
_IDLE_S = 0.25
_DEPTHS_EVERY_S = 0.5
_BACKOFF_MAX_S = 2.0
_KEEPING_UP = 3
"""Deliveries that may wait in the queue of a listener that keeps up; it has some more in hand."""


class Forwarder:
    """Takes from the intake and sends. For one thread.

    Args:
        intake: what was announced.
        watch: who lives, and whether this bridge is the active one.
        sender: of this thread's own.
        notes: of what was sent.
        high_water: mark of the listeners' queues, in deliveries.
    """

    def __init__(self, intake: Intake, watch: Watch, sender: Sender, notes: Notes, *, high_water: int) -> None:
        self._intake = intake
        self._watch = watch
        self._sender = sender
        self._notes = notes
        self._order = Order()
        self._gates = Gates(high_water)
        self._pace = Pace()
        self._measured_at = float("-inf")
        self._broker = Outage("broker")
        self._failed_in_a_row = 0

    def run(self, stop: threading.Event) -> None:
        """Forward until told to stop."""
        while not stop.is_set():
            if taken := self._take(stop):
                self.forward(taken)
            self._notes.write_due()
            self._measure()
            if self._failed_in_a_row:
                stop.wait(min(_BACKOFF_MAX_S, 0.05 * 2**self._failed_in_a_row) * random.uniform(0.5, 1.0))
        self._notes.write_due(all_=True)
        self._sender.close()

    def _take(self, stop: threading.Event) -> list[Announcement]:
        """What waits, and what comes while that has to wait."""
        taken = self._intake.take(EVENTS_PER_ROUND, _IDLE_S)
        while taken and (pause_s := self._pace.wait_s(map(_events_of, together(taken)))) and not stop.wait(pause_s):
            taken += self._intake.take(EVENTS_PER_ROUND, 0)
        return taken

    def forward(self, announced: Sequence[Announcement]) -> int:
        """Send announced batches to every live listener that takes more. Returns how many batches were sent."""
        if not self._watch.active:
            announced = self._own(announced)
        sent: list[tuple[str, int]] = []
        try:
            sent = self._sent(announced)
        finally:
            if not sent:  # the sweeper may have them
                self._intake.release(announcement["batch"] for announcement in announced)
        self._notes.add(sent)
        self._notes.write_due()
        return len(sent)

    def _sent(self, announced: Sequence[Announcement]) -> list[tuple[str, int]]:
        """Batches, each with its place in the order, that were sent: all or none."""
        listeners = self._watch.listeners()
        deployment = self._watch.deployment
        names = [heard.name for heard in listeners if self._gates.open(queue_of(heard.name))]
        if not names or deployment is None or not announced:
            log.debug("batch.left", batches=len(announced), listeners=len(listeners), active=self._watch.active)
            return []
        self._order.beyond(max(heard.received_seq for heard in listeners))
        sent: list[tuple[str, int]] = []
        outgoing: list[Outgoing] = []
        groups = together(announced)
        for group in groups:
            seq = self._order.next()
            sent += [(announcement["batch"], seq) for announcement in group]
            outgoing += _copies(delivery(group, deployment=deployment, seq=seq, forwards=1), names)
        try:
            self._sender.send(outgoing)
        except BrokerUnavailable as error:
            self._broker.note(error)
            self._failed_in_a_row += 1
            return []
        self._broker.over()
        self._failed_in_a_row = 0
        self._gates.sent((queue_of(name) for name in names), len(groups))
        log.debug("batch.forwarded", batches=len(sent), deliveries=len(groups), first=sent[0][0], listeners=names)
        return sent

    def _own(self, announced: Sequence[Announcement]) -> list[Announcement]:
        """While another bridge is active: only what this process accepted itself; the rest is given up."""
        own = [announcement for announcement in announced if self._intake.owns(announcement["batch"])]
        self._intake.release(a["batch"] for a in announced if not self._intake.owns(a["batch"]))
        return own

    def _measure(self) -> None:
        """Ask how full the queues are: after sending, and while one of them takes no more."""
        now = time.monotonic()
        if now - self._measured_at < _DEPTHS_EVERY_S or not (self._gates.stale or self._gates.any_closed):
            return
        self._measured_at = now
        try:
            depths = self._sender.depths(queue_of(heard.name) for heard in self._watch.listeners())
            self._gates.measured(depths)
            self._pace.behind = any(depth > _KEEPING_UP for depth in depths.values())
        except BrokerUnavailable as error:
            self._broker.note(error)
            self._failed_in_a_row += 1
        else:
            self._broker.over()
            self._failed_in_a_row = 0


def _events_of(group: Sequence[Announcement]) -> int:
    return sum(len(announcement["keys"]) for announcement in group)


def _copies(message: dict[str, Any], names: Sequence[str]) -> list[Outgoing]:
    first, more = message["keys"][0], len(message["keys"]) - 1
    return [Outgoing(queue=queue_of(name), task_id=task_id(first, more, name), message=message) for name in names]
