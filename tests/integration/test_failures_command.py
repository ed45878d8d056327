"""``dedup failures``: filters, many at once, what would be done."""

import json
from datetime import timedelta

import pytest

from app.cli.main import exit_code
from app.stores import mongo
from app.stores.failures import Failures, Origin, Problem
from app.stores.records import utc_now
from tests.support.pipelines import entry
from tests.support.servers import use_settings


@pytest.fixture
def db(settings, monkeypatch, tmp_path):
    """Five failures: three dead for two reasons and of two types, one retrying, one conflict; ``o1`` and ``o2`` are old."""
    use_settings(monkeypatch, settings)
    monkeypatch.chdir(tmp_path)
    made = mongo.connect(settings, role="test")
    failures, origin = Failures(made), Origin(batch="b", accepted_at=utc_now(), listener="listener-1", token=1)
    error = {"type": "E", "message": "m", "traceback": "Traceback of it"}
    for key, kind, reason in (
        ("o1", "order.paid", "E: no funds (x)"),
        ("o2", "order.paid", "E: timed out"),
        ("p1", "order.sent", "E: no funds"),
    ):
        failures.record_attempt(entry(key, type=kind), origin, Problem(reason, error), delay_ms=None, ended_start=False)
    failures.record_attempt(entry("p2", type="order.sent"), origin, Problem("E: later"), delay_ms=3_600_000, ended_start=False)
    failures.record_final(
        [(entry("c1", "d2", type="order.paid"), origin, "conflict", {"reason": "same key, other content", "other_digest": "d1"})]
    )
    made["failures"].update_many({"key": {"$in": ["o1", "o2"]}}, {"$set": {"updated_at": utc_now() - timedelta(hours=3)}})
    yield made
    made.client.close()


def keys(text: str) -> list[str]:
    return sorted(json.loads(line)["key"] for line in text.splitlines())


@pytest.mark.parametrize(
    "filters, selected",
    [
        ([], ["c1", "o1", "o2", "p1", "p2"]),
        (["--state", "dead"], ["o1", "o2", "p1"]),
        (["--type", "order.sent"], ["p1", "p2"]),
        (["--reason", "NO FUNDS"], ["o1", "p1"]),
        (["--reason", "(x)"], ["o1"]),
        (["--key-prefix", "o"], ["o1", "o2"]),
        (["--key-prefix", "."], []),
        (["--older-than", "2h"], ["o1", "o2"]),
        (["--newer-than", "90m"], ["c1", "p1", "p2"]),
        (["--older-than", "2h", "--newer-than", "1d", "--reason", "timed"], ["o2"]),
    ],
)
def test_filters_hold_for_every_command(db, capsys, filters, selected):
    assert exit_code(["failures", "list", "--json", *filters]) == 0
    assert keys(capsys.readouterr().out) == selected
    assert exit_code(["failures", "export", *filters]) == 0
    assert keys(capsys.readouterr().out) == selected
    assert exit_code(["failures", "export", "--dry-run", *filters]) == 0
    assert capsys.readouterr().out.startswith(f"would write {len(selected)} failure")
    assert exit_code(["failures", "show", "--all", "--json", *filters]) == (0 if selected else 1)
    assert keys(capsys.readouterr().out) == selected
    if filters:
        assert exit_code(["failures", "discard", "--all", "--dry-run", "--json", *filters]) == (0 if selected else 1)
        assert keys(capsys.readouterr().out) == selected
    assert db["failures"].count_documents({}) == 5, "looking changes nothing"


def test_many_are_decided_and_what_is_refused_does_not_stop_the_others(db, capsys):
    db["events"].insert_one(
        {"_id": "o1", "v": 1, "digest": "other", "type": "order.paid", "listener": "listener-2", "claim_id": "c", "body": {}}
    )
    assert exit_code(["failures", "retry", "--all", "--state", "dead"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("will be tried again") == 2
    assert "o1" in captured.err
    assert "2 decided, 1 refused" in captured.err
    assert {d["key"] for d in db["failures"].find({"state": "retrying"})} == {"o2", "p1", "p2"}
    [noted] = db["failures"].find_one({"key": "o2"})["decisions"]
    assert (noted["what"], "@" in noted["by"]) == ("retry", True)


def test_at_most_so_many_the_oldest_first(db, capsys):
    assert exit_code(["failures", "discard", "--all", "--state", "dead", "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == "o1"
    assert db["events"].find_one({"_id": "o1"})["decisions"][0]["what"] == "discard"


def test_decisions_about_conflicts_select_conflicts_alone(db, capsys):
    assert exit_code(["failures", "keep-old", "--all", "--type", "order.paid", "--dry-run"]) == 0
    assert capsys.readouterr().out == "c1 d2: would keep-old (conflict)\n"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["retry"], "name a KEY"),
        (["retry", "--all"], "--all needs a filter"),
        (["retry", "k", "--all", "--state", "dead"], "name a KEY"),
        (["list", "--state", "gone"], "--state is one of"),
        (["list", "--older-than", "soon"], "--older-than is a number"),
        (["list", "--older-than", "99999999999d"], "--older-than is a number"),
        (["show"], "name a KEY"),
    ],
)
def test_wrong_usage(db, capsys, monkeypatch, arguments, said):
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_code(["failures", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_of_one_key(db, capsys):
    assert exit_code(["failures", "show", "o1"]) == 0
    assert "Traceback of it" in capsys.readouterr().out
    for command in (["show", "none"], ["retry", "none"], ["discard", "--all", "--reason", "none"]):
        assert exit_code(["failures", *command]) == 1
        assert capsys.readouterr().err.startswith("dedup: no ")
