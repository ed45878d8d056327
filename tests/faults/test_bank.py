"""The bank: payments by ``$inc`` under random kills, pauses and flushes; faults 1, 3, 8, 12 together."""

import os
import random
import threading
import time

from tests.support.system import System

ACCOUNTS = 7
SECONDS = 15


def test_balances_equal_the_unique_credits_exactly(private_system: System) -> None:
    """G1, G2, G3: after random kills, pauses and flushes, each account holds the sum of its unique credits."""
    seed = int(os.environ.get("DEDUP_SEED", "20260"))
    print(f"DEDUP_SEED={seed}")
    system = private_system
    system.up(3)
    payments = [
        {
            "type": "fault.credit",
            "source": "bank",
            "id": str(n),
            "data": {"account": n % ACCOUNTS, "amount": 1 + n % 97},
        }
        for n in range(3_000)
    ]
    stop = threading.Event()
    feeder = threading.Thread(target=_feed, args=(system, payments, random.Random(seed), stop))
    feeder.start()
    try:
        _harass(system, random.Random(seed + 1))
    finally:
        stop.set()
        feeder.join()
    system.await_finished(90)
    system.audit()
    expected = dict.fromkeys(range(ACCOUNTS), 0)
    for key in system.told:
        data = system.told[key]["data"]
        expected[data["account"]] += data["amount"]
    assert {d["_id"]: d["balance"] for d in system.db.accounts.find()} == {a: sum_ for a, sum_ in expected.items() if sum_}


def _feed(system: System, payments: list[dict[str, object]], chance: random.Random, stop: threading.Event) -> None:
    """Send all payments in small requests, and a third of them again."""
    at = 0
    while at < len(payments) and not stop.is_set():
        size = chance.randint(1, 60)
        system.accept(payments[at : at + size])
        if at and chance.random() < 0.33:
            again = chance.randrange(at)
            system.accept(payments[again : again + 20])
        at += size
        time.sleep(0.05)


def _harass(system: System, chance: random.Random) -> None:
    """Kill and restart, pause and resume listeners, and flush Redis, for a while."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        name = f"listener-{chance.randint(1, 3)}"
        what = chance.choice(["kill", "pause", "flush", "nothing"])
        print(what, name)
        if what == "kill":
            system.listener(name).kill()
            system.restart_listener(name)
        elif what == "pause":
            system.listener(name).pause()
            time.sleep(chance.uniform(0.5, 4.0))
            system.listener(name).resume()
        elif what == "flush":
            system.redis.flushall()
        time.sleep(chance.uniform(0.2, 1.5))
