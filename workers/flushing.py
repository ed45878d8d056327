"""Task events for Flower leave a worker several at a time.

Celery collects the events of a loop's turn into one message. Under single events that is a message per event, and it was nearly half of what
a listener's main process did (``docs/performance.md``); a fifth of a second is nothing to who looks at Flower.
"""

from typing import Any

from celery import bootsteps
from celery.worker.consumer.events import Events
from kombu.common import ignore_errors

DELAY_S = 0.2
"""The longest that a task event waits; Celery's own limit of 24 events sends them sooner."""


class TaskEventsTogether(bootsteps.StartStopStep):
    """A step of the worker's consumer. Not guaranteed: the events of a worker's last fifth of a second, if it is killed."""

    requires = (Events,)

    def start(self, consumer: Any) -> None:
        """At each connection to the broker: its dispatcher's events wait for more."""
        if consumer.hub is None:  # a pool without an event loop: Celery sends each event at once
            return
        waiting = False

        def flush() -> None:
            nonlocal waiting
            waiting = False
            consumer.on_send_event_buffered()

        def flush_later() -> None:
            nonlocal waiting
            if not waiting:
                waiting = True
                consumer.hub.call_later(DELAY_S, flush)

        consumer.event_dispatcher.on_send_buffered = flush_later

    def stop(self, consumer: Any) -> None:
        """At the end, or before a connection is made anew: nothing waits any more, and what cannot leave now is Celery's to send again."""
        dispatcher = consumer.event_dispatcher
        if consumer.hub is not None and dispatcher is not None:
            dispatcher.on_send_buffered = consumer.on_send_event_buffered
            ignore_errors(consumer, dispatcher.flush)
