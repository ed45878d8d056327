"""Processed again because an operator wants it: each command once more, amid duplicates and losses."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.support.servers import environment
from tests.support.system import ROOT, System, events
from tests.support.waiting import eventually


def command(system: System, *keys: str) -> subprocess.CompletedProcess[str]:
    """``dedup reprocess`` in a process of its own."""
    argv = [sys.executable, "-c", "from app.cli.main import run; run()", "reprocess", *keys, "--reason", "wrong handler"]
    env = environment(system.settings) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=env, cwd=system.folder, capture_output=True, text=True, timeout=60, check=False)


def await_again(system: System, keys: list[str], commits: int) -> None:
    done = {"_id": {"$in": keys}, "recommits": commits, "reopened": {"$exists": False}}
    eventually(lambda: system.db.events.count_documents(done) == len(keys), 60, system.state, every_s=0.1)
    system.await_finished()


def effects(system: System) -> dict[str, int]:
    return {d["_id"]: d["n"] for d in system.db.effects.find()}


def test_processed_again_once_per_command_amid_duplicates_and_flushall(private_system: System) -> None:
    """G1, G2: two commands at once (one wins), duplicates of every event, FLUSHALL: one more commit each, and none of the others."""
    system = private_system
    system.up(3)
    sent = events(200)
    keys = system.accept(sent)
    system.await_finished()
    again = keys[:40]

    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(lambda _: command(system, *again), range(2)))
        system.accept(sent)
    won = sum(one.stdout.count("will be processed again") for one in said)
    refused = sum(one.stderr.count("is being processed again already") for one in said)
    assert won >= len(again), said  # a later one may come after the reprocessing is over, and is a decision of its own
    assert won + refused == 2 * len(again), said
    system.accept(sent)
    eventually(lambda: system.db.failures.count_documents({}) == 0, 60, system.state, every_s=0.1)
    commits = {d["_id"]: 1 + d.get("recommits", 0) for d in system.db.events.find({"_id": {"$in": again}})}
    assert sum(commits.values()) == len(again) + won
    assert effects(system) == dict.fromkeys(keys, 1) | commits

    after = keys[40:60]
    assert command(system, *after).returncode == 0
    system.redis.flushall()
    system.accept(sent)
    await_again(system, after, 1)
    system.redis.flushall()
    system.accept(sent)
    system.await_finished()
    assert effects(system) == dict.fromkeys(keys, 1) | commits | dict.fromkeys(after, 2)
    assert system.db.failures.count_documents({}) == 0


def test_the_winner_of_a_reprocessing_dies_in_its_transaction(system: System) -> None:
    """G3, G4: its writes are rolled back, another listener takes over, and the event is committed once more, not twice."""
    system.up(2)
    (system.folder / "gates" / "open").touch()
    [key] = system.accept(events(1, "fault.gate"))
    system.await_finished()
    for gate in (system.folder / "gates").iterdir():
        gate.unlink()

    assert command(system, key).returncode == 0
    dying = system.entered()
    os.kill(int((system.folder / "gates" / f"entered-{dying}").read_text()), 9)
    system.listener(dying).kill()
    system.open_gate()

    await_again(system, [key], 1)
    assert effects(system) == {key: 2}
    assert system.db.events.find_one({"_id": key})["listener"] != dying
