"""What listeners count, added up in Redis: once, for ever, and of a bounded size."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from pymongo.database import Database
from redis import Redis

from app import redis_client
from app import totals as module
from app.errors import RedisUnavailable
from app.messages import announcement, delivery, read_delivery
from app.settings import Settings
from app.stores.records import utc_now
from app.totals import Counted, Totals, new_process, outcome_field
from tests.support.pipelines import Plant, count_effect, entry, plant_on
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from workers.handlers import PermanentFailure
from workers.measures import Measures
from workers.pipeline import process
from workers.tally import Tally


@pytest.fixture
def plant(settings: Settings, database: Database, redis_client: Redis) -> Iterator[Plant]:
    with plant_on(settings, database, redis_client) as made:
        yield made


@pytest.fixture
def client(settings: Settings) -> Iterator[Redis]:
    with Redis.from_url(settings.redis_url) as made:
        yield made


def counted(plant: Plant, client: Redis) -> Counted:
    """The totals, once every listener has added what it counted."""
    for runtime in plant.runtimes:
        runtime.measures.add_now()
    return Totals(client, plant.DEPLOYMENT).read()


def won(name: str = "listener-1", kind: str = "t", events: int = 1) -> dict[tuple[str, str], int]:
    return {(outcome_field(name, "won"), kind): events}


# --------------------------------------------------------------------------------------------------------------- the store


def test_an_addition_that_is_repeated_counts_once(client):
    totals, one, other = Totals(client, "d"), new_process(), new_process()

    assert totals.add(won(events=3), process=one, number=1)
    assert not totals.add(won(events=3), process=one, number=1)
    assert totals.add(won(events=4), process=one, number=2)
    assert totals.add(won(events=5), process=other, number=1)

    assert totals.read().outcomes == {("listener-1", "won", "t"): 12}


def test_types_beyond_the_first_fifty_are_counted_together(client):
    # Given as many types as are counted by name, one of them with the separator in it
    totals, names = Totals(client, "d"), [f"type:{number}" for number in range(module.MAX_TYPES)]
    for number, name in enumerate(names, 1):
        totals.add(won(kind=name), process="p", number=number)

    # When more come, from another process
    totals.add({(outcome_field("listener-1", "won"), f"new-{number}"): 2 for number in range(200)}, process="q", number=1)
    totals.add(won(kind=names[0]), process="q", number=2)

    # Then
    found = totals.read().outcomes
    assert found.pop(("listener-1", "won", module.OTHER)) == 400
    assert found.pop(("listener-1", "won", names[0])) == 2
    assert found == {("listener-1", "won", name): 1 for name in names[1:]}


def test_what_another_version_wrote_is_passed_over(client):
    totals = Totals(client, "d")
    totals.add(won(), process="p", number=1)
    client.hset("dedup:{d}:=totals", mapping={"": 1, "x": 2, "claim:listener-1:soon": 3, "outcome:listener-1:won:u": "many", "new:a:b": 4})
    assert totals.read().outcomes == {("listener-1", "won", "t"): 1}


def test_totals_and_all_that_belongs_to_them_end_some_time_after_the_last_addition(client):
    Totals(client, "d").add(won(), process="p", number=1)
    assert all(0 < client.pttl(key) <= module.KEPT_MS for key in client.keys("*"))
    assert len(client.keys("*")) == 3


def test_a_forgotten_listener_leaves_no_total(client):
    totals = Totals(client, "d")
    totals.add(won("listener-1") | won("listener-10") | {("takeover:listener-1", ""): 1}, process="p", number=1)
    totals.forget(["listener-1", "nobody"])
    assert totals.read() == Counted(outcomes={("listener-10", "won", "t"): 1})


# ------------------------------------------------------------------------------------------------------------ the listeners


def test_outcomes_are_counted_by_listener_and_type(plant, client):
    # Given two listeners, and a handler that refuses one event and has trouble with another
    def refuses(event, context):
        if event.key == "bad":
            raise PermanentFailure("no")
        if event.key == "later":
            raise ValueError("not now")
        count_effect(event, context)

    patient = replace(plant.settings, backoff_ms=60_000)
    first, second = plant.listener("listener-1", refuses, settings=patient), plant.listener("listener-2")
    first.inbox.remove = lambda _: None  # or the second could find a batch gone whose failures it is to skip

    # When a batch of several types and one of a single type are delivered to both
    mixed = plant.accept(entry("a"), entry("b"), entry("bad"), entry("later"), entry("c", type="plain"))
    single = plant.accept(*(entry(f"s{number}", type="plain") for number in range(250)))
    for message in (mixed, single):
        for runtime in (first, second):
            process(runtime, message)
    process(second, plant.accept(entry("a", "d2")))

    # Then
    assert counted(plant, client).outcomes == {
        ("listener-1", "won", "order.placed"): 2,
        ("listener-1", "dead", "order.placed"): 1,
        ("listener-1", "retrying", "order.placed"): 1,
        ("listener-1", "won", "plain"): 251,
        ("listener-2", "skipped", "order.placed"): 4,
        ("listener-2", "skipped", "plain"): 251,
        ("listener-2", "conflict", "order.placed"): 1,
    }


def test_what_is_left_is_counted_by_type(plant, client):
    runtime = plant.listener("listener-1")
    runtime.pauses.pause("plain")
    process(runtime, plant.accept(entry("a"), entry("b", type="plain"), entry("c", type="plain")))
    assert counted(plant, client).outcomes == {("listener-1", "won", "order.placed"): 1, ("listener-1", "left", "plain"): 2}


def test_durations_are_counted_in_buckets(plant, client):
    # Given events that a door took a minute and a half ago
    runtime = plant.listener("listener-1", count_effect)
    message = plant.accept(*(entry(f"k{number}") for number in range(40)), accepted_at=utc_now() - timedelta(seconds=90))

    # When
    process(runtime, message)

    # Then each event counts once in the bucket up to 300 s, and the slice in some of the others
    durations = counted(plant, client).durations
    ledger = durations["ledger", "listener-1"]
    assert dict(zip((*module.BOUNDS_S["ledger"], "more"), ledger.buckets, strict=True)) == dict.fromkeys(
        (*module.BOUNDS_S["ledger"], "more"), 0
    ) | {300.0: 40}
    assert ledger.seconds >= 90 * 40
    for name in ("claim", "commit"):
        assert sum(durations[name, "listener-1"].buckets) >= 1
        assert 0 < durations[name, "listener-1"].seconds < 60


def test_a_listener_that_starts_again_goes_on_counting(plant, client):
    for life in range(3):
        runtime = plant.listener("listener-1")
        process(runtime, plant.accept(entry(f"k{life}")))
        runtime.measures.close()  # as at the end of a process
    assert Totals(client, plant.DEPLOYMENT).read().outcomes == {("listener-1", "won", "order.placed"): 3}


def test_takeovers_and_lost_leases_are_counted(plant, client):
    # Given a listener whose handler is under way when its lease runs out
    gate = plant.gate()

    def waits(event, context):
        gate.pass_through()
        count_effect(event, context)

    slow, quick = plant.listener("listener-1", waits, settings=replace(plant.settings, lease_ms=1_000)), plant.listener("listener-2")
    message = plant.accept(entry("a"))
    running = plant.start(slow, message)
    gate.wait_entered()

    # When another one takes over
    def taken_over() -> bool:
        plant.expire_leases()  # again, where a renewal came between
        process(quick, message)
        return counted(plant, client).takeovers["listener-2"] > 0

    eventually(taken_over, every_s=0)
    eventually(lambda: counted(plant, client).lost["listener-1"] == 1)
    gate.open()
    running.result(20)

    # Then each is counted once
    assert counted(plant, client).takeovers == {"listener-2": 1}
    assert counted(plant, client).lost == {"listener-1": 1}


def test_what_is_counted_while_redis_is_away_is_added_once_afterwards(settings, client):
    # Given a connection to Redis that can be cut
    place = urlsplit(settings.redis_url)
    with (
        Proxy(place.port or 0) as proxy,
        closing(redis_client.connect(replace(settings, redis_url=f"redis://127.0.0.1:{proxy.url_port}{place.path}"))) as through,
    ):
        measures = Measures(through, "listener-1", every_s=3600)
        measures._note("d", won(events=1))
        measures.add_now()

        # When it is cut, and more is counted, twice
        proxy.cut()
        for _ in range(2):
            measures._note("d", won(events=10))
            with pytest.raises(RedisUnavailable):
                measures.add_now()
        proxy.mend()

        # Then all of it is added
        measures.add_now()
        measures.add_now()
        assert Totals(client, "d").read().outcomes == {("listener-1", "won", "t"): 21}
        measures.close()


def test_what_waits_to_be_added_is_bounded(client):
    measures = Measures(client, "listener-1", every_s=3600)
    for number in range(5_000):
        measures._note(f"d{number % 20}", won(kind=f"t{number}"))
    for number in range(5_000):
        measures._note("d0", won(kind=f"u{number}"))
    assert len(measures._sums) <= 8
    assert len(measures._sums["d0"]) <= 2_001
    assert sum(measures._sums["d0"].values()) == 5_250
    measures.close()


def test_a_tally_of_several_types_tells_them_apart():
    events = [("a", "1", "x"), ("b", "1", "y"), ("c", "1", "y"), ("d", "1", "x")]
    delivered = read_delivery(delivery([announcement("b", events, utc_now())], deployment="d", seq=1, forwards=1))
    made = Tally(several_types=True)
    made.win(["a"])
    made.skip("done", "listener-2", "b")
    made.fail("dead", "c")
    assert made.by_type(delivered) == {("won", "x"): 1, ("skipped", "y"): 1, ("dead", "y"): 1, ("left", "x"): 1}
