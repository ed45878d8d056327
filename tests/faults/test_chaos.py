"""Random faults of every kind while events come in through all doors. ``make chaos MINUTES=10 SEED=7`` runs it for longer."""

import os
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.embedded.ports import free_port
from app.embedded.servers import EmbeddedServers
from tests.chaos.balance import check_balance
from tests.chaos.doors import POLICIES, Doors
from tests.chaos.monkey import Monkey
from tests.support.servers import fresh_settings
from tests.support.system import Spawn, system_on
from tests.support.waiting import eventually

MINUTES = float(os.environ.get("DEDUP_CHAOS_MINUTES", "1"))
SEED = int(os.environ.get("DEDUP_CHAOS_SEED", "20261123"))
LAST = 200
"""Events that the foreign server emits when all is well again: each of them must arrive."""


@pytest.mark.timeout(MINUTES * 60 + 500)
def test_what_doors_promised_is_kept_under_random_faults(
    start_servers: Callable[..., EmbeddedServers], spawn: Spawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """G1, G2, G3, G5: every key that a door promised is in the ledger once with its effect once, and nothing that nobody sent."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    say(f"\nchaos: {MINUTES:g} minutes, SEED={SEED}")
    servers = start_servers(mongo_nodes=3)
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in ("broadcaster-1", "broadcaster-2")}
    feed_url = f"http://127.0.0.1:{free_port()}"
    policies = tmp_path / "chaos.toml"
    policies.write_text(POLICIES.format(feed_url=feed_url))
    settings = replace(fresh_settings(servers, tmp_path, policies=policies), broadcaster_url=",".join(urls.values()))
    with closing(system_on(settings, spawn, tmp_path, max_attempts=8)) as system:
        system.servers = servers
        doors = Doors(system, SEED, urls, feed_url)
        monkey = Monkey(system, SEED, doors, say)
        monkey.start()
        monkey.run(MINUTES * 60)
        say(f"faults: {dict(monkey.did)}; refused: {dict(doors.refused)}")
        eventually(servers.mongo.primary, 60, "a primary")
        system.await_finished(180)

        monkey.await_feed()
        chance = random.Random(SEED)
        with httpx.Client(timeout=15) as http:
            last = doors.emit(http, [doors.event(chance) for _ in range(LAST)])
        eventually(lambda: system.db.events.count_documents({"_id": {"$in": last}}) == LAST, 60, system.state)
        system.await_finished(60)
        say(check_balance(system, doors))
