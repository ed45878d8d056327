"""The story of one event as real listeners leave it: every step, in order, the same on the command line and over HTTP."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from app.cli.main import exit_code
from app.decisions import Decisions
from app.reprocessing import reprocess
from app.stores import mongo
from app.story import story_of
from app.telling import steps_of
from broadcaster.answers import encode
from broadcaster.lookup import find_event
from tests.support.pipelines import Plant, count_effect, entry, plant_on
from tests.support.servers import use_settings
from workers.pipeline import process

K = "k~1"


@pytest.fixture
def plant(settings, redis_client) -> Iterator[Plant]:
    db = mongo.connect(settings, role="test")
    db["meta"].insert_one({"_id": "deployment", "id": Plant.DEPLOYMENT})
    with db.client, plant_on(settings, db, redis_client) as made:
        yield made


def texts(plant: Plant, key: str = K) -> list[str]:
    story = story_of(plant.db, plant.settings, key)
    assert story is not None
    return [step["text"] for step in story["steps"]]


def in_order(found: list[str], *parts: str) -> None:
    """Each part is told, after the one before it."""
    at = 0
    for part in parts:
        place = next((n for n in range(at, len(found)) if part in found[n]), None)
        assert place is not None, f"{part!r} is not told behind number {at}: {found}"
        at = place + 1


def test_everything_that_happened_to_one_event(plant, monkeypatch, tmp_path, capsys):
    # Given an event that fails, is retried by an operator, taken over, processed, sent again with other content, and processed again
    raising = [True]

    def handle(event: Any, context: Any) -> dict[str, int]:
        if raising[0]:
            raise ValueError("no funds \x1b[2J<b>")
        count_effect(event, context)
        return {"total": 3}

    first, second = plant.listener("listener-1", handle), plant.listener("listener-2", handle)
    process(first, plant.accept(entry(K)))
    in_order(
        texts(plant),
        "accepted (test) in batch",
        "first failed, digest d1",
        "retrying after 1 attempt (listener-1): ValueError: no funds",
        "due",
    )

    Decisions.on(plant.db, by="ann@host").retry(K, "d1")
    plant.claims.claim([K], ["d1"], claim_id="dead", owner="listener-9", lease_ms=60_000)
    assert "claimed by listener-9" in texts(plant)[-1] + texts(plant)[-2] + texts(plant)[-3]
    plant.expire_leases()
    raising[0] = False
    assert process(second, plant.retry(entry(K))).won == 1
    process(first, plant.accept(entry(K, "d2")))
    Decisions.on(plant.db, by="bob@host").keep_old(K, "d2")
    reprocess(plant.db, K, by="cid@host", reason="wrong handler")
    in_order(
        texts(plant), "processed by listener-2", "to be processed again, by cid@host: wrong handler", "retrying after no attempt (cid@host)"
    )
    assert story_of(plant.db, plant.settings, K)["state"] == "retrying"
    plant.claims.forget_done([K], ["d1", "d2"])
    plant.redis.flushdb()
    assert process(first, plant.retry(entry(K))).won == 1

    # Then all of it is told, in order
    told = texts(plant)
    in_order(
        told,
        "accepted (test) in batch",
        "first failed",
        "failed after",
        "claimed by listener-2, taken over from listener-9",
        "processed by listener-2",
        'its handler returned {"total": 3}',
        "bob@host decided: keep-old about digest d2",
        "other content rejected: digest d2",
        "to be processed again, by cid@host: wrong handler",
        "claimed by listener-1",
        "processed by listener-1",
        'its handler returned {"total": 3}',
    )
    assert "ann@host decided: retry about digest d1" in told
    assert sum(text.startswith("processed by") for text in told) == 2

    # And the command line says the same, with the traceback, harmless to a terminal
    use_settings(monkeypatch, plant.settings)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert exit_code(["inspect", K]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "Traceback (most recent call last)" in said
    in_order(said.splitlines(), *(text.splitlines()[0].partition("\x1b")[0] for text in told))
    assert exit_code(["inspect", K, "--json"]) == 0
    assert [step["text"] for step in json.loads(capsys.readouterr().out)["steps"]] == told

    # And so does HTTP
    over_http = json.loads(encode(find_event(plant.db, plant.settings, K)))
    assert over_http["state"] == "processed"
    steps = [step["text"] for step in over_http["steps"]]
    assert steps == [text for text in told if not text.startswith("Redis remembers")]
    assert over_http["event"]["reprocessed"][0]["former"]["listener"] == "listener-2"


def test_how_often_and_when_a_batch_was_sent(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K), forwards=3))
    ledger = plant.db["events"].find_one({"_id": K})
    assert (ledger["door"], ledger["forwards"]) == ("test", 3)
    in_order(
        texts(plant),
        "accepted (test) in batch",
        "forwarded to listeners, 3 times in all",
        "claimed by listener-1",
        "processed by listener-1",
    )


def test_nothing_of_a_story_is_asked_for_on_the_way_of_an_event(plant):
    """Reads that a delivery costs: its batch, the failures, the ledger, once each (and now and then the paused types)."""
    one_slice = replace(plant.settings, slice_target_ms=5_000)  # of all five, even where the first event takes a second
    runtime = plant.listener("listener-1", count_effect, settings=one_slice)
    process(runtime, plant.accept(entry("warm")))
    plant.db.command("profile", 2)
    process(runtime, plant.accept(*(entry(f"e{n}") for n in range(5))))
    plant.db.command("profile", 0)
    reads = [d["ns"].partition(".")[2] for d in plant.db["system.profile"].find({"op": "query", "ns": {"$not": {"$regex": "system"}}})]
    assert sorted(set(reads) - {"meta"}) == ["events", "failures", "inbox"], reads
    assert len([name for name in reads if name != "meta"]) == 3, reads


def test_what_older_versions_left_is_told_too():
    """Documents without door, token's instant, decisions."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    old = {"digest": "d", "batch": None, "accepted_at": at, "processed_at": at, "listener": "l", "claim_id": "c", "token": 7, "attempt": 1}
    assert [step["text"] for step in steps_of(inbox=[], failures=[], ledger=old, claim=None)] == [
        "accepted, digest d",
        "processed by l, token 7",
    ]
    assert steps_of(inbox=[], failures=[], ledger=old | {"discarded": True}, claim={"error": "away"})[-1]["text"] == "claim not known: away"
