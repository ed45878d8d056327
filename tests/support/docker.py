"""What tests with containers share: the engine, the project's image, and a way to run what is named once."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from tests.support.servers import missing

ROOT = Path(__file__).resolve().parents[2]
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.11-slim-bookworm")
VALKEY_IMAGE = os.environ.get("VALKEY_IMAGE", "valkey/valkey:9.1")
MONGO_IMAGE = os.environ.get("MONGO_IMAGE", "mongo:6.0")
LABEL = "event-dedup.tests"
"""On every container, network and volume that tests make; so they can be told from others, and removed."""


def require_engine() -> docker.DockerClient:
    """A client of the Docker engine; where none answers, the test ends (see ``missing``)."""
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except DockerException as error:
        missing(f"no Docker engine answers: {str(error)[:200]}")
    return client


@functools.cache
def project_image(target: str = "runtime") -> str:
    """The image of the project as it is now, built once a run, or the one that ``DEDUP_TEST_IMAGE`` names."""
    given = os.environ.get("DEDUP_TEST_IMAGE")
    if given and target == "runtime":
        return given
    client = require_engine()
    tag = f"event-dedup-tests:{target}"
    client.images.build(path=str(ROOT), target=target, tag=tag, buildargs={"PYTHON_IMAGE": PYTHON_IMAGE}, rm=True)
    client.close()
    return tag


def run(*command: str | Path, env: dict[str, str] | None = None, timeout_s: float = 120, check: bool = True) -> str:
    """Run a command; its standard output, without line end.

    Raises:
        AssertionError: it failed; with what it wrote.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, env=env, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def compose_program() -> Sequence[str]:
    """``docker compose``, or ``docker-compose`` where there is no such plugin."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    return missing("neither 'docker compose' nor 'docker-compose' is installed")


def logs_of(container: Any, lines: int = 40) -> str:
    """The end of a container's log."""
    return str(container.logs(tail=lines).decode(errors="replace"))


def report(request: pytest.FixtureRequest, name: str, text: str) -> None:
    """Show something with the test's report."""
    request.node.add_report_section("teardown", name, text)
    sys.stdout.flush()
