"""The deliveries that a listener has in hand, where the broker is Redis and keeps no copy of them.

kombu can keep in Redis what was read and is not yet acknowledged, and give it out again after a visibility timeout: six commands more for each
delivery, a third of what a listener's main process did for a single event (``docs/performance.md``). Nothing here needs that, since the inbox
remembers every event, and the sweeper is quicker (ADR 21). It is there for those who want it: ``DEDUP_VISIBILITY_TIMEOUT_S``.

Guarantees: what is in hand goes back to its queue when the listener ends in good order, or when a child of its pool dies; it is marked as delivered
before. Not guaranteed: that anything goes back. What the broker does not take, and what a listener that is killed had in hand, comes again from the
inbox.
"""

from typing import Any

import structlog
from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from kombu.transport import virtual
from kombu.transport.redis import Channel as RedisChannel

log: Any = structlog.get_logger()


class InHand(virtual.QoS):
    """What one channel has delivered. kombu would write to a file what a broker that is away does not take back."""

    channel: Any
    _delivered: Any
    _flush: Any

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Done with one delivery; ``requeue`` puts it back."""
        if requeue:
            _mark(self._delivered[delivery_tag])
        super().reject(delivery_tag, requeue=requeue)

    def restore_unacked(self) -> None:
        """Put back all of them."""
        self._flush()
        try:
            for message in self._delivered.values():
                _mark(message)
                self.channel._restore(message)  # noqa: SLF001 - as its base does
        except self.channel.connection_errors as error:
            log.warning("delivery.not_given_back", deliveries=len(self._delivered), error=type(error).__name__)
        self._delivered.clear()


def _mark(message: Any) -> None:
    message.delivery_info["redelivered"] = True


class DeliveriesInHand(bootsteps.StartStopStep):
    """A step of the worker's consumer, when its channel is made and has delivered nothing yet."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        """At each connection to the broker."""
        channel = consumer.task_consumer.channel
        if isinstance(channel, RedisChannel) and not channel.ack_emulation:
            before = channel.qos
            channel._qos = InHand(channel, before.prefetch_count)  # noqa: SLF001 - it has a class for it, which is fixed before a step can see it
            before.restore_unacked_once()  # none: it is not to be kept for the end of the process
