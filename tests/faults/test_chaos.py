"""Random faults of every kind while events come in through the doors. ``make chaos MINUTES=10 SEED=7`` runs it for longer."""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.embedded.ports import free_port
from app.embedded.servers import EmbeddedServers
from tests.chaos.monkey import LISTENERS, Monkey
from tests.support.servers import fresh_settings
from tests.support.system import Spawn, system_on
from tests.support.waiting import eventually

MINUTES = float(os.environ.get("DEDUP_CHAOS_MINUTES", "1"))
SEED = int(os.environ.get("DEDUP_CHAOS_SEED", "20261123"))


@pytest.mark.timeout(MINUTES * 60 + 400)
def test_what_doors_promised_is_kept_under_random_faults(
    start_servers: Callable[..., EmbeddedServers], spawn: Spawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """G1, G2, G3, G5: every key that a door promised is in the ledger once with its effect once, or in failures."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    say(f"\nchaos: {MINUTES:g} minutes, SEED={SEED}")
    servers = start_servers(mongo_nodes=3)
    ports = {"broadcaster-1": free_port(), "broadcaster-2": free_port()}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    settings = replace(fresh_settings(servers, tmp_path), broadcaster_url=",".join(urls.values()))
    with closing(system_on(settings, spawn, tmp_path, max_attempts=8)) as system:
        system.servers = servers
        for name, port in ports.items():
            system.start_broadcaster(name, env={"DEDUP_PORT": str(port)})
        for name in ("bridge-1", "bridge-2"):
            system.start_bridge(name)
        for number in range(1, LISTENERS + 1):
            system.start_listener(f"listener-{number}")
        system.await_listeners(LISTENERS)
        monkey = Monkey(system, SEED, urls, say)
        monkey.run(MINUTES * 60)
        eventually(servers.mongo.primary, 60, "a primary")
        system.await_finished(180)
        system.audit(effects=False)
        handled = {key for key, event in system.told.items() if event["type"] != "plain"}
        counted = {d["_id"]: d["n"] for d in system.db.effects.find()}
        wrong = {key: counted.get(key, 0) for key in handled if counted.get(key, 0) != 1}
        assert not wrong, f"G2: effects not exactly once: {dict(list(wrong.items())[:5])} of {len(wrong)}"
        assert system.db.failures.count_documents({}) == 0, system.state()
        say(f"faults: {dict(monkey.did)}; refused: {dict(monkey.refused)}")
        say(f"{len(system.told)} keys promised · {system.db.events.count_documents({})} processed once · 0 lost · 0 twice")
