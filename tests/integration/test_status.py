"""``dedup status``: what moves now, on real stores; live on a terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

from app import redis_client
from app.claims.store import ClaimStore
from app.cli.main import exit_code
from app.cli.status import _short
from app.glance import percentile
from app.leases import Lease
from app.naming import RECOVERY_QUEUE, queue_of
from app.presence import Beat, Presence
from app.stores import mongo
from app.stores.failures import Failures, Origin, Problem
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.mongo import server_now
from app.stores.records import inbox_document
from tests.support.pipelines import entry
from tests.support.servers import environment, use_settings
from tests.support.waiting import eventually


@pytest.fixture
def db(settings, monkeypatch, tmp_path):
    use_settings(monkeypatch, settings)
    monkeypatch.chdir(tmp_path)
    made = mongo.connect(settings, role="test")
    yield made
    made.client.close()


@pytest.fixture
def busy(db, settings):
    """Two listeners, 100 processed events that took 0.01 to 1 s, one batch in hand, one failure, deliveries that wait."""
    deployment, now = deployment_id(db), server_now(db)
    documents = [
        {"_id": f"k{n}", "v": 1, "digest": "d", "type": "t", "listener": f"listener-{1 + n % 2}", "claim_id": "c", "body": {}}
        | {"accepted_at": now - timedelta(milliseconds=10 * n), "processed_at": now}
        for n in range(1, 101)
    ]
    Ledger(db).insert(documents)
    db["events"].insert_one(documents[0] | {"_id": "again", "accepted_at": now - timedelta(days=9), "generation": 1})
    Inbox(db).write([inbox_document("b", [entry("w1"), entry("w2"), entry("w3")], door="http", accepted_at=now)])
    origin = Origin(batch=None, accepted_at=now, listener="listener-1", token=1)
    Failures(db).record_attempt(entry("f"), origin, Problem("ValueError: no\n such thing"), delay_ms=None, ended_start=False)
    with redis_client.connect(settings) as client:
        for name in ("listener-1", "listener-2"):
            Presence(client, deployment).beat(Beat(node=f"{name}@h", listener=name, pid=1, won=1_234_567, skipped=45_678, failed=1))
        store = ClaimStore.of(settings, client, deployment)
        store.claim(["w1", "w2"], ["d1", "d1"], claim_id="c", owner="listener-2", lease_ms=60_000)
        Lease(client, deployment, "bridge", owner="host#1", life_ms=60_000).hold()
    with Redis.from_url(settings.broker_url) as broker:
        broker.lpush(queue_of("listener-1"), "x", "y")
        broker.lpush(RECOVERY_QUEUE, "x")
    return db


def test_what_moves_now(busy, capsys):
    assert exit_code(["status", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recent"]["latency"] == {"events": 100, "p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
    assert facts["recent"]["per_s"] == {"listener-1": 0.8, "listener-2": 0.8}
    assert facts["queues"] == {"listener-1": 2, "listener-2": 0, "recovery": 1}
    assert facts["held"] == {"live": {"listener-2": 2}, "lapsed": 0, "of": 3, "acting": {"bridge": "host#1"}}
    assert facts["reasons"] == [{"state": "dead", "reason": "ValueError: no\n such thing", "n": 1}]
    assert all(facts[store]["ok"] and facts[store]["ms"] >= 0 for store in ("mongo", "redis", "broker"))


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_it_fits_the_width_without_colour(busy, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    assert exit_code(["status"]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= int(columns)
    assert "\x1b" not in said
    for part in ("1 dead: ValueError: no such thing", "listener-2 2 of 3", "p50 0.500 s", "1 delivery waiting", "host#1 acts"):
        assert part in said, said
    assert ("1.2M" if columns == "60" else "1,234,567") in said


def test_lines_are_not_broken_in_a_pipe(busy, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    exit_code(["status"])
    assert "latency    p50 0.500 s, p95 0.950 s, p99 0.990 s (newest 100 events)" in capsys.readouterr().out


def test_a_broker_that_is_away_costs_its_own_part(busy, capsys, monkeypatch):
    monkeypatch.setenv("DEDUP_BROKER_URL", "redis://127.0.0.1:1/0")
    assert exit_code(["status"]) == 1
    said = capsys.readouterr().out
    assert "broker     the broker did not serve" in said
    assert "2 of 3" in said
    assert exit_code(["listeners", "list", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[0])["queue"] is None
    assert captured.err.startswith("dedup: the broker did not serve")


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(busy, settings, tmp_path):
    ours, theirs = pty.openpty()
    env = environment(settings) | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "60", "LINES": "40"}
    command = [sys.executable, "-c", "from app.cli.main import run; run()", "status", "--every", "0.2"]
    shown = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path, start_new_session=True) as process:
        os.close(theirs)

        def twice() -> bool:
            nonlocal shown
            shown += os.read(ours, 65_536)
            return shown.count(b"p50 0.500 s") >= 2

        eventually(twice, 30, lambda: shown.decode(errors="replace"))
        process.send_signal(signal.SIGINT)
        try:
            while os.read(ours, 65_536):
                pass
        except OSError:
            pass  # the other end is closed
        assert process.wait(20) == 0
    os.close(ours)


@pytest.mark.parametrize("values, share, expected", [([], 50, None), ([1.0], 99, 1.0), ([1.0, 2.0], 50, 1.0), ([1.0, 2.0], 51, 2.0)])
def test_percentiles(values, share, expected):
    assert percentile(values, share) == expected


@pytest.mark.parametrize("number, text", [(0, "0"), (9_999, "9,999"), (45_678, "45k"), (1_234_567, "1.2M"), (12_345_678, "12M")])
def test_short_numbers(number, text):
    assert _short(number) == text
