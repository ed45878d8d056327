"""pytest-celery's fixtures for this project: Valkey as broker, listener-1 to -3 as workers, the rest of the system beside them.

``ground`` chooses where all of it runs: local processes (always) or containers (``-m containers``, ``make test-containers``).
The result backend is off, as in production; a module that wants one overrides ``celery_backend_cluster``.
"""

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from pymongo import MongoClient
from pytest_celery import CeleryBackendCluster, CeleryBrokerCluster, CeleryWorkerCluster, RedisTestBackend, RedisTestBroker

from tests.celery.grounds import BRIDGE, BROADCASTER, Containers, Ground, Processes
from tests.celery.local_nodes import LocalTestWorker
from tests.celery.nodes import BROKER_DB, RESULTS_DB, ListenerContainer, ValkeyContainer
from tests.celery.setup import DedupTestSetup
from tests.support.docker import require_engine
from tests.support.waiting import eventually

LISTENERS = ("listener-1", "listener-2", "listener-3")


@pytest.fixture(scope="session", params=["processes", pytest.param("containers", marks=pytest.mark.containers)])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Where the nodes run."""
    if request.param == "processes":
        yield Processes(request.getfixturevalue("servers"))
        return
    client = require_engine()
    with closing(client), closing(Containers(client)) as containers:
        yield containers


@pytest.fixture
def valkey(ground: Ground, tmp_path: Path) -> Iterator[dict[str, ValkeyContainer]]:
    """Valkey of this test alone, by database; what else this test starts ends with it."""
    (tmp_path / "valkey").mkdir()
    yield dict(zip((BROKER_DB, RESULTS_DB), ground.valkey(tmp_path / "valkey", BROKER_DB, RESULTS_DB), strict=True))
    ground.end_all()


@pytest.fixture
def celery_broker_cluster(valkey: dict[str, ValkeyContainer]) -> CeleryBrokerCluster:
    """One broker."""
    cluster = CeleryBrokerCluster(RedisTestBroker(valkey[BROKER_DB]))
    eventually(cluster.ready, 30, every_s=0.1)
    return cluster


@pytest.fixture
def celery_backend_cluster() -> CeleryBackendCluster | None:
    """No result backend."""
    return None


@pytest.fixture
def results(valkey: dict[str, ValkeyContainer]) -> CeleryBackendCluster:
    """A result backend, for modules that want one. (Its teardown is left out: it raises where any weak reference has ended.)"""
    return CeleryBackendCluster(RedisTestBackend(valkey[RESULTS_DB]))


@pytest.fixture
def database(ground: Ground) -> Iterator[str]:
    """A database of this test's own."""
    name = f"test_{secrets.token_hex(4)}"
    yield name
    with MongoClient(ground.mongo_url(name, for_test=True), serverSelectionTimeoutMS=5_000) as client:
        client.admin.command("killAllSessions", [])  # an open transaction would hold the drop up
        client.drop_database(name)


@pytest.fixture
def environment(ground: Ground, celery_worker_cluster_config: dict, database: str, tmp_path: Path) -> dict[str, str]:
    """The variables of all processes of the system."""
    gates = tmp_path / "gates"
    gates.mkdir()
    gates.chmod(0o777)  # containers run as somebody else
    own = {"DEDUP_MONGO_URL": ground.mongo_url(database, for_test=False), "DEDUP_TEST_GATES": str(gates)}
    return ListenerContainer.initial_env(celery_worker_cluster_config, own)


@pytest.fixture
def celery_worker_cluster(ground: Ground, environment: dict[str, str], celery_setup_app: Celery, tmp_path: Path) -> CeleryWorkerCluster:
    """Three listeners, started, not awaited."""
    nodes = [LocalTestWorker(ground.listener(name, tmp_path, environment), celery_setup_app) for name in LISTENERS]
    return CeleryWorkerCluster(*nodes)


@pytest.fixture
def celery_setup_cls() -> type[DedupTestSetup]:
    """The setup with the rest of the system."""
    return DedupTestSetup


@pytest.fixture
def celery_setup(
    celery_setup: DedupTestSetup, ground: Ground, environment: dict[str, str], database: str, tmp_path: Path
) -> DedupTestSetup:
    """The whole system, of use."""
    doors = ground.service("broadcaster", BROADCASTER, tmp_path, environment, ready_prompt="broadcaster.ready")
    bridge_env = environment | {"DEDUP_BROADCASTER_URL": ground.door_url(doors)}
    bridge = ground.service("bridge", BRIDGE, tmp_path, bridge_env, ready_prompt="bridge.connected")
    celery_setup.complete(doors, bridge, mongo_url=ground.mongo_url(database, for_test=True), folder=tmp_path)
    return celery_setup
