"""MongoDB steps down, restarts, and rolls back what no majority had: fault 10."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pymongo import MongoClient, ReadPreference

from app.embedded.mongod import MongodServer
from app.embedded.servers import EmbeddedServers
from tests.support.servers import fresh_settings
from tests.support.system import Spawn, System, events, system_on
from tests.support.waiting import eventually


@pytest.fixture
def replicated(start_servers: Callable[..., EmbeddedServers], spawn: Spawn, tmp_path: Path) -> Iterator[System]:
    """The system on a replica set of three."""
    servers = start_servers(mongo_nodes=3)
    with closing(system_on(fresh_settings(servers, tmp_path), spawn, tmp_path)) as made:
        made.servers = servers
        yield made


def _primary(system: System) -> MongodServer:
    assert system.servers is not None
    return eventually(system.servers.mongo.primary, 30, "a primary")


def test_primary_steps_down_amid_2000_events(replicated: System) -> None:
    """G1, G2: a step-down amid 2,000 events is an outage of a moment; none is lost, repeated or counted as failed."""
    system = replicated
    system.up(2)
    system.accept(events(740))
    system.accept(events(60, "fault.slow", ms=100))
    system.await_amid()
    system.client.admin.command("replSetStepDown", 5, force=True)
    assert system.in_hand(), "it stepped down amid the work"
    system.accept(events(800))
    system.accept(events(400))
    system.await_finished(60)
    system.audit()
    assert system.db.failures.count_documents({}) == 0


def test_commit_that_no_majority_had_is_rolled_back_and_done_again(replicated: System) -> None:
    """G1, G2: a commit on a primary without its majority is not taken for done; after its roll-back the event is done once."""
    system = replicated
    assert system.servers is not None
    system.up(2)
    system.accept(events(2, "fault.gate"))
    system.entered()
    old = _primary(system)
    others = [node for node in system.servers.mongo.nodes if node is not old]
    for node in others:
        node.pause()
    system.open_gate()
    eventually(lambda: _sees_locally(old, system) > 0, 15, "a commit on the primary alone")
    old.kill()
    for node in others:
        node.resume()
    new = _primary(system)
    assert new is not old
    system.await_finished(60)
    system.audit()
    old.start()
    eventually(lambda: _sees_locally(old, system) == 2, 60, "the old primary has followed")
    system.audit()


def _sees_locally(node: MongodServer, system: System) -> int:
    """Ledger documents on this node alone, majority or not."""
    client: MongoClient[dict[str, object]]
    with node.client() as client:
        local = client.get_database(system.db.name, read_preference=ReadPreference.SECONDARY_PREFERRED)
        return local.events.count_documents({"type": "fault.gate"})


def test_mongodb_stopped_and_restarted(private_system: System) -> None:
    """G1, G5: MongoDB away in the midst of the work is nobody's attempt; when it is back, all is processed."""
    system = private_system
    assert system.servers is not None
    system.up(2)
    system.accept(events(500))
    system.accept(events(30, "fault.slow", ms=50))
    node = system.servers.mongo.nodes[0]
    node.kill()
    eventually(lambda: "listener.waiting" in system.listener("listener-1").log.read_text(), 20, "a listener that says it waits")
    node.start()
    system.await_finished(60)
    system.audit()
    assert system.db.failures.count_documents({}) == 0
    assert all(d["attempt"] == 1 for d in system.db.events.find())
