"""A tombstone is no commit: it refuses what an operator discarded, and kills no other content of its key (G5, G6)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.cli.main import exit_code
from app.decisions import DecisionRefused, Decisions
from app.events.policies import Policies
from app.reprocessing import ReprocessingRefused, reprocess
from app.stores.failures import Failures, Origin
from app.stores.records import utc_now
from app.story import story_of
from tests.support.pipelines import TYPE, Plant, count_effect, entry, patient_plant
from tests.support.servers import use_settings
from workers.handlers import PermanentFailure
from workers.pipeline import process
from workers.runtime import Runtime

WAYS = pytest.mark.parametrize("kind", ["stored", "sync", "async"])
"""The three ways to a commit: an insert, a transaction, an ``async def`` handler's."""


async def count_async(event: Any, context: Any) -> None:
    await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


def handlers(kind: str) -> tuple[Callable[..., Any], ...]:
    return {"stored": (), "sync": (count_effect,), "async": (count_async,)}[kind]


def fail(plant: Plant, digest: str, error: Exception) -> None:
    """A listener whose handler raises has this content."""

    def handler(event: Any, context: Any) -> None:
        raise error

    process(plant.listener("failing", handler), plant.accept(entry("a", digest)))


def ledger(plant: Plant) -> dict[str, Any]:
    found = plant.db["events"].find_one({"_id": "a"})
    assert found is not None
    return found


def discard_once_it_has_looked(plant: Plant, listener: Runtime, digest: str) -> None:
    """The operator's decision about a content comes between a listener's look into the ledger and its commit; once."""
    look = listener.ledger.look

    def look_then_discard(keys: Any) -> Any:
        listener.ledger.look = look  # type: ignore[method-assign] - the hook is for one call
        found = look(keys)
        plant.elsewhere(lambda: Decisions.on(plant.db).discard("a", digest))
        return found

    listener.ledger.look = look_then_discard  # type: ignore[method-assign] - see above


@WAYS
def test_g5_discarding_a_conflict_leaves_the_content_that_waits_for_its_retry(plant, kind):
    """G5, G6: the operator gave up d2, not the key."""
    fail(plant, "d1", ValueError("a hiccup"))
    fail(plant, "d2", ValueError("never asked"))
    assert plant.failures() == {("a", "d1"): "retrying", ("a", "d2"): "conflict"}

    assert Decisions.on(plant.db, by="ann").discard("a", "d2") == "discarded"
    assert story_of(plant.db, plant.settings, "a")["state"] == "retrying"
    listener = plant.listener("listener-1", *handlers(kind))
    assert process(listener, plant.retry(entry("a", "d1"))).won == 1

    assert (plant.ledger(), plant.failures()) == ({"a": "d1"}, {})
    assert plant.effects() == ({"a": 1} if kind != "stored" else {})
    kept = ledger(plant)
    assert (kept["rejected"], kept["listener"], kept["body"]["data"]) == (["d2"], "listener-1", {"digest": "d1"})
    assert "discarded" not in kept
    assert [(d["by"], d["what"], d["digest"]) for d in kept["decisions"]] == [("ann", "discard", "d2")]
    # and what was discarded stays so, with its mark in Redis or without
    for _ in range(2):
        assert process(listener, plant.accept(entry("a", "d2"))).skipped == 1
        plant.redis.flushdb()
    assert (plant.failures(), plant.inbox.size()) == ({}, 0)


@WAYS
def test_after_discarding_the_dead_content_the_corrected_one_is_retried(plant, kind):
    """G5, G6: handlers run for it, and it can be processed again later."""
    fail(plant, "d1", PermanentFailure("a bad payload"))
    fail(plant, "d2", ValueError("never asked"))
    decisions = Decisions.on(plant.db)
    decisions.discard("a", "d1")
    for decide in (decisions.accept_new, decisions.keep_old):
        with pytest.raises(DecisionRefused, match="nothing is committed"):
            decide("a", "d2")
    with pytest.raises(ReprocessingRefused, match="was discarded"):
        reprocess(plant.db, "a", by="x", reason="y")

    assert decisions.retry("a", "d2") == "will be tried again"
    listener = plant.listener("listener-1", *handlers(kind))
    assert process(listener, plant.retry(entry("a", "d2"))).won == 1

    assert (plant.ledger(), plant.failures(), ledger(plant)["rejected"]) == ({"a": "d2"}, {}, ["d1"])
    plant.redis.flushdb()
    assert process(listener, plant.accept(entry("a", "d1"))).skipped == 1
    reprocess(plant.db, "a", by="x", reason="y")
    plant.redis.flushdb()
    assert process(listener, plant.retry(entry("a", "d2"))).won == 1
    assert plant.effects() == ({"a": 2} if kind != "stored" else {})
    assert (ledger(plant)["recommits"], ledger(plant)["rejected"]) == (1, ["d1"])


def test_g6_a_copy_of_what_was_discarded_leaves_no_mark_that_keeps_other_content_out(plant):
    fail(plant, "d1", ValueError("a hiccup"))
    fail(plant, "d2", ValueError("never asked"))
    Decisions.on(plant.db).discard("a", "d2")
    listener = plant.listener("listener-1", count_effect)
    assert process(listener, plant.accept(entry("a", "d2"))).skipped == 1
    assert plant.claim_states() == {}
    plant.claims.complete(["a"], ["d2"], claim_id="of-another-version", owner="listener-9")  # a mark all the same

    message = plant.retry(entry("a", "d1"))
    process(listener, message)
    assert plant.failures() == {("a", "d1"): "retrying"}
    assert process(listener, message).won == 1
    assert plant.effects() == {"a": 1}


@pytest.mark.parametrize("policy", ["quarantine", "ignore"])
def test_g6_other_content_that_comes_anew_is_a_conflict(make_settings, tmp_path, policy):
    """G6: nobody decided about it; there is no commit either in whose favour it could be ignored."""
    (tmp_path / "p.toml").write_text(f'[types."{TYPE}"]\non_conflict = "{policy}"\n')
    with patient_plant(make_settings, {"policies": tmp_path / "p.toml"}) as plant:
        fail(plant, "d1", PermanentFailure("no"))
        Decisions.on(plant.db).discard("a", "d1")
        listener = plant.listener("listener-1", count_effect)

        assert str(process(listener, plant.accept(entry("a", "d2")))) == "failed 1 (conflict)"
        assert (plant.failures(), plant.failure("a", "d2")["other_digest"]) == ({("a", "d2"): "conflict"}, "d1")
        Decisions.on(plant.db).retry("a", "d2")
        assert process(listener, plant.retry(entry("a", "d2"))).won == 1


def test_all_contents_of_a_key_can_be_discarded_and_none_comes_back(plant):
    """G6: in either order, and each more than once."""
    fail(plant, "d1", PermanentFailure("no"))
    fail(plant, "d2", PermanentFailure("no"))
    left_over = plant.failure("a", "d2")
    decisions = Decisions.on(plant.db)
    for digest in ("d2", "d1"):
        assert decisions.discard("a", digest) == "discarded"
    plant.db["failures"].insert_one(left_over)  # its process died before it was removed
    assert decisions.discard("a", "d2") == "discarded"
    plant.db["failures"].insert_one(left_over)
    assert decisions.retry("a", "d2") == "it has been discarded meanwhile"

    assert (ledger(plant)["digest"], ledger(plant)["rejected"], ledger(plant)["discarded"]) == ("d2", ["d1"], True)
    listener = plant.listener("listener-1", count_effect)
    for digest in ("d1", "d2"):
        assert process(listener, plant.accept(entry("a", digest))).skipped == 1
    assert (plant.failures(), plant.effects(), plant.inbox.size()) == ({}, {}, 0)


@WAYS
@pytest.mark.parametrize("first", [True, False], ids=["no tombstone yet", "in a tombstone's place"])
def test_g3_what_is_discarded_while_it_is_processed_is_not_committed(plant, kind, first):
    """G3: the decision came before the commit."""
    fail(plant, "d1", ValueError("a hiccup"))
    if not first:
        fail(plant, "d2", ValueError("never asked"))
        Decisions.on(plant.db).discard("a", "d2")
    listener = plant.listener("listener-1", *handlers(kind))
    discard_once_it_has_looked(plant, listener, "d1")
    assert process(listener, plant.retry(entry("a", "d1"))).won == 0

    assert (plant.effects(), plant.failures()) == ({}, {})
    assert ledger(plant)["discarded"] is True


@WAYS
def test_g5_what_is_processed_while_the_other_is_discarded_is_given_back_and_comes_again(plant, kind):
    """G5: the tombstone lies in the way of its insert; its next try takes the place."""
    fail(plant, "d1", ValueError("a hiccup"))
    fail(plant, "d2", ValueError("never asked"))
    listener = plant.listener("listener-1", *handlers(kind))
    discard_once_it_has_looked(plant, listener, "d2")
    process(listener, plant.retry(entry("a", "d1")))
    assert plant.failures() == {("a", "d1"): "retrying"}
    assert process(listener, plant.retry(entry("a", "d1"))).won == 1
    assert (plant.ledger(), plant.effects()) == ({"a": "d1"}, {"a": 1} if kind != "stored" else {})


def test_a_payload_with_odd_names_is_committed_as_it_is(plant):
    """Names and values that MongoDB's expressions would read are data."""
    data = {"$set": "$digest", "a.b": {"$literal": ["$$ROOT"]}, "empty": {}}
    odd = entry("a", "d1", data=data)

    def failing(event: Any, context: Any) -> None:
        raise ValueError("a hiccup")

    process(plant.listener("failing", failing), plant.accept(odd))
    fail(plant, "d2", ValueError("never asked"))
    Decisions.on(plant.db).discard("a", "d2")
    assert process(plant.listener("listener-1", lambda event, context: {"$x": "$y"}), plant.retry(odd)).won == 1
    assert (ledger(plant)["body"]["data"], ledger(plant)["result"]) == (data, {"$x": "$y"})


# ----------------------------------------------------------------------------------------------------------- their retention


RETENTION = timedelta(days=2)


@pytest.fixture
def limited(plant, tmp_path) -> Decisions:
    """Decisions where two types, ``short`` and ``shorter``, are not kept for ever."""
    (tmp_path / "kept.toml").write_text('[types."short"]\nretention_s = 172800\n[types."shorter"]\nretention_s = 90000\n')
    return Decisions.on(plant.db, policies=Policies.load(tmp_path / "kept.toml", plant.settings))


def fail_as(plant: Plant, *kinds: str) -> None:
    """A failure of the key ``a`` for each type: contents ``d1``, ``d2`` …"""
    origin = Origin(batch=None, accepted_at=utc_now() - 2 * RETENTION, listener="l", token=1)
    events = [entry("a", f"d{number}", type=kind) for number, kind in enumerate(kinds, 1)]
    Failures(plant.db).record_final([(event, origin, "stale", {"reason": "r"}) for event in events])


def test_g7_a_tombstone_is_kept_for_its_type_s_retention_from_the_decision_on(plant, limited):
    """G7; and G6: that of an event which is older than its retention must not be gone at once."""
    fail_as(plant, "short")
    before = utc_now() - timedelta(seconds=1)
    limited.discard("a", "d1")
    assert before + RETENTION < ledger(plant)["expires_at"] < utc_now() + RETENTION


@pytest.mark.parametrize(
    "kinds, kept_s",
    [(["shorter", "short"], 172_800), (["short", "shorter"], 172_800), (["short", "other"], None), (["other", "short"], None)],
)
def test_g6_it_is_kept_for_as_long_as_any_of_what_it_refuses(plant, limited, kinds, kept_s):
    """G6"""
    fail_as(plant, *kinds)
    for number in (1, 2):
        limited.discard("a", f"d{number}")
    if kept_s is None:
        assert "expires_at" not in ledger(plant)
    else:
        assert ledger(plant)["expires_at"] > utc_now() + timedelta(seconds=kept_s - 60)


def test_what_takes_its_place_has_a_retention_of_its_own(plant, limited):
    fail_as(plant, "short", TYPE)
    limited.discard("a", "d1")
    limited.retry("a", "d2")
    assert process(plant.listener("listener-1", count_effect), plant.retry(entry("a", "d2"))).won == 1
    assert "expires_at" not in ledger(plant), "its type's are kept for ever"


def test_the_command_reads_the_policies(plant, monkeypatch, tmp_path):
    (tmp_path / "kept.toml").write_text('[types."short"]\nretention_s = 172800\n')
    use_settings(monkeypatch, replace(plant.settings, policies=tmp_path / "kept.toml"))
    fail_as(plant, "short")
    assert exit_code(["failures", "discard", "a"]) == 0
    assert ledger(plant)["expires_at"] > utc_now() + RETENTION - timedelta(minutes=1)
