"""The deliveries that a listener has in hand, where the broker is Redis and keeps no copy of them.

kombu can keep in Redis what was read and is not yet acknowledged, and give it out again after a visibility timeout: two transactions more for each
delivery, a third of what a listener's main process did for a single event (``docs/performance.md``). Nothing here needs that, since MongoDB
remembers every event, and the sweeper is quicker (ADR 21). It is there for those who want it: ``DEDUP_VISIBILITY_TIMEOUT_S``.

Guarantees: what the pool has not finished when the listener ends, or when a child of it dies, goes back to its queue, marked as delivered before; what
the broker does not take is no longer in hand either. Not guaranteed: that anything goes back. The rest, and what a listener that is killed had in hand,
comes again by the sweeper.
"""

from typing import Any

import structlog
from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from kombu.transport import virtual
from kombu.transport.redis import Channel as RedisChannel
from redis.exceptions import RedisError

log: Any = structlog.get_logger()


class InHand(virtual.QoS):
    """What one channel has delivered. kombu would write to a file what a broker that is away does not take back."""

    _delivered: Any
    _flush: Any

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Done with one delivery; ``requeue`` puts it back."""
        message = self._delivered.get(delivery_tag)  # none where its connection was lost: all of that were put back
        if requeue and message is not None:
            message.delivery_info["redelivered"] = True
            try:
                super().reject(delivery_tag, requeue=True)
            except (RedisError, OSError) as error:
                log.warning("delivery.not_given_back", task=message.headers.get("id"), error=type(error).__name__)
        super().reject(delivery_tag)

    def restore_unacked(self) -> None:
        """Put back all of them."""
        self._flush()
        for delivery_tag in list(self._delivered):
            self.reject(delivery_tag, requeue=True)
        self._flush()


class DeliveriesInHand(bootsteps.StartStopStep):
    """A step of the worker's consumer, when its channel is made and has delivered nothing yet."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        """At each connection to the broker."""
        channel = consumer.task_consumer.channel
        if isinstance(channel, RedisChannel) and not channel.ack_emulation:
            channel.qos.__class__ = InHand  # the channel has a name for its class, which is read before a step can change it
