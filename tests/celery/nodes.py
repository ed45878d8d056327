"""This project's nodes for pytest-celery: the same classes around containers and, with ``Local`` before the name, processes.

A listener's command is what a user types; what it needs besides stands in ``DEDUP_`` variables, made of the clusters'
configuration in pytest-celery's own way (``initial_env``).
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from docker.models.containers import Container
from pytest_celery import CeleryTestContainer, CeleryWorkerContainer, RedisContainer

from app.naming import queue_of
from tests.celery.local_nodes import LocalContainer, LocalProcess
from tests.support.system import QUICK

Raw = Container | LocalProcess

CLAIMS_DB, BROKER_DB, RESULTS_DB = "0", "1", "2"
VALKEY_PORT, DOOR_PORT = 6379, 4000
TOKEN = "of-these-tests"


class ValkeyContainer(RedisContainer):
    """One numbered database of a Valkey server, as broker or as result backend."""

    def __init__(self, raw: Raw, database: str) -> None:
        super().__init__(raw)
        self._database = database

    @property
    def vhost(self) -> str:
        return self._database

    @property
    def host_url(self) -> str:
        """For the test; pytest-celery's own says ``localhost``, which is wrong where tests run in a container."""
        host, port = self.get_addr(f"{VALKEY_PORT}/tcp")
        return f"{self.prefix()}{host}:{port}/{self.vhost}"

    @property
    def port(self) -> int:
        return int(self.get_addr(f"{VALKEY_PORT}/tcp")[1])

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        return ["valkey-server", "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", "--protected-mode", "no", *args]


class ListenerContainer(CeleryWorkerContainer):
    """A listener: ``celery -A app worker -n listener-1@%h``."""

    def __init__(self, raw: Raw, name: str) -> None:
        super().__init__(raw)
        self._listener = name

    def worker_name(self) -> str:
        return self._listener

    def worker_queue(self) -> str:
        return queue_of(self._listener)

    @classmethod
    def command_of(cls, name: str) -> list[str]:
        return ["celery", "-A", "app", "worker", "-n", f"{name}@%h"]

    @classmethod
    def initial_env(cls, celery_worker_cluster_config: dict[str, Any], initial: Mapping[str, str] | None = None) -> dict[str, str]:
        broker = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"][0]
        results = celery_worker_cluster_config["celery_backend_cluster_config"]
        quick = {f"DEDUP_{k.upper()}": ",".join(v) if isinstance(v, tuple) else str(v) for k, v in QUICK.items()}
        servers = {
            "DEDUP_BROKER_URL": broker,
            "DEDUP_REDIS_URL": urlsplit(broker)._replace(path=CLAIMS_DB).geturl(),
            "DEDUP_RESULT_BACKEND": results["urls"][0] if results else "",
            "DEDUP_TOKEN": TOKEN,
        }
        return quick | servers | dict(initial or {})


class ServiceContainer(CeleryTestContainer):
    """Broadcaster or bridge."""

    def __init__(self, raw: Raw, ready_prompt: str) -> None:
        super().__init__(raw)
        self._ready_prompt = ready_prompt

    @property
    def ready_prompt(self) -> str:
        return self._ready_prompt


class LocalValkey(LocalContainer, ValkeyContainer):
    pass


class LocalListener(LocalContainer, ListenerContainer):
    pass


class LocalService(LocalContainer, ServiceContainer):
    pass
