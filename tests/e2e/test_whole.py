"""The whole way of an event with real worker processes: ledger, Flower's API, Socket.IO clients."""

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import socketio

from app.settings import Settings
from tests.support.system import Spawn, events, system_on
from tests.support.waiting import eventually


def test_ledger_flower_and_socketio_clients_tell_the_same_story(settings: Settings, spawn: Spawn, tmp_path: Path) -> None:
    with closing(system_on(settings, spawn, tmp_path)) as system:
        system.up(3)
        flower = f"http://127.0.0.1:{settings.flower_port}"
        root = Path(__file__).parents[2]
        spawn(
            "flower",
            ["celery", "-A", "app", "flower", f"--conf={root / 'flowerconfig.py'}"],
            settings=system.settings,
            env={"PYTHONPATH": str(root), "FLOWER_UNAUTHENTICATED_API": "true"},
        )
        eventually(lambda: _answers(f"{flower}/healthcheck"), 30, "Flower")
        system.await_fan_out("listener-1", "listener-2", "listener-3")
        seen: list[list[str]] = [[], []]
        clients = [socketio.Client(), socketio.Client()]
        for client, keys in zip(clients, seen, strict=True):
            client.on("event", lambda event, keys=keys: keys.append(event["key"]))
            client.connect(system.url, transports=["websocket"])
        try:
            keys = [key for event in events(20, "order.paid") for key in system.accept([event])]
            bulk = system.accept(events(250, "order.paid"))
            system.await_finished()
            eventually(lambda: all(set(keys) | set(bulk) <= set(got) for got in seen), 15, "an event at every client")
        finally:
            for client in clients:
                client.disconnect()
        assert system.db.events.count_documents({"type": "order.paid"}) == 270

        tasks = eventually(lambda: _complete(flower, keys + bulk[:1]), 20, "all tasks in Flower", every_s=0.3)
        for key in keys:
            mine = [task for task in tasks.values() if task["uuid"].startswith(f"{key}/")]
            states = Counter(task["state"] for task in mine)
            assert states == {"SUCCESS": 1, "SKIPPED": 2}, mine
            winner = next(task for task in mine if task["state"] == "SUCCESS")
            assert winner["result"] == "won 1"
            name = winner["uuid"].rpartition("/")[2]
            assert system.db.events.find_one({"_id": key})["listener"] == name
            assert all(name in task["result"] for task in mine if task["state"] == "SKIPPED"), mine
        (big,) = [t for t in tasks.values() if t["uuid"].startswith(f"{bulk[0]}+249/") and t["result"] == "won 250"]
        assert "249 more" in big["args"]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _complete(flower: str, first_keys: list[str]) -> dict[str, Any]:
    """Flower's tasks, once each of the deliveries that begin with these keys has ended at three listeners."""
    found: dict[str, Any] = httpx.get(f"{flower}/api/tasks", params={"limit": 1_000}, timeout=10).raise_for_status().json()
    ended = Counter(task["uuid"].partition("/")[0].partition("+")[0] for task in found.values() if task["state"] in ("SUCCESS", "SKIPPED"))
    return found if all(ended[key] >= 3 for key in first_keys) else {}
