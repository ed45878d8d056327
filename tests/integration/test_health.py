"""``python -m app.health ROLE`` on real servers; with real processes it runs in the tests of docker-compose.yml."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from redis import Redis

from app import health, redis_client
from app.errors import RedisUnavailable
from app.presence import Beat, Presence
from app.settings import Settings
from app.stores import mongo
from app.stores.meta import deployment_id
from tests.support.servers import environment


@pytest.fixture
def presence(settings: Settings) -> Iterator[Presence]:
    db = mongo.connect(settings, role="test")
    with closing(db.client), closing(redis_client.connect(settings)) as redis:
        yield Presence(redis, deployment_id(db))


def test_a_listener_is_healthy_while_this_host_is_heard(settings: Settings, presence: Presence):
    presence.beat(Beat(node="listener-1@elsewhere", listener="listener-1", pid=1))
    assert "was heard" in (health.listener(settings) or "")

    presence.beat(Beat(node=f"listener-2@{socket.gethostname()}", listener="listener-2", pid=1))
    assert health.listener(settings) is None


def test_a_bridge_is_healthy_while_sweeps_succeed(settings: Settings, presence: Presence, redis_client: Redis):
    assert health.bridge(settings) == "no sweep has succeeded yet"

    presence.note_sweep()
    assert health.bridge(settings) is None

    (key,) = redis_client.keys("*=sweeper")
    redis_client.set(key, int(redis_client.get(key)) - 60_000)
    assert health.bridge(settings) == "the last sweep succeeded 60 s ago"


def test_without_redis_nothing_that_needs_it_is_healthy(settings: Settings):
    with pytest.raises(RedisUnavailable):
        health.bridge(replace(settings, redis_url="redis://127.0.0.1:1/0"))


@pytest.mark.parametrize("role", ["broadcaster", "flower"])
def test_a_server_that_does_not_answer_is_said_in_one_line(settings: Settings, role: str):
    done = subprocess.run(
        [sys.executable, "-m", "app.health", role], env=environment(settings), capture_output=True, text=True, check=False, cwd=os.sep
    )
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_role_is_wrong_usage(capsys: pytest.CaptureFixture[str]):
    assert health.main(["nobody"]) == 2
    assert "broadcaster|bridge|listener|flower" in capsys.readouterr().err
