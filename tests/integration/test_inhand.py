"""Deliveries in hand on a broker that keeps no copy of them: a real Valkey, and kombu's own channels."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer, Queue
from redis import Redis
from structlog.testing import capture_logs

from app.settings import Settings
from broadcaster.sending import Outgoing, Sender
from workers.inhand import DeliveriesInHand, InHand

QUEUE = "events.in-hand"


def outgoing(batch: str) -> Outgoing:
    return Outgoing(queue=QUEUE, task_id=batch, message={"batch": batch, "keys": ["k"], "types": ["t"]})


class Reader:
    """What a worker's consumer is for the step: a connection to the broker, a channel on it, and what came."""

    def __init__(self, settings: Settings, *, keeps: bool = False) -> None:
        options = {"ack_emulation": keeps, "visibility_timeout": 300}
        self.app = Celery(broker=settings.broker_url, broker_transport_options=options)
        self.app.conf.task_ignore_result = True
        self.connection = self.app.connection_for_read()
        self.messages: list[Any] = []
        self.channel: Any = self.connection.default_channel
        self.channel.basic_qos(0, 2, False)
        consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=self.channel))
        DeliveriesInHand(consumer).start(consumer)
        self._consumer = Consumer(self.channel, [Queue(QUEUE, routing_key=QUEUE)], on_message=self.messages.append, auto_declare=False)
        self._consumer.consume()

    def read(self, number: int) -> list[Any]:
        """Wait for so many messages, in all."""
        while len(self.messages) < number:
            self.connection.drain_events(timeout=5)
        return self.messages

    def close(self) -> None:
        self.connection.close()
        self.app.close()


@pytest.fixture
def sender(settings: Settings) -> Iterator[Sender]:
    with Celery(broker=settings.broker_url) as app, closing(Sender(app)) as made:
        yield made


@pytest.fixture
def reader(settings: Settings) -> Iterator[Reader]:
    with closing(Reader(settings)) as made:
        yield made


def waiting(settings: Settings) -> list[dict[str, Any]]:
    """What is in the queue, the next one first."""
    with Redis.from_url(settings.broker_url) as broker:
        return [json.loads(found) for found in reversed(broker.lrange(QUEUE, 0, -1))]


def given_back(settings: Settings) -> dict[str, bool]:
    """By task id: whether it is marked as delivered before."""
    return {found["headers"]["id"]: bool(found["properties"]["delivery_info"].get("redelivered")) for found in waiting(settings)}


def test_the_broker_keeps_nothing_of_what_was_read_and_no_more_is_read_than_may_be_in_hand(settings, sender, reader):
    sender.send([outgoing("a"), outgoing("b"), outgoing("c")])
    reader.read(2)

    assert isinstance(reader.channel.qos, InHand)
    assert not reader.channel.qos.can_consume()
    assert (len(waiting(settings)), reader.channel.client.exists("unacked", "unacked_index")) == (1, 0)

    reader.messages[0].ack()
    assert [message.headers["id"] for message in reader.read(3)] == ["a", "b", "c"]


def test_what_is_given_back_is_marked_as_delivered_before(settings, sender, reader):
    sender.send([outgoing("a"), outgoing("b")])
    first, second = reader.read(2)

    first.requeue()
    second.reject()

    assert given_back(settings) == {"a": True}


def test_at_the_end_all_that_is_in_hand_goes_back(settings, sender, reader):
    sender.send([outgoing("a"), outgoing("b"), outgoing("c")])
    reader.read(2)[0].ack()

    reader.channel.close()

    assert given_back(settings) == {"c": False, "b": True}


def test_a_broker_that_is_away_takes_nothing_back_and_no_file_holds_it_instead(private_servers, private_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Celery(broker=private_settings.broker_url) as app, closing(Sender(app)) as sender, closing(Reader(private_settings)) as reader:
        sender.send([outgoing("a"), outgoing("b")])
        reader.read(2)
        files = set(tmp_path.iterdir())
        private_servers.valkey.kill()

        with capture_logs() as lines:
            reader.channel.qos.restore_unacked_once()

    assert [(line["event"], line["task"], line["error"]) for line in lines] == [
        ("delivery.not_given_back", task, "ConnectionError") for task in ("a", "b")
    ]
    assert set(tmp_path.iterdir()) == files


def test_a_broker_that_is_full_takes_nothing_back_and_the_listener_goes_on(private_servers, private_settings):
    with Celery(broker=private_settings.broker_url) as app, closing(Sender(app)) as sender, closing(Reader(private_settings)) as reader:
        sender.send([outgoing("a"), outgoing("b"), outgoing("c")])
        first, _second = reader.read(2)
        with private_servers.valkey.client() as valkey:
            valkey.config_set("maxmemory", 1)

            with capture_logs() as lines:
                first.requeue()

            valkey.config_set("maxmemory", 0)
        assert [(line["task"], line["error"]) for line in lines] == [("a", "OutOfMemoryError")]
        assert reader.channel.qos.can_consume()
        assert reader.read(3)[2].headers["id"] == "c"


def test_what_is_rejected_after_its_connection_was_lost_has_gone_back_already(settings, sender, reader):
    sender.send([outgoing("a")])
    [message] = reader.read(1)
    reader.channel.qos.restore_unacked_once()

    message.requeue()

    assert given_back(settings) == {"a": True}


def test_a_broker_that_is_to_keep_copies_keeps_them(settings, sender):
    with closing(Reader(settings, keeps=True)) as reader:
        sender.send([outgoing("a")])
        reader.read(1)

        assert not isinstance(reader.channel.qos, InHand)
        assert reader.channel.client.hlen("unacked") == 1
