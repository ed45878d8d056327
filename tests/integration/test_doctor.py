"""``dedup doctor`` on real servers: what it sees, what it may not see, and what it says when they are away."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import MongoClient
from redis import Redis

from app import redis_client
from app.cli.main import exit_code
from app.doctor import Findings, examine
from app.doctor.findings import skew
from app.doctor.local import examine as examine_local
from app.doctor.redis_server import is_loopback
from app.embedded.mongod import MongodServer
from app.naming import queue_of
from app.presence import Beat, Presence
from app.settings import Settings
from app.stores import mongo
from app.stores.inbox import Inbox
from app.stores.meta import deployment_id
from app.stores.records import inbox_document, utc_now
from tests.support.pipelines import entry
from tests.support.servers import fresh_settings, use_settings
from tests.support.waiting import eventually


def by_check(findings: Findings) -> dict[str, Any]:
    """The worst finding of each check."""
    order = ("ok", "warning", "problem")
    found: dict[str, Any] = {}
    for finding in findings:
        if finding.check not in found or order.index(finding.severity) > order.index(found[finding.check].severity):
            found[finding.check] = finding
    return found


def problems(findings: Findings) -> set[str]:
    return {finding.check for finding in findings if finding.severity == "problem"}


@pytest.fixture
def here(monkeypatch, tmp_path) -> Callable[[Settings], Settings]:
    """Lets commands find these servers."""

    def let(settings: Settings) -> Settings:

        use_settings(monkeypatch, settings)
        monkeypatch.chdir(tmp_path)
        return settings

    return let


@pytest.fixture
def deployed(settings, here) -> Settings:
    """A deployment whose listener and sweeper live."""
    here(settings)
    db = mongo.connect(settings, role="test")
    with db.client, redis_client.connect(settings) as client:
        presence = Presence(client, deployment_id(db))
        presence.beat(Beat(node="listener-1@h", listener="listener-1", pid=1))
        presence.note_sweep()
    return settings


# ----------------------------------------------------------------------------------------------------------------- all is well


def test_embedded_servers_are_well_but_for_what_trying_out_allows(deployed):
    findings = examine(deployed)
    assert problems(findings) == set(), list(findings)
    warnings = {finding.check for finding in findings if finding.severity == "warning"}
    assert warnings == {"mongo.members"}, list(findings)
    seen = by_check(findings)
    assert re.search(r"is Valkey \d+\.", seen["redis.version"].seen)
    assert "append-only" in seen["redis.persistence"].seen
    assert "evicts nothing" in seen["redis.eviction"].seen
    assert "replica set rs0" in seen["mongo.replica_set"].seen
    for check in (
        "mongo.clock",
        "redis.clock",
        "listeners.clock",
        "sweeper",
        "queues",
        "capacity",
        "deployment",
        "celery.visibility",
        "binding",
    ):
        assert seen[check].severity == "ok", seen[check]
    assert all(finding.remedy for finding in findings if finding.severity != "ok")


def test_the_command_on_an_empty_database(settings, here, capsys, monkeypatch):
    here(settings)
    monkeypatch.setenv("COLUMNS", "60")
    assert exit_code(["doctor", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in said["findings"] if finding["severity"] == "problem"} == {"listeners"}
    assert (said["ok"], said["problems"]) == (False, 1)
    with MongoClient(settings.mongo_url) as client:
        assert client.get_default_database()["meta"].find_one({"_id": "deployment"}) is None, "looking makes no deployment"

    assert exit_code(["doctor", "--brief"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-1].startswith("1 problem, ")
    assert not any(line.startswith("ok ") for line in lines)
    assert exit_code(["doctor", "--nonsense"]) == 2


def test_warnings_alone_are_no_problem(deployed, capsys):
    assert exit_code(["doctor"]) == 0
    assert "0 problems, 1 warning" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- servers away


def test_a_store_that_is_away_is_one_finding_and_the_others_are_checked(private_servers, private_settings, here):
    settings = here(dataclasses.replace(private_settings, redis_timeout_ms=300, mongo_timeout_ms=500))
    private_servers.valkey.kill()
    seen = by_check(examine(settings))
    assert "does not serve" in seen["redis"].seen
    assert "127.0.0.1" in seen["redis"].remedy
    assert seen["mongo.version"].severity == "ok"
    assert "redis.version" not in seen
    private_servers.mongo.kill()
    findings = examine(settings)
    assert problems(findings) == {"redis", "mongo"}
    assert by_check(findings)["policies"].severity == "ok"


# ---------------------------------------------------------------------------------------------------------- forbidden looks


@pytest.mark.parametrize(
    "allowed, hidden", [("-config", {"redis.access"}), ("-config -info -time", {"redis.access", "redis.info", "redis.clock"})]
)
def test_a_user_who_may_not_look_is_told_what_to_check_by_hand(private_servers, private_settings, here, allowed, hidden):
    with Redis.from_url(private_settings.redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", *allowed.split())
    with_user = {
        name: getattr(private_settings, name).replace("redis://", "redis://limited:secret@") for name in ("redis_url", "broker_url")
    }
    settings = here(dataclasses.replace(private_settings, **with_user))
    findings = examine(settings)
    not_seen = {finding.check: finding for finding in findings if "not allowed to look" in finding.seen}
    assert set(not_seen) == hidden
    assert all(finding.severity == "warning" and "by hand" in finding.remedy for finding in not_seen.values())
    assert problems(findings) == {"listeners"}
    assert not any("secret" in finding.seen + finding.remedy for finding in findings)


def test_a_password_is_seen(private_servers, private_settings, here):
    with Redis.from_url(private_settings.redis_url) as admin:
        admin.config_set("requirepass", "secret")
    settings = here(dataclasses.replace(private_settings, redis_timeout_ms=500))
    assert "does not serve" in by_check(examine(settings))["redis"].seen
    urls = {name: getattr(settings, name).replace("redis://", "redis://:secret@") for name in ("redis_url", "broker_url")}
    assert "asks for a password" in by_check(examine(here(dataclasses.replace(settings, **urls))))["redis.access"].seen


# ------------------------------------------------------------------------------------------------------- badly set up servers


def test_redis_that_evicts_and_keeps_nothing(private_servers, private_settings, here):
    settings = here(private_settings)
    with Redis.from_url(settings.redis_url) as admin:
        admin.config_set("maxmemory", 0)
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("appendonly", "no")
        assert by_check(examine(settings))["redis.eviction"].severity == "warning", "it has no limit"
        admin.config_set("maxmemory", 1_000_000)
        seen = by_check(examine(settings))
        assert (seen["redis.eviction"].severity, seen["redis.persistence"].severity) == ("problem", "warning")
        assert seen["redis.memory"].severity == "problem"
        admin.config_set("maxmemory", 0)


def test_a_standalone_mongodb(tmp_path, settings, here):
    alone = MongodServer(tmp_path / "alone", replica_set=None)
    with contextlib.closing(SimpleNamespace(close=alone.kill)):
        alone.start()
        settings = here(dataclasses.replace(settings, mongo_url=f"mongodb://127.0.0.1:{alone.port}/dedup"))
        seen = by_check(examine(settings))
        assert (seen["mongo.replica_set"].severity, "mongo.majority" in seen, "mongo" in seen) == ("warning", False, False)
        with_handlers = here(dataclasses.replace(settings, handlers=("workers.examples.departures",)))
        assert by_check(examine(with_handlers))["mongo.replica_set"].severity == "problem"


@pytest.mark.parametrize("limit, severity", [(5, "problem"), (9, "warning"), (10, "ok"), (60, "warning")])
def test_transaction_lifetimes(private_servers, private_settings, here, limit, severity):
    settings = here(private_settings)
    with MongoClient(settings.mongo_url) as client:
        client.admin.command({"setParameter": 1, "transactionLifetimeLimitSeconds": limit})
    assert by_check(examine(settings))["mongo.transaction_lifetime"].severity == severity


def test_a_replica_set_without_a_majority(start_servers, tmp_path, here):
    servers = start_servers(mongo_nodes=3)
    settings = here(dataclasses.replace(fresh_settings(servers, tmp_path), mongo_timeout_ms=2_000))
    assert by_check(examine(settings))["mongo.members"].severity == "ok"
    first, second = (node for node in servers.mongo.nodes if node is not servers.mongo.primary())
    first.kill()
    members = eventually(lambda: (f := by_check(examine(settings))["mongo.members"]).severity == "warning" and f, 20, "the set notices")
    assert f":{first.port}" in members.seen
    second.kill()
    assert problems(examine(settings)) & {"mongo", "mongo.majority"}


# ---------------------------------------------------------------------------------------------------------------- what flows


def test_queues_of_listeners_that_are_away(deployed):
    with Redis.from_url(deployed.broker_url) as broker:
        broker.lpush(queue_of("listener-9"), "x", "y")
        broker.lpush(queue_of("listener-1"), "x")
    db = mongo.connect(deployed, role="test")
    with db.client:
        db["listeners"].insert_one({"_id": "listener-9", "v": 1, "last_seen_at": utc_now().replace(year=2020)})
    [queue] = [finding for finding in examine(deployed) if finding.check == "queues"]
    assert queue.severity == "warning"
    assert re.search(r"2 deliveries wait in events\.listener-9 for a listener silent for \d+ s", queue.seen)
    assert "dedup listeners forget listener-9" in queue.remedy


def test_an_old_sweep_a_stuck_inbox_and_a_skewed_listener(deployed):
    db = mongo.connect(deployed, role="test")
    with db.client, redis_client.connect(deployed) as client:
        prefix = f"dedup:{{{deployment_id(db)}}}:="
        client.set(f"{prefix}sweeper", int(client.get(f"{prefix}sweeper")) - 100_000)
        beat = json.loads(client.hget(f"{prefix}nodes", "listener-1@h#1"))
        client.hset(f"{prefix}nodes", "listener-1@h#1", json.dumps(beat | {"clock_ms": beat["at_ms"] - 40_000}))
        Inbox(db).write([inbox_document("b1", [entry("k")], door="http", accepted_at=utc_now().replace(year=2020))])
    seen = by_check(examine(deployed))
    assert re.search(r"\b1\d\d s ago", seen["sweeper"].seen)
    assert "40.000 s behind Redis'" in seen["listeners.clock"].seen
    assert {"sweeper", "listeners.clock", "capacity"} <= problems(examine(deployed))


def test_listeners_with_different_handlers(deployed):
    db = mongo.connect(deployed, role="test")
    both = ("order.paid shop.mark_paid", "order.* shop.count")
    with db.client, redis_client.connect(deployed) as client:
        presence = Presence(client, deployment_id(db))
        for number, handlers in ((2, both), (3, both)):
            presence.beat(Beat(node=f"listener-{number}@h", listener=f"listener-{number}", pid=1, handlers=handlers))
        assert by_check(examine(deployed))["listeners.handlers"].seen == "the same in all processes: 2"
        presence.beat(Beat(node="listener-4@h", listener="listener-4", pid=1, handlers=()))
    found = by_check(examine(deployed))["listeners.handlers"]
    assert found.severity == "problem"
    assert "listener-4@h has not order.* shop.count, order.paid shop.mark_paid" in found.seen


def test_processes_that_work_for_another_database(deployed):
    elsewhere = dataclasses.replace(deployed, mongo_url=deployed.mongo_url.replace("/test_", "/other_test_"))
    found = by_check(examine(elsewhere))["deployment"]
    assert found.severity == "problem"
    assert "listeners live that work for" in found.seen
    with MongoClient(elsewhere.mongo_url) as client:
        client.drop_database(client.get_default_database().name)


# ------------------------------------------------------------------------------------------------------------- without servers


def local(**overrides: Any) -> dict[str, Any]:
    findings = Findings()
    urls = {"redis_url": "redis://127.0.0.1/0", "broker_url": "redis://127.0.0.1/1", "mongo_url": "mongodb://127.0.0.1/d"}
    examine_local(findings, Settings(**(urls | overrides)))
    return by_check(findings)


def test_bindings_and_time_outs():
    open_to_all = local(host="0.0.0.0")
    assert {open_to_all[check].severity for check in ("binding.broadcaster", "binding.flower")} == {"problem"}
    secret = local(host="0.0.0.0", token="x" * 32, flower_auth="u:p")
    assert (secret["binding.broadcaster"].severity, secret["binding.flower"].severity) == ("ok", "warning")
    assert local(visibility_timeout_s=15)["celery.visibility"].severity == "warning"
    assert local(visibility_timeout_s=300)["celery.visibility"].severity == "ok"
    assert local()["celery.visibility"].seen.startswith("none: ")


def test_a_variable_that_is_no_setting(monkeypatch):
    monkeypatch.setenv("DEDUP_LEESE_MS", "5")
    found = local()["settings"]
    assert (found.severity, found.seen) == ("warning", "DEDUP_LEESE_MS is no setting")
    assert "DEDUP_LEASE_MS" in found.remedy


def test_files_that_do_not_load(tmp_path, monkeypatch):
    (tmp_path / "policies.toml").write_text("[types.x]\nnonsense = 1\n")
    (tmp_path / "broken_handlers.py").write_text("print('\\x1b[2Jhello')\nimport nothing_of_this_name\n")
    (tmp_path / "loud_handlers.py").write_text("from workers import handler\nprint('hello')\n@handler('a')\ndef h(event, context): ...\n")
    monkeypatch.chdir(tmp_path)
    found = local(policies=tmp_path / "policies.toml", handlers=("broken_handlers",))
    assert (found["policies"].severity, found["handlers"].severity) == ("problem", "problem")
    assert "nothing_of_this_name" in found["handlers"].seen
    assert "handlers: 1" in local(handlers=("loud_handlers",))["handlers"].seen


@pytest.mark.parametrize(
    "host, yes", [("127.0.0.1", True), ("localhost", True), ("::1", True), (None, True), ("10.0.0.1", False), ("redis", False)]
)
def test_loopback(host, yes):
    assert is_loopback(host) is yes


@pytest.mark.parametrize("seconds, severity", [(0.2, "ok"), (-2, "warning"), (31, "problem"), (1.2, "ok")])
def test_skew(seconds, severity):
    findings = Findings()
    skew(findings, "c", "a clock", seconds, uncertain_s=0.5)
    assert [finding.severity for finding in findings] == [severity]


def test_no_servers_at_all(tmp_path, monkeypatch):
    env = {"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", "from app.cli.main import run; run()", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("dedup: no servers: start them")
