"""Fault tests: real processes, real signals, real servers. Each test names its guarantee in its first line."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.embedded.servers import EmbeddedServers
from app.settings import Settings
from tests.support.system import Spawn, System, system_on


@pytest.fixture
def system(settings: Settings, spawn: Spawn, tmp_path: Path) -> Iterator[System]:
    """The system on the shared servers, not started."""
    with closing(system_on(settings, spawn, tmp_path)) as made:
        yield made


@pytest.fixture
def private_system(private_servers: EmbeddedServers, private_settings: Settings, spawn: Spawn, tmp_path: Path) -> Iterator[System]:
    """The system on servers that the test may stop and flush."""
    with closing(system_on(private_settings, spawn, tmp_path)) as made:
        made.servers = private_servers
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a fault test, with time for it."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("fault")
            item.add_marker(pytest.mark.timeout(180))
