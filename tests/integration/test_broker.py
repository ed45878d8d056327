"""Which brokers can be asked as Redis, and what is said of one that is away."""

from contextlib import closing

import pytest
from kombu import Connection

from app.broker import Broker, is_redis
from app.errors import BrokerUnavailable
from app.naming import RECOVERY_QUEUE
from app.settings import Settings


def away(broker_url: str) -> Settings:
    return Settings(redis_url="redis://x", broker_url=broker_url, mongo_url="mongodb://x/d")


@pytest.mark.parametrize("url", ["redis://127.0.0.1/1", "rediss://user:secret@example.org:6380/0"])
def test_redis_is_told_by_the_urls_that_both_kombu_and_its_own_client_read(url):
    assert is_redis(url)
    assert Connection(url).transport.driver_type == "redis"


@pytest.mark.parametrize("url", ["amqp://127.0.0.1", "sentinel://127.0.0.1:26379", "redis+socket:///run/redis.sock", "memory://"])
def test_other_brokers_are_asked_through_kombu_alone(url):
    assert not is_redis(url)


@pytest.mark.parametrize("url", ["valkey://127.0.0.1", "unix:///run/redis.sock"])
def test_kombu_reads_no_other_scheme_of_redis(url):
    assert not is_redis(url)
    with pytest.raises(KeyError, match="No such transport"):
        Connection(url)


def test_a_broker_that_is_away_is_our_error_each_time():
    settings = away("redis://127.0.0.1:1/0")
    with closing(Broker.of(settings, timeout_s=0.2)) as broker:
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="the broker did not serve"):
                broker.depths(["events.listener-1"])
            with pytest.raises(BrokerUnavailable, match="the broker did not serve"):
                broker.remove_queue("events.listener-1")


def test_each_queue_is_asked_for_by_its_name_and_one_that_is_not_there_is_empty():
    with closing(Broker.of(away("memory://"))) as broker:
        with broker.channel() as channel:
            channel.queue_declare("events.listener-1")
            for _ in range(3):
                channel.basic_publish(channel.prepare_message("{}"), exchange="", routing_key="events.listener-1")

        assert broker.waiting(["listener-1", "listener-2"]) == {"events.listener-1": 3, "events.listener-2": 0, RECOVERY_QUEUE: 0}

        broker.remove_queue("events.listener-1")
        assert broker.depths(["events.listener-1"]) == {"events.listener-1": 0}


def test_redis_is_asked_for_all_queues_at_once_and_their_priorities_count(settings):
    with closing(Broker.of(settings)) as broker, Connection(settings.broker_url) as connection:
        for priority in (0, 3, 9):
            connection.Producer().publish("{}", routing_key="events.listener-1", priority=priority)

        asked = broker.waiting(["listener-1", "listener-2"])
        assert asked == {"events.listener-1": 3, "events.listener-2": 0, RECOVERY_QUEUE: 0}
        assert asked["events.listener-1"] == connection.default_channel.queue_declare("events.listener-1", passive=True).message_count
