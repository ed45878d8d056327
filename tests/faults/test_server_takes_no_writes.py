"""MongoDB answers, but takes no writes: read-only, locked, or its disk full."""

from typing import Any

import httpx
import pytest

from tests.support.system import System, events
from tests.support.waiting import eventually


def block_writes(system: System, blocked: bool) -> None:
    system.client.admin.command({"setUserWriteBlockMode": 1, "global": blocked})


def post(system: System, batch: list[dict[str, Any]]) -> httpx.Response:
    return httpx.post(f"{system.url}/events", json=batch, timeout=20)


@pytest.fixture
def blocked(private_system: System) -> System:
    """The system at work, and then a MongoDB that refuses every write."""
    private_system.up()
    private_system.accept(events(200))
    private_system.await_finished()
    block_writes(private_system, True)
    return private_system


def test_read_only_at_accept(blocked: System):
    """G1: no door says accepted; the same events sent again are accepted once MongoDB takes writes again."""
    batch = events(50)
    refused = post(blocked, batch)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "MongoDB" in refused.json()["detail"]
    block_writes(blocked, False)
    blocked.accept(batch)
    blocked.await_finished()
    blocked.audit()


def test_read_only_while_events_are_processed(private_system: System):
    """G1, G5: what was accepted waits; an outage is nobody's attempt, so nothing ends dead."""
    system = private_system.up()
    system.accept(events(600, "fault.slow", ms=10))
    eventually(lambda: system.db.events.count_documents({}) > 50)
    block_writes(system, True)
    eventually(lambda: any("delivery.left" in system.listener(f"listener-{n}").log_tail(100) for n in (1, 2, 3)), 20)
    done = system.db.events.count_documents({})
    assert done < 600
    block_writes(system, False)
    system.await_finished()
    system.audit()
    assert system.db.failures.count_documents({}) == 0


def test_locked_at_accept(private_system: System):
    """G1: writes hang, as on a full or stuck disk; the producer is told in time, and what was written late is the same event."""
    system = private_system.with_settings(mongo_timeout_ms=1_000)
    system.up()
    batch = events(50)
    system.client.admin.command("fsync", lock=True)
    try:
        assert post(system, batch).status_code == 503
    finally:
        system.client.admin.command("fsyncUnlock")
    system.accept(batch)
    system.await_finished()
    system.audit()
