"""Malformed, oversized and hostile input at every door: fault 25."""

from collections.abc import Iterator

import httpx
import psutil
import pytest
from pymongo import MongoClient

from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from tests.support.attacks import ATTACKS, Attack, Neighbour
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings, remove_data
from tests.support.waiting import eventually

POLICIES = """
[hooks.github]
type = "'push'"
id = "body.id"
signature = "github"
secret_env = "GITHUB_SECRET"

[hooks.open]
type = "'opened'"
id = "body.id"
"""
MEMORY_BYTES = 400 * 1024 * 1024
"""The bounds of the doors together: bodies, what is made of them, and clients' queues."""


@pytest.fixture(scope="module")
def attacked(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ManagedProcess, str, str]]:
    """A broadcaster for all attacks: its process, its URL, and its database."""
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "policies.toml").write_text(POLICIES)
    settings = fresh_settings(servers, folder, port=0)
    with broadcaster_process(settings, folder, env={"GITHUB_SECRET": "x"}) as (process, url):
        yield process, url, settings.mongo_url
    remove_data(settings)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attacked_at_a_door(attacked: tuple[ManagedProcess, str, str], attack: Attack):
    """G1, G7: nothing crashes, nobody else is slowed, memory stays bounded, nothing accepted is lost, and a counter and a log line say it."""
    process, url, mongo_url = attacked
    before = psutil.Process(process.pid).memory_info().rss
    with Neighbour(url) as neighbour:
        eventually(lambda: len(neighbour.answers) > 5)
        attack(url)
        seen = len(neighbour.answers)
        eventually(lambda: len(neighbour.answers) > seen + 5)
        most = psutil.Process(process.pid).memory_info().rss
    statuses = {status for status, _ in neighbour.answers}
    print(
        f"{attack.__name__:42} usual {neighbour.usual_s() * 1e3:5.0f} ms, slowest {neighbour.slowest_s * 1e3:5.0f} ms, memory +{(most - before) >> 20} MiB"
    )
    assert process.alive
    assert statuses == {202}
    assert neighbour.usual_s() < 0.4
    assert neighbour.slowest_s < 1.5
    assert most - before < MEMORY_BYTES
    with MongoClient(mongo_url) as client:
        stored = {e["key"] for d in client.get_default_database()["inbox"].find({}, {"events.key": 1}) for e in d["events"]}
    assert set(neighbour.keys) <= stored
    assert "Traceback" not in process.log.read_text()


def test_all_of_it_was_counted_and_said(attacked: tuple[ManagedProcess, str, str]):
    """G7: an operator sees it, and the log has not grown with it."""
    process, url, _ = attacked

    def counted() -> bool:
        refused = httpx.get(f"{url}/stats", timeout=20).json()["refused"]
        print(refused)
        assert refused["events"]["413"] > 5
        assert refused["events"]["400"] > 100
        assert refused["hooks"]["401"] > 50
        assert refused["socket.io"]["rubbish"] > 50
        assert refused["publish"]["422"] > 100
        assert refused["connection"]["rubbish"] > 20
        return True

    eventually(counted, 20, every_s=0.5)  # what the last attacks sent may still be read
    log = process.log.read_text()
    assert log.count("door.refused") > 5
    assert len(log) < 200_000
