"""The bridge on real servers: its forwarder alone, then whole processes beside a real broadcaster."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import structlog

from app.errors import StoreUnavailable
from app.leases import Lease
from app.naming import PROCESS_TASK, RECOVERY_QUEUE, queue_of
from app.settings import Settings
from app.stores.inbox import Inbox
from broadcaster.bridge.forwarder import Forwarder
from broadcaster.bridge.intake import Intake
from broadcaster.bridge.notes import Notes
from broadcaster.bridge.watch import ROLE, Watch
from broadcaster.pacing import BURST, PER_S
from broadcaster.sending import Sender
from tests.support.bridging import Place, place_of
from tests.support.clock import Clock
from tests.support.waiting import eventually


class Bridging:
    """A bridge without its threads and its socket."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.intake = Intake(100_000)
        self.watch = Watch(place.settings, place.redis, owner="test")
        self.watch.use(place.deployment)
        self.sender = Sender(place.app, timeout_s=1)
        notes = Notes(place.inbox, self.intake, after_s=0)
        self.forwarder = Forwarder(self.intake, self.watch, self.sender, notes, high_water=place.settings.queue_high_water)

    def forward(self, *batches: str) -> int:
        self.watch.look()
        self.intake.offer([self.place.announced(batch) for batch in batches])
        return self.forwarder.forward(self.intake.take(100_000, 0))

    def measure(self) -> None:
        self.forwarder._measured_at = float("-inf")
        self.forwarder._measure()


@pytest.fixture
def place(settings) -> Iterator[Place]:
    with place_of(settings) as made:
        yield made


@pytest.fixture
def bridging(place) -> Iterator[Bridging]:
    made = Bridging(place)
    yield made
    made.sender.close()


# ----------------------------------------------------------------------------------------------------------- forwarder


def test_each_live_listener_gets_its_own_delivery(place, bridging):
    place.beat("listener-1", "listener-2")
    first, second = place.accept("type~flight~UA~1/2", "b"), place.accept("c")

    assert bridging.forward(first, second) == 2

    for name in ("listener-1", "listener-2"):
        one, two = place.of(name)
        assert one.id == f"type~flight~UA~1%2F2+1/{name}"
        assert two.id == f"c/{name}"
        assert {one.task, two.task} == {PROCESS_TASK}
        assert one.argsrepr == f"t type~flight~UA~1/2 and 1 more (batch {first})"
        assert one.delivery.keys == ["type~flight~UA~1/2", "b"]
        assert (one.delivery.batch, one.delivery.forwards, one.delivery.deployment) == (first, 1, place.deployment)
        assert 0 < one.delivery.seq < two.delivery.seq
    assert sorted(place.broker.keys("*")) == [b"events.listener-1", b"events.listener-2"], "no binding, no other queue"
    for batch, sent in ((first, place.of("listener-1")[0]), (second, place.of("listener-1")[1])):
        head = place.head(batch)
        assert head is not None
        assert (head["seq"], head["forwards"]) == (sent.delivery.seq, 1)
        assert head["forwarded_at"] is not None
        assert not bridging.intake.holds(batch)


def test_small_batches_travel_together(place, bridging):
    place.beat("listener-1", "listener-2")
    batches = [place.accept("a"), place.accept("b", "c", types={"c": "u"}), place.accept("d")]
    again, other = place.accept("b"), place.accept("b", digest="2d")
    bridging.watch.look()
    bridging.intake.offer([place.announced(batch, size=100) for batch in (*batches, again, other)])

    assert bridging.forwarder.forward(bridging.intake.take(100, 0)) == 5

    for name in ("listener-1", "listener-2"):
        together, apart = place.of(name)
        assert together.id == f"a+3/{name}"
        assert together.argsrepr == f"events of 2 types a and 3 more (batch {batches[0]} and 3 more)"
        assert together.delivery.events == [("a", "1d", "t"), ("b", "1d", "t"), ("c", "1d", "u"), ("d", "1d", "t")]
        assert [(p.batch, p.events) for p in together.delivery.batches] == list(zip((*batches, again), (1, 2, 1, 0), strict=True))
        assert (apart.delivery.keys, apart.delivery.digests) == (["b"], ["2d"]), "a claim is of one content"
    for batch in (*batches, again, other):
        head = place.head(batch)
        assert head is not None
        sent = together if batch != other else apart
        assert (head["seq"], head["forwards"]) == (sent.delivery.seq, 1)
        assert not bridging.intake.holds(batch)


def test_g1_a_forwarder_that_fails_holds_nothing(place, bridging, monkeypatch):
    """G1: whatever went wrong, the sweeper may have the batches."""
    place.beat("listener-1")
    bridging.watch.look()
    batches = [place.accept("a"), place.accept("b")]
    bridging.intake.offer([place.announced(batch) for batch in batches])
    monkeypatch.setattr(bridging.sender, "send", lambda _deliveries: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        bridging.forwarder.forward(bridging.intake.take(100, 0))

    assert not any(map(bridging.intake.holds, batches))


class TestNotes:
    def test_what_was_sent_is_held_until_it_is_noted_a_moment_later(self, place):
        clock, intake = Clock(), Intake(100)
        batch, soon_after, later = (place.accept(name) for name in ("a", "b", "c"))
        intake.offer([place.announced(one) for one in (batch, soon_after, later)])
        notes = Notes(place.inbox, intake, after_s=1, clock=clock)
        for after_s, one in ((0, batch), (0.2, soon_after), (0.1, later)):
            clock.now += after_s
            notes.add([(one, 7)])

        clock.now += 0.9  # 1.2 s after the first
        notes.write_due()
        assert (place.head(batch)["forwards"], intake.holds(batch)) == (0, True), "it waits for others"
        clock.now += 0.05
        notes.write_due()
        for noted in (batch, soon_after):
            assert (place.head(noted)["seq"], place.head(noted)["forwards"], intake.holds(noted)) == (7, 1, False)
        assert (place.head(later)["forwards"], intake.holds(later)) == (0, True), "its own second is not over"

    def test_at_the_end_all_is_noted_at_once(self, place):
        batch = place.accept("a")
        notes = Notes(place.inbox, Intake(100), after_s=60)
        notes.add([(batch, 7)])

        notes.write_due(all_=True)

        assert place.head(batch)["forwards"] == 1

    def test_what_is_finished_by_then_is_passed_over(self, place):
        gone, there = place.accept("a"), place.accept("b")
        place.db["inbox"].delete_one({"_id": gone})
        notes = Notes(place.inbox, Intake(100), after_s=0)
        notes.add([(gone, 7), (there, 8)])

        notes.write_due()

        assert place.head(gone) is None
        assert place.head(there)["forwards"] == 1

    def test_g1_while_mongodb_is_away_notes_wait_and_the_oldest_of_too_many_are_given_up(self, place, monkeypatch):
        """G1: given up means that the sweeper may send them."""
        monkeypatch.setattr("broadcaster.bridge.notes.MAX_BATCHES", 2)
        intake = Intake(100)
        batches = [place.accept(key) for key in "abc"]
        intake.offer([place.announced(batch) for batch in batches])
        notes = Notes(place.inbox, intake, after_s=0)
        notes.add([(batch, number) for number, batch in enumerate(batches, 1)])

        with monkeypatch.context() as away:
            away.setattr(Inbox, "mark_forwarded", raising(StoreUnavailable("away")))
            notes.write_due()
        assert [intake.holds(batch) for batch in batches] == [False, True, True]

        notes.write_due()
        assert [place.head(batch)["forwards"] for batch in batches] == [0, 1, 1]
        assert not any(map(intake.holds, batches))

    def test_g1_notes_that_cannot_be_written_hold_nothing(self, place, monkeypatch):
        """G1: a mistake of ours keeps no batch from the sweeper."""
        intake = Intake(100)
        batch = place.accept("a")
        intake.offer([place.announced(batch)])
        notes = Notes(place.inbox, intake, after_s=0)
        notes.add([(batch, 1)])
        monkeypatch.setattr(Inbox, "mark_forwarded", raising(ValueError("a mistake")))

        with pytest.raises(ValueError, match="a mistake"):
            notes.write_due()

        assert not intake.holds(batch)
        notes.write_due()


def raising(error):
    """A method that raises."""

    def method(*_arguments):
        raise error

    return method


def test_g7_while_a_queue_fills_fewer_and_larger_deliveries_are_sent(place, bridging):
    """G7."""
    place.beat("fast", "slow")
    place.broker.lpush(queue_of("slow"), *["a delivery"] * 4)
    bridging.measure()
    assert not bridging.forwarder._pace.behind, "nothing was sent since"

    bridging.forward(place.accept("a"))
    bridging.measure()
    assert bridging.forwarder._pace.behind

    place.broker.delete(queue_of("slow"))
    bridging.forward(place.accept("b"))
    bridging.measure()
    assert not bridging.forwarder._pace.behind


@pytest.mark.parametrize("same", [False, True], ids=["different", "the same one"])
def test_g7_single_events_that_come_fast_are_few_deliveries(place, bridging, same):
    """G7: however many a second, also when it is one event again and again."""
    place.beat("listener-1")
    bridging.watch.look()
    stop = threading.Event()
    forwarding = threading.Thread(target=bridging.forwarder.run, args=[stop], daemon=True)
    keys = ["same" if same else f"k{number}" for number in range(300)]
    batches = [place.accept(key) for key in keys]
    began = time.monotonic()
    forwarding.start()

    for batch in batches:
        bridging.intake.offer([place.announced(batch, size=100)])
    eventually(lambda: not any(map(bridging.intake.holds, batches)), 20, "all to be sent")
    took_s = time.monotonic() - began
    stop.set()
    forwarding.join(10)

    sent = place.of("listener-1")
    assert sorted(part.batch for one in sent for part in one.delivery.batches) == sorted(batches)
    assert {key for one in sent for key in one.delivery.keys} == set(keys)
    assert len(sent) <= BURST + 1 + PER_S * took_s


def test_without_a_listener_nothing_is_sent(place, bridging):
    batch = place.accept("a")

    assert bridging.forward(batch) == 0

    assert place.broker.keys("*") == []
    head = place.head(batch)
    assert head is not None
    assert head["forwards"] == 0
    assert not bridging.intake.holds(batch), "the sweeper may have it"


def test_a_bridge_that_stands_by_sends_nothing(place, bridging):
    place.beat("listener-1")
    Lease(place.redis, place.deployment, ROLE, owner="another", life_ms=60_000).hold()

    assert bridging.forward(place.accept("a")) == 0
    assert place.broker.keys("*") == []


def test_another_deployment_is_said_once(place, bridging):
    with structlog.testing.capture_logs() as logs:
        for name in (place.deployment, "another", "another"):
            bridging.watch.use(name)

    assert bridging.watch.deployment == "another"
    assert [(line["event"], line["before"], line["now"]) for line in logs] == [("bridge.deployment_changed", place.deployment, "another")]


def test_g1_a_redis_that_forgot_everything_is_harmless(place, bridging):
    """G1: claims, heartbeats, lease and broker flushed between two batches."""
    place.beat("listener-1")
    assert bridging.forward(place.accept("a")) == 1
    place.redis.flushdb()
    place.broker.flushdb()

    assert bridging.forward(place.accept("b")) == 1, "the listener is remembered until its next heartbeat is due"
    assert [sent.delivery.keys for sent in place.of("listener-1")] == [["b"]]


def test_numbers_go_on_behind_what_listeners_have_received(place, bridging):
    far = time.time_ns() // 1000 + 10**12
    place.beat("listener-1", seq=far)

    bridging.forward(place.accept("a"))

    assert place.of("listener-1")[0].delivery.seq > far


def test_g7_a_full_queue_gets_no_more_until_it_has_drained_to_half(make_settings):
    """G7: the others still get theirs; what no queue takes stays in the inbox."""
    with place_of(make_settings(queue_high_water=4)) as place:
        bridging = Bridging(place)
        place.beat("fast", "slow")
        for key in "abcd":
            assert bridging.forward(place.accept(key)) == 1
        assert bridging.forward(place.accept("e")) == 0

        place.broker.delete(queue_of("fast"))
        bridging.measure()
        assert bridging.forward(place.accept("f")) == 1
        assert [len(place.of(name)) for name in ("fast", "slow")] == [1, 4]

        place.broker.rpop(queue_of("slow"), 1)
        bridging.measure()
        bridging.forward(place.accept("g"))
        assert len(place.of("slow")) == 3
        place.broker.rpop(queue_of("slow"), 1)
        bridging.measure()
        bridging.forward(place.accept("h"))
        assert len(place.of("slow")) == 3
        bridging.sender.close()


@pytest.mark.fault
def test_g1_what_a_broker_that_is_away_did_not_take_stays_in_the_inbox(private_servers, private_settings):
    """G1: and once it is back, forwarding goes on by itself."""
    with place_of(private_settings) as place:
        bridging = Bridging(place)
        place.beat("listener-1")
        assert bridging.forward(place.accept("a")) == 1
        batches = [place.accept("b"), place.accept("c")]
        private_servers.valkey.kill()

        bridging.intake.offer([place.announced(batch) for batch in batches])
        assert bridging.forwarder.forward(bridging.intake.take(100, 0)) == 0
        heads = [place.head(batch) for batch in batches]
        assert [head and head["forwards"] for head in heads] == [0, 0]
        assert not any(bridging.intake.holds(batch) for batch in batches)

        private_servers.valkey.start()
        place.beat("listener-1")
        assert eventually(lambda: bridging.forward(place.accept("d")), 10) == 1
        assert place.of("listener-1")[-1].delivery.keys == ["d"]
        bridging.sender.close()


# ----------------------------------------------------------------------------------------------------- whole processes

QUICK: dict[str, Any] = {"lease_ms": 600, "grace_ms": 300, "sweep_ms": 100, "heartbeat_ms": 200, "listener_grace_s": 60}


class Around:
    """A broadcaster, and bridges beside it."""

    def __init__(self, place: Place, spawn: Callable[..., Any]) -> None:
        self.place = place
        self.spawn = spawn
        self.url = f"http://127.0.0.1:{place.settings.port}"

    def broadcaster(self) -> Any:
        process = self.spawn("broadcaster", ["python", "-m", "broadcaster"], settings=self.place.settings)
        eventually(self.live, 20, lambda: process.log_tail(20))
        return process

    def live(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/live").status_code == 200
        except httpx.TransportError:
            return False

    def bridge(self, name: str, settings: Settings | None = None) -> Any:
        return self.spawn(name, ["python", "-m", "broadcaster.bridge"], settings=settings or self.place.settings)

    def publish(self, id: str) -> str:
        headers = {"Authorization": f"Bearer {self.place.settings.token}"} if self.place.settings.token else {}
        answer = httpx.post(f"{self.url}/events", json={"type": "t", "source": "s", "id": id, "data": 1}, headers=headers)
        assert answer.status_code == 202, answer.text
        return f"id~s~{id}"

    def holder(self) -> str | None:
        return Lease(self.place.redis, self.place.deployment, ROLE, owner="test", life_ms=1).holder()


@pytest.fixture
def around(make_settings, spawn) -> Iterator[Callable[..., Around]]:
    places: list[Place] = []

    def make(**overrides: Any) -> Around:
        places.append(Place(make_settings(**QUICK | overrides)))
        return Around(places[-1], spawn)

    yield make
    for place in places:
        place.close()


def log_of(process: Any) -> str:
    return process.log.read_text()


def test_an_accepted_event_reaches_every_queue_and_sigterm_ends_the_bridge(around):
    here = around()
    here.broadcaster()
    bridge = here.bridge("bridge")
    here.place.beat("listener-1", "listener-2")
    eventually(lambda: "bridge.active" in log_of(bridge) and "bridge.connected" in log_of(bridge), 20, lambda: log_of(bridge))

    def arrived(key: str) -> bool:
        here.place.beat("listener-1", "listener-2")
        return all([key] in [s.delivery.keys for s in here.place.of(name)] for name in ("listener-1", "listener-2"))

    first = here.publish("warm-up")
    eventually(lambda: arrived(first) or [first] in [s.delivery.keys for s in here.place.queue(RECOVERY_QUEUE)], 10)
    key = here.publish("1")
    eventually(lambda: arrived(key), 10, lambda: log_of(bridge))

    os.kill(bridge.pid, signal.SIGTERM)
    eventually(lambda: not bridge.alive, 3, lambda: log_of(bridge))
    assert bridge.returncode == 0
    assert here.holder() is None, "the lease was given back"


@pytest.mark.fault
def test_g1_a_bridge_that_dies_is_replaced_by_the_one_that_stands_by(around):
    """G1: SIGKILL of the active one; the other takes over within the lease, and what was accepted meanwhile is sent."""
    here = around()
    here.broadcaster()
    bridges = {name: here.bridge(name) for name in ("bridge-1", "bridge-2")}
    here.place.beat("listener-1")

    def active() -> str:
        holder = here.holder() or ""
        return next((name for name, process in bridges.items() if process.alive and f":{process.pid}:" in holder), "")

    first = eventually(active, 20)
    other = next(name for name in bridges if name != first)
    eventually(lambda: "bridge.standby" in log_of(bridges[other]), 20)

    bridges[first].kill()
    key = here.publish("while-nobody-forwards")

    def sent() -> bool:
        here.place.beat("listener-1")
        copies = here.place.of("listener-1") + here.place.queue(RECOVERY_QUEUE)
        return [key] in [copy.delivery.keys for copy in copies]

    eventually(lambda: active() == other, 5, lambda: log_of(bridges[other]))
    eventually(sent, 10, lambda: log_of(bridges[other]))


def test_bridge_and_broadcaster_find_each_other_in_any_order(around):
    here = around(token="secret")
    bridge = here.bridge("bridge")
    eventually(lambda: "bridge.waiting" in log_of(bridge), 20)

    broadcaster = here.broadcaster()
    eventually(lambda: "bridge.connected" in log_of(bridge), 10, lambda: log_of(bridge))
    broadcaster.kill()
    eventually(lambda: "the connection was lost" in log_of(bridge), 10, lambda: log_of(bridge))
    here.broadcaster()
    eventually(lambda: log_of(bridge).count("bridge.connected") == 2, 10, lambda: log_of(bridge))


def test_a_wrong_token_is_waited_with_and_said_once(around):
    here = around(token="secret")
    here.broadcaster()
    bridge = here.bridge("bridge", replace(here.place.settings, token="wrong"))

    eventually(lambda: '"what": "broadcaster' in log_of(bridge), 20, lambda: log_of(bridge))
    eventually(lambda: "bridge.active" in log_of(bridge), 20, lambda: log_of(bridge))
    assert log_of(bridge).count("bridge.waiting") == 1
    assert "bridge.connected" not in log_of(bridge)


def test_no_servers_is_one_sentence(spawn):
    bridge = spawn("bridge", ["python", "-m", "broadcaster.bridge"])
    eventually(lambda: not bridge.alive, 20)

    assert bridge.returncode == 1
    assert log_of(bridge).startswith("dedup: no servers: start them with 'dedup up'")
    assert len(log_of(bridge).splitlines()) == 1
