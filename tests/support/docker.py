"""What tests with containers share: the engine, the project's image, names that tell a run's containers from others."""

import functools
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

ROOT = Path(__file__).resolve().parents[2]
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.11-slim-bookworm")
VALKEY_IMAGE = os.environ.get("VALKEY_IMAGE", "valkey/valkey:9.1")
MONGO_IMAGE = os.environ.get("MONGO_IMAGE", "mongo:6.0")
RUN = os.environ.get("DEDUP_TEST_RUN") or secrets.token_hex(3)
"""In the name of every container, network and volume of this run, so that they can be told from others, and removed."""


def require_engine() -> docker.DockerClient:
    """A client of the Docker engine; where none answers, the test is skipped."""
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {str(error)[:200]}")
    return client


def own_name() -> str:
    """A name for a container, network or compose project: of this run, and not used before."""
    return f"dedup-test-{RUN}-{secrets.token_hex(3)}"


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


def compose_program() -> Sequence[str]:
    """``docker compose``, or ``docker-compose`` where there is no such plugin."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ("docker", "compose")
    if not shutil.which("docker-compose"):
        pytest.skip("neither 'docker compose' nor 'docker-compose' is installed")
    return ("docker-compose",)


def logs_of(container: Any, lines: int = 40) -> str:
    """The end of a container's log."""
    return str(container.logs(tail=lines).decode(errors="replace"))
