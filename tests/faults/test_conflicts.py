"""The same key with other content, and duplicates after memory is gone: faults 18, 19, 26."""

from pathlib import Path
from typing import Any

import bson

from tests.support.system import System, events
from tests.support.waiting import eventually


def other(event: dict[str, Any]) -> dict[str, Any]:
    """The same event with other content."""
    return event | {"data": event["data"] | {"changed": True}}


def conflicts(system: System) -> list[dict[str, Any]]:
    """What is in quarantine."""
    return list(system.db.failures.find({"state": "conflict"}))


def test_other_content_during_and_after_processing_and_after_flushall(private_system: System) -> None:
    """G6: other content under the same key is quarantined with its body whenever it arrives; the first stands."""
    system = private_system
    system.up(2)
    (event,) = events(1, "fault.gate")
    system.accept([event])
    system.entered()
    system.accept([other(event)])
    eventually(lambda: system.db.inbox.count_documents({"forwards": {"$gte": 1}}) == 2, 15, system.state)
    system.open_gate()
    eventually(lambda: len(conflicts(system)) == 1, 15, system.state)  # once the first is committed: a claim proves nothing
    system.await_finished(20)
    second = event | {"data": {"n": -2}}
    system.accept([second])
    eventually(lambda: len(conflicts(system)) == 2, 15, system.state)
    system.redis.flushall()
    third = event | {"data": {"n": -3}}
    system.accept([third])
    eventually(lambda: len(conflicts(system)) == 3, 15, system.state)
    system.await_finished(20)
    system.audit()
    (committed,) = system.db.events.find()
    assert committed["body"]["data"] == event["data"]
    assert {bson.encode(c["body"]["data"]) for c in conflicts(system)} == {bson.encode(e["data"]) for e in (other(event), second, third)}
    assert {c["other_digest"] for c in conflicts(system)} == {committed["digest"]}


def test_both_contents_before_anyone_processes(system: System) -> None:
    """G6: two contents of one key that wait together end as one commit and one conflict."""
    system.start_broadcaster()
    first = events(30)
    system.accept(first)
    system.accept([other(event) for event in first])
    system.start_bridge()
    system.start_listener("listener-1")
    system.start_listener("listener-2")
    system.await_finished(30)
    system.audit()
    assert system.db.events.count_documents({}) == 30
    assert len(conflicts(system)) == 30
    for conflict in conflicts(system):
        committed = system.db.events.find_one({"_id": conflict["key"]})
        assert committed is not None
        assert {committed["digest"], conflict["digest"]} == {conflict["other_digest"], conflict["digest"]}


def test_duplicates_are_skipped_by_redis_and_without_it_by_the_ledger(private_system: System) -> None:
    """G2: the same events again, with their marks of done and after FLUSHALL, are skipped."""
    system = private_system
    system.up(2)
    batch = events(200)
    for _ in range(2):
        system.accept(batch)
        system.await_finished()
    system.redis.flushall()
    system.accept(batch)
    system.await_finished()
    system.audit()
    assert system.db.events.count_documents({}) == 200


def test_database_dropped_while_redis_remembers(system: System) -> None:
    """G1: after the database was dropped, Redis' old marks of done do not swallow the same events sent again."""
    system.up(2)
    batch = events(100)
    system.accept(batch)
    system.await_finished()
    system.client.drop_database(system.db.name)
    system.accept(batch)
    system.await_finished()
    eventually(lambda: system.db.events.count_documents({}) == 100, 20, system.state)
    system.audit()


def test_database_restored_to_an_older_state_while_redis_remembers(system: System) -> None:
    """G1: marks of done that the restored MongoDB refutes are forgotten, and the events processed again."""
    system.start_broadcaster()
    system.accept(events(100))
    backup = list(system.db.inbox.find())
    system.start_bridge()
    for name in ("listener-1", "listener-2"):
        system.start_listener(name)
    system.await_finished()
    system.audit()
    for name in ("events", "effects", "failures"):
        system.db[name].delete_many({})
    system.db.inbox.insert_many(backup)
    system.await_finished(30)
    system.audit()


def test_older_than_its_retention_is_stale(system: System, tmp_path: Path) -> None:
    """G2: an event accepted before its type's retention began, and not in the ledger, is stored as stale, not run again."""
    (tmp_path / "policies.toml").write_text('[types."fault.count"]\nretention_s = 200\n')
    system = system.with_settings(inbox_max_age_s=60, policies=tmp_path / "policies.toml")
    system.start_broadcaster()
    system.accept(events(3))
    system.db.inbox.update_many({}, [{"$set": {"accepted_at": {"$subtract": ["$accepted_at", 300_000]}}}])
    system.start_bridge()
    system.start_listener("listener-1")
    system.await_finished(30)
    system.audit(failed=3)
    assert {f["state"] for f in system.db.failures.find()} == {"stale"}
