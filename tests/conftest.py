"""Real servers and real processes for tests.

========================  ========  ===========================================================================================
fixture                   lives     gives
========================  ========  ===========================================================================================
``servers``               the run   the shared ``EmbeddedServers``; never stop, pause, flush or corrupt these (with ``-n``: each worker's own)
``settings``              a test    fresh ``Settings`` on them: own database, own two Redis databases; emptied afterwards
``make_settings``         a test    the same with overrides, ``make_settings(lease_ms=500)``; each call is fresh
``database``              a test    pymongo's database of ``settings``
``redis_client``          a test    a client on the claims' database of ``settings``, strings decoded
``private_servers``       a test    own Valkey and MongoDB, to be killed, paused, flushed and corrupted
``private_settings``      a test    fresh ``Settings`` on those
``start_servers``         a test    the same with options, ``start_servers(mongo_nodes=3)``; stopped afterwards
``spawn``                 a test    ``spawn(name, argv, settings=…)`` starts a ``ManagedProcess``, killed afterwards; its log is shown on failure
========================  ========  ===========================================================================================

Where the wheels or what they need are missing, tests that need servers are skipped, and fail under ``CI=true``.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from redis import Redis

from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.settings import Settings
from tests.support.processes import Processes
from tests.support.servers import QUICK_MONGOD, TEST_DATABASES, fresh_settings, remove_data, require_servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Valkey and MongoDB of this run."""
    require_servers()
    with EmbeddedServers(tmp_path_factory.mktemp("servers"), databases=TEST_DATABASES, mongod_args=QUICK_MONGOD) as shared:
        yield shared


@pytest.fixture
def make_settings(servers: EmbeddedServers, tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Makes fresh settings on the shared servers."""
    made: list[Settings] = []

    def make(**overrides: Any) -> Settings:
        made.append(fresh_settings(servers, tmp_path, **overrides))
        return made[-1]

    yield make
    for settings in made:
        remove_data(settings)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Fresh settings on the shared servers."""
    return make_settings()


@pytest.fixture
def database(settings: Settings) -> Iterator[Database[dict[str, Any]]]:
    """The database of ``settings``."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(settings.mongo_url, tz_aware=True, serverSelectionTimeoutMS=5_000) as client:
        yield client.get_default_database()


@pytest.fixture
def redis_client(settings: Settings) -> Iterator[Redis]:
    """A client on the claims' database of ``settings``."""
    with Redis.from_url(settings.redis_url, decode_responses=True, socket_timeout=5.0) as client:
        yield client


@pytest.fixture
def start_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EmbeddedServers]]:
    """Starts servers of the test's own."""
    require_servers()
    with ExitStack() as started:

        def start(home: Path | None = None, **options: Any) -> EmbeddedServers:
            own = EmbeddedServers(home or tmp_path_factory.mktemp("private"), **({"databases": TEST_DATABASES} | options))
            started.callback(own.kill)  # quicker than an orderly stop; nobody needs the data
            own.start()
            return own

        yield start


@pytest.fixture
def private_servers(start_servers: Callable[..., EmbeddedServers]) -> EmbeddedServers:
    """Valkey and MongoDB of this test alone."""
    return start_servers()


@pytest.fixture
def private_settings(private_servers: EmbeddedServers, tmp_path: Path) -> Settings:
    """Fresh settings on the servers of this test alone."""
    return fresh_settings(private_servers, tmp_path)


@pytest.fixture
def spawn(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., ManagedProcess]]:
    """Starts processes of this project."""
    processes = Processes(tmp_path)

    def show(process: ManagedProcess) -> None:
        if request.node.stash.get(_FAILED, False):
            request.node.add_report_section("teardown", f"log of {process.name}", process.log_tail(60))

    yield processes.start
    processes.kill(show)


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[_FAILED] = True
    return report
