"""The commands that read, on real stores."""

import json
import threading
from pathlib import Path

import pytest

from app import redis_client
from app.claims.store import ClaimStore
from app.cli.main import exit_code
from app.events.event import Event
from app.presence import Beat, Presence, remember_listener
from app.settings import Settings
from app.stores import mongo
from app.stores.failures import Failures, Origin, Problem
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.meta import deployment_id
from app.stores.records import entry_of, inbox_document, utc_now
from tests.support.servers import use_settings

EVENT = Event(key="id~s~1", digest="d1", type="order.paid", source="s", id="1", data={"note": "\x1b[2J"})


@pytest.fixture
def on_stores(monkeypatch, tmp_path):
    """Makes a database on servers, and lets the commands find these."""
    opened = []

    def open_(settings: Settings):
        use_settings(monkeypatch, settings)
        monkeypatch.chdir(tmp_path)
        opened.append(mongo.connect(settings, role="test"))
        return opened[-1]

    yield open_
    for db in opened:
        db.client.close()


@pytest.fixture
def db(settings, on_stores):
    return on_stores(settings)


def process(db, event: Event, **more) -> None:
    now = utc_now()
    Ledger(db).insert(
        [
            {"_id": event.key, "v": 1, "digest": event.digest, "type": event.type, "body": entry_of(event).body}
            | {"listener": "listener-2", "claim_id": "c", "token": 7, "attempt": 2, "batch": "b1", "accepted_at": now, "processed_at": now}
            | more
        ]
    )


def beat(settings: Settings, db, **fields) -> None:
    with redis_client.connect(settings) as client:
        Presence(client, deployment_id(db)).beat(Beat(**({"node": "listener-1@h", "listener": "listener-1", "pid": 1} | fields)))


# ------------------------------------------------------------------------------------------------------------------- status


def test_status_of_an_empty_deployment(db, capsys):
    assert exit_code(["status"]) == 0
    said = capsys.readouterr().out
    assert "listeners  none" in said
    assert "inbox      0 batches waiting" in said
    assert "sweeper    has not succeeded yet" in said


def test_status_shows_listeners_alive_and_silent(db, settings, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    beat(settings, db, won=1_200, skipped=2_400, failed=3)
    remember_listener(db, "listener-2")
    process(db, EVENT)

    assert exit_code(["status", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    first, second = facts["listeners"]
    assert (first["name"], first["alive"], first["won"], first["skipped"], first["failed"]) == ("listener-1", True, 1_200, 2_400, 3)
    assert (second["name"], second["alive"], second["nodes"]) == ("listener-2", False, [])
    assert facts["ledger"] == {"events": 1}

    assert exit_code(["status"]) == 0
    said = capsys.readouterr().out
    assert "1,200" in said
    assert "SILENT" in said
    assert max(len(line) for line in said.splitlines()) <= 60


def test_an_ended_process_is_not_counted_beside_its_successor(db, settings, capsys, monkeypatch):
    monkeypatch.setenv("DEDUP_LISTENER_RETIRE_S", "86400")
    beat(settings, db, pid=1, won=5)
    beat(settings, db, pid=2, won=1)
    exit_code(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["listeners"][0]["won"] == 6  # both live: they share the name

    with redis_client.connect(settings) as client:
        key = f"dedup:{{{deployment_id(db)}}}:=nodes"
        old = json.loads(client.hget(key, "listener-1@h#1"))
        client.hset(key, "listener-1@h#1", json.dumps(old | {"at_ms": old["at_ms"] - 7_200_000}))
    exit_code(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["listeners"][0]["won"] == 1


def test_status_and_inspect_with_redis_away(private_servers, private_settings, on_stores, capsys, monkeypatch):
    db = on_stores(private_settings)
    process(db, EVENT)
    monkeypatch.setenv("DEDUP_REDIS_TIMEOUT_MS", "200")
    private_servers.valkey.kill()

    assert exit_code(["status"]) == 1
    said = capsys.readouterr().out
    assert "Redis      Redis did not serve" in said
    assert "ledger     1 event processed" in said
    assert "sweeper    not known" in said
    assert exit_code(["inspect", EVENT.key]) == 0
    assert "claim not known: Redis did not serve" in capsys.readouterr().out


def test_everything_with_mongodb_away(private_servers, private_settings, on_stores, capsys, monkeypatch):
    on_stores(private_settings)
    monkeypatch.setenv("DEDUP_MONGO_TIMEOUT_MS", "300")
    private_servers.mongo.kill()

    assert exit_code(["status", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mongo"]["ok"], facts["redis"]["ok"]) == (False, True)
    assert "MongoDB did not answer" in facts["ledger"]["error"]
    for command in (["audit"], ["inspect", "k"], ["reprocess", "k", "--reason", "x"], ["failures", "list"], ["failures", "retry", "k"]):
        assert exit_code(command) == 1
        captured = capsys.readouterr()
        assert not captured.out
        assert captured.err.startswith("dedup: MongoDB did not answer")
        assert captured.err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------------ inspect


def test_an_unknown_key(db, capsys):
    assert exit_code(["inspect", "id~s~none"]) == 1
    assert "nothing is known of id~s~none" in capsys.readouterr().out
    assert exit_code(["inspect", "id~s~none", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"key": "id~s~none", "state": "unknown"}


def test_a_waiting_and_claimed_event(db, settings, capsys):
    Inbox(db).write([inbox_document("b1", [entry_of(EVENT)], door="http", accepted_at=utc_now())])
    Inbox(db).mark_forwarded([("b1", 1)])
    with redis_client.connect(settings) as client:
        store = ClaimStore.of(settings, client, deployment_id(db))
        store.claim([EVENT.key], [EVENT.digest], claim_id="c", owner="listener-3", lease_ms=10_000)
    assert exit_code(["inspect", f"{EVENT.key}/listener-1"]) == 0
    said = capsys.readouterr().out
    assert [part in said for part in ("accepted (http) in batch b1", "forwarded", "claimed by listener-3", "state  waiting")] == [True] * 4
    assert said.index("accepted") < said.index("forwarded") < said.index("claimed")


def test_a_processed_event_after_a_failure(db, capsys):
    origin = Origin(batch="b1", accepted_at=utc_now(), listener="listener-1", token=1)
    error = {"type": "ValueError", "message": "no\x1b[2J", "traceback": "…"}
    Failures(db).record_attempt(entry_of(EVENT), origin, Problem("its handler raised", error), delay_ms=50, ended_start=False)
    process(db, EVENT, result={"total": 3})
    assert exit_code(["inspect", EVENT.key]) == 0
    said = capsys.readouterr().out
    for part in ("retrying after 1 attempt ", "ValueError: no", "processed by listener-2, in attempt 2, token 7", 'returned {"total": 3}'):
        assert part in said
    assert "state  processed" in said
    assert "\x1b" not in said


def test_the_story_as_json_has_everything(db, capsys):
    process(db, EVENT)
    assert exit_code(["inspect", EVENT.key, "--json"]) == 0
    printed = capsys.readouterr().out
    story = json.loads(printed)
    assert story["state"] == "processed"
    assert story["ledger"]["body"]["data"] == {"note": "\x1b[2J"}
    assert "\x1b" not in printed


# -------------------------------------------------------------------------------------------------------------------- audit


@pytest.mark.parametrize("text", ["id~s~1\nid~s~2\n", '{"key": "id~s~1"}\n{"keys": ["id~s~2"], "batch": "b"}\n', '["id~s~1", "id~s~2"]'])
def test_expected_keys_in_each_form(db, capsys, text):
    process(db, EVENT)
    Path("keys").write_text(text)
    assert exit_code(["audit", "--expect", "keys", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("processed", "lost", "twice", "unfinished", "failures", "ok", "expected")} == {
        "processed": 1, "lost": 1, "twice": 0, "unfinished": 0, "failures": 0, "ok": False, "expected": 2,
    }  # fmt: skip
    assert exit_code(["audit", "--expect", "keys"]) == 1
    said = capsys.readouterr().out
    assert "id~s~2" in said
    assert "the balance does NOT hold" in said


def test_a_balance_that_holds(db, capsys):
    process(db, EVENT)
    assert exit_code(["audit"]) == 0
    assert "the balance holds" in capsys.readouterr().out


@pytest.mark.parametrize("text, said", [("{bad\n", "line 1: neither a key nor JSON"), ('\n{"id": 1}\n', 'line 2: no "key"')])
def test_a_file_of_keys_that_is_none(db, capsys, text, said):
    Path("keys").write_text(text)
    assert exit_code(["audit", "--expect", "keys"]) == 1
    assert said in capsys.readouterr().err


def test_waiting_covers_what_is_to_be_retried(db, capsys):
    origin = Origin(batch="b1", accepted_at=utc_now(), listener="listener-1", token=1)
    Failures(db).record_attempt(entry_of(EVENT), origin, Problem("its handler raised"), delay_ms=50, ended_start=False)
    retried = threading.Timer(0.3, lambda: (process(db, EVENT), Failures(db).remove([(EVENT.key, EVENT.digest)])))
    retried.start()
    assert exit_code(["audit", "--wait", "30", "--json"]) == 0
    retried.join()
    found = json.loads(capsys.readouterr().out)
    assert (found["processed"], found["failures"]) == (1, 0)


def test_waiting_for_what_is_on_its_way_ends(db, capsys):
    Inbox(db).write([inbox_document("b1", [entry_of(EVENT)], door="http", accepted_at=utc_now())])
    assert exit_code(["audit", "--wait", "0.1"]) == 1
    assert "on their way" in capsys.readouterr().out
