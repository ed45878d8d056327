"""Tests on containers: slow, and only where a Docker engine answers (``make test-containers``)."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.compose import Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs containers, and time."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("containers")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """docker-compose.yml, up and healthy; with the profile ``redundant`` where the parameter says so."""
    with closing(Stack(tmp_path_factory.mktemp("compose"), redundant=request.param == "redundant")) as made:
        made.up()
        yield made
