"""pytest-celery's ``celery_setup`` with the rest of the system: broadcaster, bridge, MongoDB."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NoReturn

import httpx
from celery.result import AsyncResult
from pymongo.collection import Collection
from pytest_celery import CeleryTestSetup

from app.naming import task_id
from app.settings import load_settings
from tests.celery.nodes import CLAIMS_DB, DOOR_PORT, TOKEN, ServiceContainer
from tests.support.system import System, events
from tests.support.waiting import eventually


class DedupTestSetup(CeleryTestSetup):
    """What a test works with: pytest-celery's clusters, the doors, and the balance of the fault tests.

    Attributes:
        system: keeps what the door was told, and audits it.
    """

    system: System
    broadcaster: ServiceContainer
    bridge: ServiceContainer
    _http: httpx.Client

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._closing = ExitStack()

    def complete(self, broadcaster: ServiceContainer, bridge: ServiceContainer, *, mongo_url: str, folder: Path) -> None:
        """Take in what pytest-celery does not know, and wait until all of it is of use."""
        self.broadcaster, self.bridge = broadcaster, bridge
        broker_url = self.broker.config()["host_url"]
        urls = {"redis_url": broker_url.rpartition("/")[0] + f"/{CLAIMS_DB}", "broker_url": broker_url, "mongo_url": mongo_url}
        self.system = self._closing.enter_context(closing(System(load_settings({}, folder=folder, **urls), _nothing, folder)))
        for node in (broadcaster, bridge):
            eventually(node.ready, 60, node.logs, every_s=0.1)
        host, port = broadcaster.get_addr(f"{DOOR_PORT}/tcp")
        self.system.url = f"http://{host}:{port}"
        client = httpx.Client(base_url=self.system.url, timeout=20, headers={"Authorization": f"Bearer {TOKEN}"})
        self._http = self._closing.enter_context(client)
        self.await_listeners(len(self.worker_cluster))
        self.await_copies()

    def teardown(self) -> None:
        """Close the clients."""
        super().teardown()
        self._closing.close()
        self.app.close()

    def accept(self, sending: Iterable[dict[str, Any]], *, per_request: int = 250) -> list[str]:
        """Send events to the door; their keys."""
        waiting = list(sending)
        return [key for at in range(0, len(waiting), per_request) for key in self.system._send(self._http, waiting[at : at + per_request])]

    @property
    def ledger(self) -> Collection[dict[str, Any]]:
        """The processed events."""
        return self.system.db["events"]

    @property
    def failures(self) -> Collection[dict[str, Any]]:
        """The events that failed."""
        return self.system.db["failures"]

    def await_finished(self) -> None:
        """Wait until nothing is on its way."""
        self.system.await_finished(60)

    def audit(self, *, failed: int = 0) -> None:
        """Everything that was accepted is processed once, or, ``failed`` of them, among the failures."""
        self.system.audit(failed=failed)

    def listeners(self) -> dict[str, dict[str, Any]]:
        """The live listeners by name, as the broadcaster hears them: ``won``, ``skipped``, ``failed``, ``nodes``."""
        stats = self._http.get("/stats").raise_for_status().json()
        return {listener["name"]: listener for listener in stats["listeners"]}

    def await_listeners(self, number: int) -> None:
        """Wait until exactly so many listeners live."""
        eventually(lambda: len(self.listeners()) == number, 60, lambda: f"{number} listeners: {self.listeners()}", every_s=0.1)

    def await_copies(self) -> None:
        """Wait until each worker gets a copy of what is accepted: events of no importance are sent until that is so."""

        def all_got_one() -> bool:
            (key,) = self.accept(events(1))
            eventually(lambda: self.ledger.find_one({"_id": key}), 30, self.system.state)
            return all(f"{task_id(key, 0, worker.worker_name)}] received" in worker.logs() for worker in self.worker_cluster)

        eventually(all_got_one, 60, self.listeners, every_s=0.2)
        self.await_finished()

    def result_of(self, key: str, listener: str) -> AsyncResult:
        """The result of a single event's task on a listener: its id is made of the two."""
        return AsyncResult(task_id(key, 0, listener), app=self.app)


def _nothing(*_: object, **__: object) -> NoReturn:
    raise AssertionError("nodes are started by the ground")
