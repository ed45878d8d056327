"""What listeners tell whoever watches, on real servers."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from app.events.event import Event
from app.messages import announcement, delivery, read_delivery
from app.outcomes import SAMPLE_EVENTS, WATCHED_MS, Told, channel, decoded, encoded, watched_key
from app.stores.meta import deployment_id
from app.stores.records import entry_of, inbox_document, new_batch_id, utc_now
from tests.support.clock import Clock
from tests.support.waiting import eventually
from workers import outcomes
from workers.outcomes import Outcomes
from workers.pipeline import process
from workers.runtime import Runtime
from workers.tally import Tally


@pytest.fixture
def runtime(settings):
    made = Runtime.build(settings, "listener-1")
    yield made
    made.close()


def delivery_of(*keys: str, deployment: str = "d"):
    announced = announcement("b", [(key, "1", "t") for key in keys], utc_now())
    return read_delivery(delivery([announced], deployment=deployment, seq=1, forwards=1))


def hearing(runtime: Runtime, deployment: str):
    """A subscription that has begun."""
    found = runtime.redis.pubsub()
    found.subscribe(channel(deployment))
    assert eventually(lambda: found.get_message(timeout=0.1))["type"] == "subscribe"
    return found


def heard(subscription, timeout_s: float = 5.0) -> Told:
    message = eventually(lambda: subscription.get_message(ignore_subscribe_messages=True, timeout=0.1), timeout_s)
    return decoded(message["data"])


def test_nothing_is_told_while_nobody_watches(runtime):
    # Given a subscriber who does not say that it watches
    subscription = hearing(runtime, "d")

    # When a task ends
    tally = Tally(sample=runtime.outcomes.sample(delivery_of("k")))
    tally.win(["k"])
    runtime.outcomes.tell("d", tally)

    # Then
    assert tally.seen == []
    assert not [t for t in _threads() if t == "outcomes"]
    assert subscription.get_message(ignore_subscribe_messages=True, timeout=0.3) is None
    subscription.close()


def test_of_batches_that_travel_together_the_first_events_of_each_are_named(runtime):
    """A page shows the first events of each batch, and knows nothing of deliveries."""
    runtime.redis.set(watched_key("d"), 1, px=WATCHED_MS)
    announced = [announcement(name, [(f"{name}{n}", "1", "t") for n in range(50)], utc_now()) for name in ("a", "b")]

    sampled = runtime.outcomes.sample(read_delivery(delivery(announced, deployment="d", seq=1, forwards=1)))

    assert sampled == {f"{name}{n}" for name in ("a", "b") for n in range(SAMPLE_EVENTS)}


def test_what_became_of_the_first_events_is_told_while_somebody_watches(runtime, monkeypatch):
    # Given somebody who watches
    runtime.redis.set(watched_key("d"), 1, px=WATCHED_MS)
    subscription = hearing(runtime, "d")
    delivered = delivery_of(*(f"k{n}" for n in range(500)))

    # When a batch ends
    tally = Tally(sample=runtime.outcomes.sample(delivered))
    tally.win(delivered.keys[:10])
    for key in delivered.keys[10:499]:
        tally.skip("done", "listener-2", key)
    tally.fail("dead", delivered.keys[499])
    runtime.outcomes.tell("d", tally)

    # Then all are counted and the first 20 are named
    told = heard(subscription)
    assert (told.listener, told.won, told.skipped, told.failed, told.left) == ("listener-1", 10, 489, 1, 0)
    assert [tuple(one) for one in told.events] == [
        *((f"k{n}", "won", "") for n in range(10)),
        *((f"k{n}", "skipped", "done listener-2") for n in range(10, 20)),
    ]
    subscription.close()


def test_many_tasks_are_told_in_few_bounded_messages(runtime):
    # Given
    runtime.redis.set(watched_key("d"), 1, px=WATCHED_MS)
    subscription = hearing(runtime, "d")

    # When a thousand tasks end at once
    for number in range(1_000):
        tally = Tally(sample=runtime.outcomes.sample(delivery_of(f"k{number}")))
        tally.win([f"k{number}"])
        runtime.outcomes.tell("d", tally)

    # Then a few messages count all of them
    messages: list[Told] = []

    def all_counted() -> bool:
        if message := subscription.get_message(ignore_subscribe_messages=True, timeout=0.1):
            messages.append(decoded(message["data"]))
        return sum(told.won for told in messages) == 1_000

    eventually(all_counted, message=lambda: messages)
    assert len(messages) < 20
    assert max(len(told.events) for told in messages) <= outcomes.MAX_EVENTS
    subscription.close()


def test_a_page_that_opens_is_noticed_within_about_a_second(runtime):
    assert not runtime.outcomes.sample(delivery_of("k"))
    runtime.redis.set(watched_key("d"), 1, px=WATCHED_MS)
    eventually(lambda: runtime.outcomes.sample(delivery_of("k")) == {"k"}, outcomes.LOOK_S + 1)


def test_a_real_delivery_tells_of_each_event(runtime, settings):
    # Given an event in the inbox, and somebody who watches
    deployment = deployment_id(runtime.db)
    runtime.redis.set(watched_key(deployment), 1, px=WATCHED_MS)
    subscription = hearing(runtime, deployment)
    entry = entry_of(Event(key="k", digest="1", type="t", source="s", id=None, time=None, data=None, extra={}))
    batch, now = new_batch_id(), utc_now()
    runtime.inbox.write([inbox_document(batch, [entry], door="test", accepted_at=now)])
    message = delivery([announcement(batch, [("k", "1", "t")], now)], deployment=deployment, seq=0, forwards=1)

    # When two listeners get it
    other = Runtime.build(settings, "listener-2")
    for listener in (runtime, other):
        process(listener, read_delivery(message))

    # Then both say what became of it
    said = [heard(subscription), heard(subscription)]
    assert {(told.listener, *told.events[0]) for told in said} == {
        ("listener-1", "k", "won", ""),
        ("listener-2", "k", "skipped", "done listener-1"),
    }
    other.close()
    subscription.close()


def test_a_redis_that_is_away_costs_a_task_one_failed_call_in_ten_seconds(settings, monkeypatch):
    # Given no Redis, and a clock that stands still
    away = Runtime.build(replace(settings, redis_url="redis://127.0.0.1:1/0"), "listener-1")
    calls: list[str] = []
    exists = away.redis.exists
    monkeypatch.setattr(away.redis, "exists", lambda key: calls.append(key) or exists(key))
    clock = Clock()
    monkeypatch.setattr("workers.outcomes.time", SimpleNamespace(monotonic=clock))

    # When tasks come in every tenth of a second
    for tenth in range(250):
        clock.now = 1_000 + tenth / 10
        for _ in range(10):
            assert not away.outcomes.sample(delivery_of("k"))

            # Then one of all that came within ten seconds has asked
            assert len(calls) == 1 + tenth // 100, f"after {tenth / 10} s"
    away.close()


def test_messages_of_another_version_are_passed_over():
    assert decoded(encoded(Told(listener="a", won=1))) == Told(listener="a", won=1)
    assert decoded(encoded(Told(v=99, listener="a"))) is None
    for rubbish in (b"", b"\xff", b"[]", b'{"listener": 1}', b'{"listener": "a", "events": [["k"]]}'):
        assert decoded(rubbish) is None


def test_many_deployments_are_not_remembered_for_ever(runtime):
    for number in range(100):
        runtime.outcomes.sample(delivery_of("k", deployment=f"d{number}"))
    assert len(runtime.outcomes._looks) <= outcomes.MAX_DEPLOYMENTS


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_nothing_is_told_after_the_end(runtime):
    closed = Outcomes(runtime.redis, "listener-1")
    closed.close()
    closed.tell("d", Tally(sample=frozenset({"k"})))
    assert closed._thread is None
