"""Fresh settings on real servers: every test has its own database, hence its own claim prefix, and its own broker."""

import functools
import itertools
import os
import secrets
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from redis import Redis

from app.embedded.binaries import mongod_binary, valkey_binary
from app.embedded.ports import free_port
from app.embedded.servers import EmbeddedServers
from app.errors import ServerStartError
from app.settings import PREFIX, Settings, load_settings
from app.stack import environment_of

TEST_DATABASES = 512
"""Numbered databases of a test's Valkey: a test takes two, one for claims and one for the broker."""

QUICK_MONGOD = ("--journalCommitInterval", "10")
"""Milliseconds. To drop a database MongoDB waits for the next time that its journal is written: by default up to 100 ms, after each test."""

_numbers = itertools.cycle(range(0, TEST_DATABASES, 2))


def require_servers() -> None:
    """Skip a test where the embedded servers' programs are not there or do not run at all."""
    reason = _why_missing()
    if reason:
        pytest.skip(reason)


@functools.cache
def _why_missing() -> str | None:
    try:
        for find in (valkey_binary, mongod_binary):
            program = find()
            tried = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
            if tried.returncode:
                return f"{program} does not run: {tried.stderr.strip()}"
    except (ServerStartError, OSError) as error:
        return str(error)
    return None


def fresh_settings(servers: EmbeddedServers, folder: Path, **overrides: Any) -> Settings:
    """Settings on these servers that share nothing with anyone else's; ``remove_data`` ends them.

    Args:
        servers: running servers with ``TEST_DATABASES`` databases.
        folder: working folder of the settings; their home lies in it.
        overrides: fields of ``Settings``.
    """
    number = next(_numbers)
    urls = {
        "redis_url": servers.valkey.url(number),
        "broker_url": servers.valkey.url(number + 1),
        "mongo_url": servers.mongo.url(f"test_{secrets.token_hex(4)}"),
    }
    return load_settings({}, folder=folder, **(urls | {"port": free_port(), "flower_port": free_port()} | overrides))


def remove_data(settings: Settings) -> None:
    """Drop the settings' database and empty their two Redis databases."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(settings.mongo_url, serverSelectionTimeoutMS=5_000) as client:
        client.admin.command("killAllSessions", [])  # an open transaction would hold the drop up
        client.drop_database(client.get_default_database().name)
    for url in (settings.redis_url, settings.broker_url):
        with Redis.from_url(url, socket_timeout=5.0) as redis:
            redis.flushdb()


def use_settings(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Let this process read these settings from its environment, as a command does."""
    for name, value in environment_of(settings).items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)


def environment(settings: Settings | None = None) -> dict[str, str]:
    """This process's environment for a child: no ``DEDUP_`` variable but the settings', each of them, so that no ``.env`` adds to them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    for spec in fields(settings) if settings else ():
        value = getattr(settings, spec.name)
        env[PREFIX + spec.name.upper()] = ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
    return env
