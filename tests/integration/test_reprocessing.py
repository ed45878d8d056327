"""G2, G3: events that are processed again because an operator wants it: exactly once more, whatever comes in between."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from pymongo.database import Database
from redis import Redis

from app.audit import COUNTS, audit
from app.cli.main import exit_code
from app.decisions import DecisionRefused, Decisions
from app.reprocessing import ReprocessingRefused, reprocess
from app.samples import TYPE as DEPARTURE
from app.settings import Settings
from app.stores import mongo
from app.stores.failures import failure_id
from app.stores.records import utc_now
from tests.support.pipelines import TYPE, Gate, Plant, count_effect, entry, plant_on
from tests.support.servers import use_settings
from workers.handlers import Handler, PermanentFailure
from workers.pipeline import process
from workers.runtime import Runtime

K = "k~1"


@pytest.fixture
def db(settings: Settings) -> Iterator[Database[Any]]:
    made = mongo.connect(settings, role="test")
    yield made
    made.client.close()


@pytest.fixture
def plant(settings: Settings, db: Database[Any], redis_client: Redis) -> Iterator[Plant]:
    db["meta"].insert_one({"_id": "deployment", "id": Plant.DEPLOYMENT})
    with plant_on(settings, db, redis_client) as made:
        yield made


def ledger(plant: Plant, key: str = K) -> dict[str, Any]:
    found = plant.db["events"].find_one({"_id": key})
    assert found is not None
    return found


def reopen(plant: Plant, key: str = K) -> None:
    """What the command does, without its look at Redis: the mark of done stays."""
    reprocess(plant.db, key, by="ann@host", reason="wrong handler")


def recommit_behind(gate: Gate, runtime: Runtime) -> None:
    """Let a listener's next commit in the place of a reopened document wait at a gate."""
    recommit = runtime.ledger.recommit

    def late(*arguments: Any) -> bool:
        gate.pass_through()
        return recommit(*arguments)

    runtime.ledger.recommit = late  # type: ignore[method-assign]


def refute_mark(plant: Plant, key: str = K) -> None:
    """What the sweeper does before it sends a due failure whose key is marked done."""
    plant.claims.forget_done([key], ["d1"])


# ------------------------------------------------------------------------------------------------------------ once more


async def count_async(event: Any, context: Any) -> None:
    await context.db["effects"].update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


def count_outside(event: Any, context: Any) -> None:
    count_effect(event, context)


@pytest.mark.parametrize(
    "handlers", [(count_effect,), (count_async,), (Handler(name="o", pattern=TYPE, function=count_outside, at_least_once=True),)]
)
def test_it_is_processed_once_more_and_its_story_is_kept(plant, handlers):
    first, second = plant.listener("listener-1", *handlers), plant.listener("listener-2", *handlers)
    assert process(first, plant.accept(entry(K))).won == 1
    before = ledger(plant)

    reopen(plant)
    refute_mark(plant)
    assert process(second, plant.retry(entry(K))).won == 1
    again = ledger(plant)

    assert plant.effects() == {K: 2}
    assert (again["listener"], again["recommits"], again["generation"]) == ("listener-2", 1, 1)
    assert "reopened" not in again
    assert (again["digest"], again["door"], again["batch"], again["accepted_at"]) == ("d1", "test", before["batch"], before["accepted_at"])
    [noted] = again["reprocessed"]
    assert (noted["by"], noted["reason"], noted["former"]["listener"]) == ("ann@host", "wrong handler", "listener-1")
    assert noted["former"]["processed_at"] == before["processed_at"]
    assert plant.failures() == {}


def test_without_handlers_it_is_stored_again(plant):
    runtime = plant.listener()
    process(runtime, plant.accept(entry(K), entry("k~2")))
    reopen(plant)
    refute_mark(plant)
    assert process(runtime, plant.retry(entry(K))).won == 1
    assert (ledger(plant)["recommits"], plant.failures()) == (1, {})


def test_the_mark_of_done_alone_skips_it_until_the_sweeper_has_refuted_it(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    reopen(plant)
    assert str(process(runtime, plant.retry(entry(K)))) == "skipped 1 (done listener-1)"
    assert plant.failures() == {(K, "d1"): "retrying"}
    refute_mark(plant)
    assert process(runtime, plant.retry(entry(K))).won == 1


def test_several_times(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    for _ in range(3):
        reopen(plant)
        refute_mark(plant)
        process(runtime, plant.retry(entry(K)))
    assert plant.effects() == {K: 4}
    assert (ledger(plant)["recommits"], len(ledger(plant)["reprocessed"])) == (3, 3)


# ------------------------------------------------------------------------------------------------------ amid duplicates


def test_duplicates_of_every_kind_change_nothing(plant):
    listeners = [plant.listener(f"listener-{n}", count_effect) for n in (1, 2, 3)]
    process(listeners[0], plant.accept(entry(K)))
    reopen(plant)
    plant.redis.flushdb()
    messages = [plant.retry(entry(K)) for _ in range(6)] + [plant.accept(entry(K)) for _ in range(3)]  # sent by producers, too
    with ThreadPoolExecutor(9) as threads:
        tallies = list(threads.map(lambda n: process(listeners[n % 3], messages[n]), range(9)))
    assert sum(tally.won for tally in tallies) == 1
    for n in range(3):
        assert process(listeners[n], plant.accept(entry(K))).won == 0
    plant.redis.flushdb()
    assert process(listeners[0], plant.accept(entry(K))).won == 0
    assert plant.effects() == {K: 2}
    assert plant.failures() == {}


def test_a_listener_that_looked_before_it_was_reopened_fails_at_the_fence(plant):
    gate = plant.gate()
    slow = plant.listener("listener-1", count_effect)
    insert = slow.ledger.insert

    def insert_late(documents: Any, session: Any = None) -> list[str]:
        gate.pass_through()
        return insert(documents, session)

    slow.ledger.insert = insert_late  # type: ignore[method-assign]
    late = plant.start(slow, plant.accept(entry(K)))  # has checked, and is about to insert
    gate.wait_entered()
    plant.redis.flushdb()
    quick = plant.listener("listener-2", count_effect)
    assert process(quick, plant.accept(entry(K))).won == 1
    reopen(plant)
    gate.open()
    assert late.result(20).won == 0
    assert plant.effects() == {K: 1}
    plant.redis.flushdb()
    assert process(quick, plant.retry(entry(K))).won == 1
    assert plant.effects() == {K: 2}


@pytest.mark.parametrize("handlers", [(), (count_effect,)], ids=["stored", "handled"])
def test_of_two_winners_that_both_found_it_reopened_one_commits(plant, handlers):
    """G3: Redis forgets between the two; the second compare-and-set changes nothing."""
    runtime = plant.listener("listener-0", *handlers)
    process(runtime, plant.accept(entry(K)))
    reopen(plant)
    refute_mark(plant)
    gate = plant.gate()
    slow, quick = plant.listener("listener-1", *handlers), plant.listener("listener-2", *handlers)
    recommit_behind(gate, slow)
    late = plant.start(slow, plant.retry(entry(K)))
    gate.wait_entered()
    plant.redis.flushdb()
    assert process(quick, plant.retry(entry(K))).won == 1
    gate.open()
    assert str(late.result(20)) == "skipped 1 (done listener-2)"
    assert (ledger(plant)["listener"], ledger(plant)["recommits"]) == ("listener-2", 1)
    assert plant.effects() == ({K: 2} if handlers else {})


def test_a_slow_winner_of_a_reopening_does_not_commit_for_the_next_one(plant):
    """G3: it was committed by another, and reopened once more meanwhile."""
    process(plant.listener("listener-0", count_effect), plant.accept(entry(K)))
    reopen(plant)
    refute_mark(plant)
    gate = plant.gate()
    slow, quick = plant.listener("listener-1", count_effect), plant.listener("listener-2", count_effect)
    recommit_behind(gate, slow)
    late = plant.start(slow, plant.retry(entry(K)))
    gate.wait_entered()
    plant.redis.flushdb()
    assert process(quick, plant.retry(entry(K))).won == 1
    reopen(plant)
    gate.open()
    assert late.result(20).won == 0
    assert plant.effects() == {K: 2}
    plant.redis.flushdb()
    assert process(quick, plant.retry(entry(K))).won == 1
    assert (plant.effects(), plant.failures()) == ({K: 3}, {})


def test_a_sweeper_that_looked_before_it_was_reopened_does_not_remove_its_body(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    refuted_by = runtime.ledger.find([K])[K].generation
    reopen(plant)
    assert runtime.failures.remove([(K, "d1")], {K: refuted_by}) == 0
    refute_mark(plant)
    process(runtime, plant.retry(entry(K)))
    assert plant.failures() == {}


def test_other_content_is_in_conflict_meanwhile_and_what_was_decided_stays_decided(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    process(runtime, plant.accept(entry(K, "d2")))
    Decisions.on(plant.db).keep_old(K, "d2")
    reopen(plant)
    plant.redis.flushdb()
    assert str(process(runtime, plant.accept(entry(K, "d2")))).startswith("skipped")
    assert str(process(runtime, plant.accept(entry(K, "d3")))) == "failed 1 (conflict)"
    assert process(runtime, plant.retry(entry(K))).left == 1, "the mark of d2 is refuted, and the sweeper sends it again"
    assert process(runtime, plant.retry(entry(K))).won == 1
    assert (ledger(plant)["digest"], ledger(plant)["rejected"]) == ("d1", ["d2"])


def test_the_end_of_its_retention_meanwhile_leaves_nothing_behind(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    reopen(plant)
    plant.db["events"].delete_one({"_id": K})  # as the index does that ends retention
    refute_mark(plant)
    assert process(runtime, plant.retry(entry(K))).won == 1
    assert (plant.failures(), plant.effects()) == ({}, {K: 2})
    assert ledger(plant)["generation"] == 1, "so that a sweeper removes what the listener could not"


def test_it_is_kept_for_as_long_as_the_policy_says_now(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    plant.db["events"].update_one({"_id": K}, {"$set": {"expires_at": utc_now() + timedelta(days=1)}})  # by an earlier policy
    reopen(plant)
    refute_mark(plant)
    assert process(runtime, plant.retry(entry(K))).won == 1
    assert "expires_at" not in ledger(plant)


# ------------------------------------------------------------------------------------------------------- failing, deciding


def test_when_its_handler_fails_it_is_a_failure_like_others_and_discarding_it_lets_the_former_commit_stand(plant):
    raising = [True]

    def handle(event: Any, context: Any) -> None:
        if raising[0]:
            raise ValueError("not yet")
        count_effect(event, context)

    raising[0] = False
    runtime = plant.listener("listener-1", handle)
    process(runtime, plant.accept(entry(K)))
    raising[0] = True
    reopen(plant)
    refute_mark(plant)
    assert str(process(runtime, plant.retry(entry(K)))) == "failed 1 (retrying)"
    plant.db["failures"].update_one({"digest": "d1"}, {"$set": {"state": "conflict"}})
    with pytest.raises(DecisionRefused, match="nothing is committed"):
        Decisions.on(plant.db).accept_new(K, "d1")
    said = Decisions.on(plant.db, by="bob").discard(K, "d1")
    assert said == "it is not processed again; the former processing stands"
    assert plant.failures() == {}
    kept = ledger(plant)
    assert (kept["listener"], kept.get("recommits"), "reopened" in kept) == ("listener-1", None, False)
    assert (kept["decisions"][0]["by"], kept["reprocessed"][0]["withdrawn"]["by"]) == ("bob", "bob")
    assert str(process(runtime, plant.accept(entry(K)))).startswith("skipped 1 (done")
    reopen(plant)
    raising[0] = False
    plant.redis.flushdb()
    assert process(runtime, plant.retry(entry(K))).won == 1
    assert (plant.effects(), ledger(plant)["generation"], ledger(plant)["recommits"]) == ({K: 2}, 2, 1)


def test_other_content_that_is_dead_does_not_keep_it_out(plant):
    """Its own content stands in the ledger: what failed of its key before comes after it."""
    raising = [True]

    def handle(event: Any, context: Any) -> None:
        if raising[0]:
            raise PermanentFailure("no")
        count_effect(event, context)

    runtime = plant.listener("listener-1", handle)
    process(runtime, plant.accept(entry(K, "d2")))
    process(runtime, plant.accept(entry(K)))
    assert plant.failures() == {(K, "d2"): "dead", (K, "d1"): "conflict"}
    Decisions.on(plant.db).retry(K, "d2")
    process(runtime, plant.retry(entry(K, "d2")))  # dead once more
    Decisions.on(plant.db).retry(K, "d1")
    raising[0] = False
    assert process(runtime, plant.retry(entry(K))).won == 1

    reopen(plant)
    refute_mark(plant)
    assert process(runtime, plant.retry(entry(K))).won == 1
    assert (plant.effects(), plant.failures()) == ({K: 2}, {(K, "d2"): "dead"})


def test_other_content_is_decided_about_when_it_has_been_processed(plant):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    process(runtime, plant.accept(entry(K, "d2")))
    reopen(plant)
    for decide in Decisions.on(plant.db).by_name().values():
        with pytest.raises(DecisionRefused, match="is being processed again with other content"):
            decide(K, "d2")
    refute_mark(plant)
    assert process(runtime, plant.retry(entry(K))).won == 1
    Decisions.on(plant.db).keep_old(K, "d2")
    assert (plant.effects(), plant.failures(), ledger(plant)["rejected"]) == ({K: 2}, {}, ["d2"])


@pytest.mark.parametrize("handlers", [(), (count_effect,), (count_async,)], ids=["stored", "sync", "async"])
@pytest.mark.parametrize("again", [False, True], ids=["withdrawn", "and-reopened"])
def test_a_listener_that_looked_before_it_was_withdrawn_commits_nothing(plant, handlers, again):
    """G3: its generation is over, though the key may be reopened once more."""
    late, other = plant.listener("listener-1", *handlers), plant.listener("listener-2", *handlers)
    process(other, plant.accept(entry(K), entry("k~2")))
    reopen(plant)
    refute_mark(plant)
    look = late.ledger.look

    def look_then_withdraw(keys: Any) -> Any:
        late.ledger.look = look  # type: ignore[method-assign]
        found = look(keys)
        Decisions.on(plant.db).discard(K, "d1")
        if again:
            reopen(plant)
        return found

    late.ledger.look = look_then_withdraw  # type: ignore[method-assign]
    tally = process(late, plant.retry(entry(K)))

    assert (tally.won, tally.failed) == (0, 0)
    assert plant.effects() == ({K: 1, "k~2": 1} if handlers else {})
    assert ledger(plant).get("recommits", 0) == 0
    if again:
        assert plant.failures() == {(K, "d1"): "retrying"}
        plant.redis.flushdb()
        assert process(other, plant.retry(entry(K))).won == 1
    assert (plant.failures(), ledger(plant)["listener"]) == ({}, "listener-2")


def test_a_failure_of_another_version_is_left_alone(plant):
    process(plant.listener("listener-1", count_effect), plant.accept(entry(K)))
    foreign = {"_id": failure_id(K, "d1"), "v": 2, "key": K, "digest": "d1", "state": "parked"}
    plant.db["failures"].insert_one(foreign)
    with pytest.raises(ReprocessingRefused, match="another version"):
        reopen(plant)
    assert plant.db["failures"].find_one() == foreign
    assert "reopened" not in ledger(plant)


def test_of_two_commands_at_once_one_wins_and_the_other_says_so(plant):
    process(plant.listener("listener-1", count_effect), plant.accept(entry(K)))
    together = threading.Barrier(4)

    def command(name: str) -> str:
        together.wait(10)
        try:
            reprocess(plant.db, K, by=name, reason="because")
        except ReprocessingRefused as error:
            return str(error)
        return name

    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(command, "abcd"))
    [winner] = [text for text in said if len(text) == 1]
    assert sum(f"by {winner}: because" in text for text in said) == 3
    assert ledger(plant)["generation"] == 1


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command(plant, monkeypatch, tmp_path) -> Any:
    use_settings(monkeypatch, plant.settings)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: exit_code(["reprocess", *arguments])


def test_the_command_refutes_the_mark_and_says_who(plant, command, capsys):
    runtime = plant.listener("listener-1", count_effect)
    process(runtime, plant.accept(entry(K)))
    assert command(K, "--reason", "x", "--dry-run") == 0
    assert "would be processed again; was by listener-1" in capsys.readouterr().out
    assert "reopened" not in ledger(plant)

    assert command(f"{K}/listener-1", "--reason", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out)["former"]["listener"] == "listener-1"
    assert "@" in ledger(plant)["reprocessed"][0]["by"]
    assert process(runtime, plant.retry(entry(K))).won == 1, "the mark of done is gone"


def test_the_command_says_why_not_and_does_the_others(plant, command, capsys):
    process(plant.listener("listener-1", count_effect), plant.accept(entry(K)))
    capsys.readouterr()
    assert command("k~none", K, "--reason", "x") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("dedup: k~none is not processed")
    assert captured.out.startswith(f"{K}: will be processed again")
    assert command(K, "--reason", "x") == 1
    assert "is being processed again already" in capsys.readouterr().err
    assert command(K, "--reason", " ") == command("", "--reason", "x") == command(K) == 2


def test_the_audit_holds_afterwards(plant):
    def count_departure(event: Any, context: Any) -> None:
        context.db[COUNTS].update_one({"_id": event.data["origin"]}, {"$inc": {"count": 1}}, upsert=True)

    data = {"carrier": "UA", "flight": 1545, "origin": "EWR", "time_hour": "2013-01-01T10:00:00Z"}
    departure = entry(K, type=DEPARTURE, data=data)
    runtime = plant.listener("listener-1", Handler(name="h", pattern=DEPARTURE, function=count_departure))
    process(runtime, plant.accept(departure))
    reopen(plant)
    assert audit(plant.db, expected=[K], counted_from_start=True).ok
    refute_mark(plant)
    assert process(runtime, plant.retry(departure)).won == 1
    found = audit(plant.db, expected=[K], counted_from_start=True)
    assert (found.ok, found.processed, found.twice, found.lost) == (True, 1, 0, 0)
    assert plant.db[COUNTS].find_one()["count"] == 2
