"""The sweeper on real servers. Its clock is the test's, so that no grace has to be waited for; leases are Redis' own."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from app.errors import InvalidEvent
from app.naming import RECOVERY_QUEUE, queue_of
from app.presence import remember_listener
from app.retiring import retire_silent
from app.stores.failures import COUNTS, Origin, Problem
from app.stores.inbox import Inbox
from app.stores.pauses import Pauses
from app.stores.records import utc_now
from broadcaster.sending import Outgoing, Sender
from broadcaster.sweeper.sweeper import Report, Sweeper
from tests.support.bridging import Place, entry, keys_of
from tests.support.clock import Clock
from tests.support.waiting import eventually

GRACE_S = 2.0


class Swept:
    """A sweeper, and the clock that it believes."""

    def __init__(self, place: Place, clock: Callable[[], float] | None = None) -> None:
        self.place = place
        self.clock = Clock()
        self.held: set[str] = set()
        self.sweeper = Sweeper(
            place.settings, place.db, place.redis, place.app, being_sent=self.held.__contains__, clock=clock or self.clock
        )

    def sweep(self, after_s: float = 0.0) -> Report:
        self.clock.now += after_s
        return self.sweeper.sweep(self.place.deployment)

    def over_a_grace(self) -> Report:
        """Two looks, a grace apart: what a batch needs to be found in no hands."""
        self.sweep()
        return self.sweep(after_s=GRACE_S)


@pytest.fixture
def make_place(make_settings) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def make(**overrides: Any) -> Place:
        places.append(Place(make_settings(**({"grace_ms": int(GRACE_S * 1000), "lease_ms": 600} | overrides))))
        return places[-1]

    yield make
    for place in places:
        place.close()


@pytest.fixture
def place(make_place) -> Place:
    return make_place()


@pytest.fixture
def swept(place) -> Iterator[Swept]:
    made = Swept(place)
    yield made
    made.sweeper.close()


def origin(place: Place, batch: str | None = "b", token: int = 1) -> Origin:
    return Origin(batch=batch, accepted_at=utc_now(), listener="l", token=token)


def claim(place: Place, *keys: str, lease_ms: int = 60_000, digest: str = "1d", claim_id: str = "c") -> None:
    place.claims.claim(list(keys), [digest] * len(keys), claim_id=claim_id, owner="l", lease_ms=lease_ms)


def take_all(place: Place, queue: str) -> None:
    place.broker.delete(queue)


# ------------------------------------------------------------------------------------------------- never forwarded


def test_what_was_never_forwarded_is_sent_once_after_the_grace(place, swept):
    place.beat("listener-1", "listener-2")
    batch = place.accept("a", "b")

    assert swept.sweep().recovered == 0
    assert swept.sweep(after_s=GRACE_S - 0.1).recovered == 0
    report = swept.sweep(after_s=0.1)

    assert (report.recovered, report.recovered_events) == (1, 2)
    [sent] = place.queue(RECOVERY_QUEUE)
    assert sent.delivery.keys == ["a", "b"]
    assert (sent.delivery.batch, sent.delivery.seq, sent.delivery.forwards, sent.delivery.deployment) == (batch, 0, 1, place.deployment)
    assert sent.id == "a+1/recovery"
    assert place.of("listener-1") == []
    head = place.head(batch)
    assert head is not None
    assert (head["seq"], head["forwards"]) == (0, 1)
    assert swept.sweep(after_s=60).recovered == 0, "its copy still waits in the queue"


def test_an_old_batch_need_not_wait_for_a_sweeper_that_has_just_begun(place, swept):
    place.beat("listener-1")
    place.accept("a", at=utc_now() - timedelta(seconds=60))

    assert swept.sweep().recovered == 1


def test_nothing_is_sent_while_no_listener_lives(place, swept):
    place.accept("a", at=utc_now() - timedelta(seconds=60))

    swept.over_a_grace()
    assert place.broker.keys("*") == []


def test_what_the_forwarder_of_this_process_has_in_hand_is_left_to_it(place, swept):
    place.beat("listener-1")
    batch = place.accept("a", at=utc_now() - timedelta(seconds=60))
    swept.held.add(batch)
    swept.over_a_grace()
    assert place.queue(RECOVERY_QUEUE) == []

    swept.held.clear()
    assert swept.sweep().recovered == 1


def test_a_batch_of_a_newer_version_is_left_alone(place, swept):
    place.beat("listener-1")
    batch = place.accept("a", at=utc_now() - timedelta(seconds=60))
    place.db["inbox"].update_one({"_id": batch}, {"$set": {"v": 99}})

    swept.over_a_grace()
    assert place.queue(RECOVERY_QUEUE) == []
    assert place.head(batch) is not None


# --------------------------------------------------------------------------------------------------------- fanned out


def fan_out(place: Place, batch: str, seq: int, *listeners: str) -> None:
    """As the forwarder does it."""
    sender = Sender(place.app)
    message = place.announced(batch) | {"deployment": place.deployment, "seq": seq, "forwards": 1}
    sender.send([Outgoing(queue=queue_of(name), task_id=f"{batch}/{name}", message=message) for name in listeners])
    sender.close()
    place.inbox.mark_forwarded([(batch, seq)])


def test_a_batch_that_waits_in_a_queue_is_in_hands(place, swept):
    place.beat("listener-1", "listener-2")
    fan_out(place, place.accept("a"), 5, "listener-1", "listener-2")

    assert swept.over_a_grace().recovered == 0
    assert swept.sweep(after_s=600).recovered == 0


def test_g1_a_broker_that_lost_everything_is_made_up_for(place, swept):
    """G1: the copies are gone with the broker; the batch is sent again."""
    place.beat("listener-1", "listener-2")
    batch = place.accept("a")
    fan_out(place, batch, 5, "listener-1", "listener-2")
    swept.sweep()
    place.broker.flushdb()

    assert swept.sweep(after_s=1).recovered == 0
    assert swept.sweep(after_s=GRACE_S).recovered == 1
    [sent] = place.queue(RECOVERY_QUEUE)
    assert (sent.id, sent.delivery.forwards) == ("a/recovery~2", 2)

    take_all(place, RECOVERY_QUEUE)
    assert swept.sweep(after_s=1).recovered == 0
    assert swept.sweep(after_s=GRACE_S).recovered == 1, "and that copy was lost, too"


def test_g1_under_traffic_that_never_pauses(place, swept):
    """G1: every listener has received later batches and still has some in its queue; this one they have left behind."""
    place.beat("listener-1", "listener-2", seq=6)
    behind, later = place.accept("a"), place.accept("b")
    place.inbox.mark_forwarded([(behind, 5)])
    fan_out(place, later, 7, "listener-1", "listener-2")

    assert swept.over_a_grace().recovered == 1
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["a"]]


def test_a_live_claim_is_somebodys_hand_until_its_lease_runs_out(place, swept):
    place.beat("listener-1", seq=6)
    batch = place.accept("a", "b")
    place.inbox.mark_forwarded([(batch, 5)])
    claim(place, "a", "b", lease_ms=1_500)

    assert swept.over_a_grace().recovered == 0
    eventually(lambda: swept.sweep().recovered == 1, 5, "the leases to run out")
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["a", "b"]]


def test_beside_a_live_claim_only_what_another_death_has_locked_is_sent(place, swept):
    place.beat("listener-1", seq=6)
    batch = place.accept("alive", "dead", "unclaimed")
    place.inbox.mark_forwarded([(batch, 5)])
    claim(place, "alive")
    claim(place, "dead", lease_ms=1, claim_id="d")

    eventually(lambda: swept.sweep(after_s=GRACE_S).recovered == 1, 3, "the lease to run out")
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["dead"]]


def test_g4_a_slow_listener_does_not_hold_up_what_a_dead_one_locked(place, swept):
    """G4: one listener still has its copy in its queue, the other took its own, claimed, and died."""
    place.beat("fast", seq=6)
    place.beat("slow", seq=4)
    batch = place.accept("a")
    fan_out(place, batch, 5, "slow")
    claim(place, "a", lease_ms=1)

    assert swept.over_a_grace().recovered == 1


def test_g4_not_even_where_it_holds_very_many(place, swept):
    """G4: only some are looked at in one sweep, and not always the same."""
    place.beat("fast", seq=60)
    place.beat("slow", seq=4)
    for number in range(25):
        fan_out(place, place.accept(f"k{number}", alone=True), 5 + number, "slow")
        claim(place, f"k{number}", lease_ms=60_000 if number < 24 else 1)
    assert swept.over_a_grace().recovered == 0, "the oldest first, which are in live hands"
    assert swept.sweep().recovered == 1
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["k24"]]


def test_a_listener_that_fell_silent_is_waited_for_no_longer_than_a_lease(make_place):
    place = make_place(lease_ms=600, heartbeat_ms=100, listener_grace_s=60)
    swept = Swept(place, clock=time.monotonic)
    place.beat("dead")

    def listeners() -> int:
        place.beat("alive")
        return swept.sweep().listeners

    assert listeners() == 2
    eventually(lambda: listeners() == 1, 5, "the dead one to be given up")
    swept.sweeper.close()


def test_a_lost_recovery_copy_is_missed_although_the_queue_is_never_empty(place, swept):
    place.beat("listener-1")
    for key in ("lost", "waits"):
        place.accept(key, at=utc_now() - timedelta(seconds=60), alone=True)
    assert swept.sweep().recovered == 2
    place.broker.rpop(RECOVERY_QUEUE)

    assert swept.over_a_grace().recovered == 1
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["waits"], ["lost"]]


def test_small_batches_share_copies_of_which_each_listener_can_have_some(place, swept):
    place.beat("listener-1")
    at = utc_now() - timedelta(seconds=60)
    batches = [place.accept(f"k{number}", at=at) for number in range(8)]
    again = place.accept("k1", at=at)
    other = place.accept("k1", digest="2d", at=at)

    report = swept.sweep()

    assert report.recovered == 10
    sent = place.queue(RECOVERY_QUEUE)
    assert keys_of(sent) == [["k0", "k1"], ["k2", "k3"], ["k4", "k5"], ["k6", "k7"], ["k1"]]
    assert [s.id for s in sent][:2] == ["k0+1/recovery", "k2+1/recovery"]
    assert [(p.batch, p.events) for p in sent[0].delivery.batches] == [(batches[0], 1), (batches[1], 1), (again, 0)], (
        "one event of two batches"
    )
    assert sent[4].delivery.batch == other, "a claim is of one content"
    for batch in (*batches, again, other):
        head = place.head(batch)
        assert head is not None
        assert (head["forwards"], head["seq"]) == (1, 0)
    assert swept.over_a_grace().recovered == 0, "all wait in the queue"


def test_g1_a_lost_copy_of_several_batches_is_missed(place, swept):
    """G1: each of them is sent again."""
    place.beat("listener-1")
    for number in range(8):
        place.accept(f"k{number}", at=utc_now() - timedelta(seconds=60))
    assert swept.sweep().recovered == 8
    take_all(place, RECOVERY_QUEUE)

    assert swept.over_a_grace().recovered == 8
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["k0", "k1"], ["k2", "k3"], ["k4", "k5"], ["k6", "k7"]]


@pytest.mark.parametrize("by", ["fan-out", "recovery"])
def test_g5_batches_of_a_delivery_are_in_the_hands_of_whoever_works_on_one_of_them(place, swept, by):
    """G5: a listener that comes to them slice by slice makes nobody a suspect."""
    place.beat("listener-1", seq=100)
    batches = [place.accept(f"k{number}", at=utc_now() - timedelta(seconds=60)) for number in range(8)]
    if by == "fan-out":
        place.inbox.mark_forwarded([(batch, 90) for batch in batches])
    else:
        assert swept.sweep().recovered == 8
        take_all(place, RECOVERY_QUEUE)
    claim(place, "k0", "k2", "k4", "k6")

    assert [swept.sweep(after_s=1).recovered for _ in range(12)] == [0] * 12

    claim(place, "k1", lease_ms=1, claim_id="dead")
    eventually(lambda: swept.sweep(after_s=1).recovered == 1, 10, "what another one's death has locked to be sent alone")


@pytest.mark.parametrize(("forwards", "together"), [(1, 2), (2, 1)])
def test_g5_what_was_sent_twice_before_travels_alone(place, swept, forwards, together):
    """G5: it may hold an event that kills whoever has it; its neighbours are not to wait for it."""
    place.beat("listener-1")
    for number in range(8):
        place.accept(f"k{number}", at=utc_now() - timedelta(seconds=60))
    place.db["inbox"].update_many({}, {"$set": {"forwards": forwards, "seq": 0}})

    eventually(lambda: swept.sweep(after_s=GRACE_S).recovered == 8, 10, "all to be sent again")

    assert [len(keys) for keys in keys_of(place.queue(RECOVERY_QUEUE))] == [together] * (8 // together)
    assert {one.delivery.forwards for one in place.queue(RECOVERY_QUEUE)} == {forwards + 1}


# ----------------------------------------------------------------------------------------------------------- finished


def test_finished_batches_are_removed_and_only_the_rest_of_others_is_sent(place, swept):
    place.beat("listener-1")
    old = utc_now() - timedelta(seconds=60)
    finished, half = place.accept("a", "b", at=old), place.accept("c", "d", at=old)
    place.commit("a", "c")
    place.failures.record_final([(entry("b"), origin(place), "conflict", {"other_digest": "1x"})])

    report = swept.sweep()

    assert (report.removed, report.recovered, report.recovered_events) == (1, 1, 1)
    assert place.head(finished) is None
    assert place.head(half) is not None
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["d"]]


def test_another_digest_of_a_committed_key_is_not_finished(place, swept):
    place.beat("listener-1")
    batch = place.accept("a", digest="1other", at=utc_now() - timedelta(seconds=60))
    place.commit("a")

    assert swept.sweep().recovered == 1
    assert place.head(batch) is not None


def test_a_mark_of_done_that_mongodb_refutes_is_deleted_and_the_event_sent(place, swept):
    place.beat("listener-1")
    place.accept("a", "b", at=utc_now() - timedelta(seconds=60))
    claim(place, "a", "b")
    place.claims.complete(["a"], ["1d"], claim_id="c", owner="l")
    place.claims.release(["b"], claim_id="c")

    report = swept.sweep()

    assert (report.forgotten, report.recovered) == (1, 1)
    assert place.claims.inspect(["a"]) == [None]
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["a", "b"]]


def test_g1_redis_never_justifies_a_removal(place, swept):
    """G1: everything is marked done, the ledger knows nothing."""
    place.beat("listener-1")
    batch = place.accept("a", at=utc_now() - timedelta(seconds=60))
    claim(place, "a")
    place.claims.complete(["a"], ["1d"], claim_id="c", owner="l")

    assert swept.sweep().removed == 0
    assert place.head(batch) is not None


# ------------------------------------------------------------------------------------------------------------- bounds


def test_g7_the_recovery_queue_is_filled_to_its_mark_oldest_first(make_place):
    """G7: the rest waits in the inbox."""
    place = make_place(queue_high_water=3)
    swept = Swept(place)
    place.beat("listener-1")
    for number in range(5):
        place.accept(f"k{number}", at=utc_now() - timedelta(seconds=60 - number), alone=True)

    report = swept.sweep()
    assert (report.recovered, report.more) == (3, True)
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["k0"], ["k1"], ["k2"]]
    assert swept.sweep().recovered == 0

    place.broker.rpop(RECOVERY_QUEUE)
    assert swept.sweep().recovered == 1
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["k1"], ["k2"], ["k3"]]
    swept.sweeper.close()


def test_more_batches_than_are_looked_at_in_one_sweep_are_gone_through_soon(make_place, monkeypatch):
    monkeypatch.setattr("broadcaster.sweeper.backlog._HEADS", 3)
    place = make_place(queue_high_water=1)
    monkeypatch.setattr("broadcaster.sweeper.backlog._COPIES_PER_LISTENER", 1)
    swept = Swept(place)
    place.beat("listener-1")
    for number in range(5):
        place.accept(f"k{number}", at=utc_now() - timedelta(seconds=60))

    report = swept.sweep()
    assert (report.recovered, report.more) == (3, True)
    take_all(place, RECOVERY_QUEUE)
    place.commit("k0", "k1", "k2")
    report = swept.over_a_grace()
    assert (report.removed, report.more) == (3, True)
    report = swept.sweep()
    assert (report.recovered, report.more) == (2, False)
    swept.sweeper.close()


def test_what_is_plainly_in_hands_is_not_read(place, swept, monkeypatch):
    place.beat("listener-1", seq=0)
    for number in range(20):
        fan_out(place, place.accept(f"k{number}"), number + 1, "listener-1")
    swept.over_a_grace()

    read: list[str] = []
    monkeypatch.setattr(Inbox, "entries_of", lambda _inbox, batches: read.extend(batches) or {})
    assert swept.sweep(after_s=1).waiting == 20
    assert read == []


# ----------------------------------------------------------------------------------------------------------- failures


def failed(
    place: Place, key: str, *, delay_ms: int | None = 0, batch: str | None = "b", at: Any = None, digest: str = "1d", kib: int = 0
) -> None:
    where = Origin(batch=batch, accepted_at=at or utc_now(), listener="l", token=1)
    assert place.failures.record_attempt(entry(key, digest, kib=kib), where, Problem("it raised"), delay_ms=delay_ms, ended_start=False)


def test_due_failures_travel_together_and_suspects_alone(place, swept):
    place.beat("listener-1")
    at = utc_now()
    for key in ("a", "b"):
        failed(place, key, at=at)
    failed(place, "later", delay_ms=60_000)
    failed(place, "dead", delay_ms=None)
    for key in ("s", "t"):
        assert place.failures.record_start(entry(key), origin(place), due_ms=0) is not None

    report = swept.sweep()

    assert report.retried == 4
    sent = place.queue(RECOVERY_QUEUE)
    assert sorted(keys_of(sent)) == [["a", "b"], ["s"], ["t"]]
    assert {(s.delivery.batch, s.delivery.seq, s.delivery.forwards) for s in sent} == {(None, 0, 1)}
    assert {s.delivery.accepted_ms for s in sent if s.delivery.keys == ["a", "b"]} == {int(at.timestamp() * 1000)}
    assert len({s.id for s in sent}) == 3
    assert swept.sweep().retried == 0, "they were put off"


def test_a_failure_that_failed_again_is_sent_when_it_is_due_again(place, swept):
    place.beat("listener-1")
    failed(place, "a")
    assert swept.sweep().retried == 1

    failed(place, "a", delay_ms=0)

    assert swept.sweep().retried == 1
    assert [s.id for s in place.queue(RECOVERY_QUEUE)] == ["a/retry~2", "a/retry~3"]


def test_a_retry_that_waits_in_a_long_queue_is_not_sent_again(make_place):
    """Its time is over, but nobody has had it: a second copy would only make the queue longer."""
    place = make_place(grace_ms=50, lease_ms=300)
    swept = Swept(place)
    place.beat("listener-1")
    failed(place, "a")
    assert swept.sweep().retried == 1
    eventually(lambda: place.failures.due(10), 10, "that its time is over")
    assert swept.sweep().retried == 0
    place.broker.rpop(RECOVERY_QUEUE)
    eventually(lambda: swept.sweep().retried == 1, 10, "that it is sent again, for its copy has left the queue")
    place.broker.delete(RECOVERY_QUEUE)
    eventually(lambda: swept.sweep().retried == 1, 10, "the same when the broker lost the queue")
    swept.sweeper.close()


@pytest.mark.parametrize("taken", [1, 2])
def test_g5_a_backlog_does_not_hold_up_retries_nor_retries_the_backlog(make_place, taken: int):
    """G5: the recovery queue is short, and always full; both come through it, however little is taken from it at a time."""
    place = make_place(queue_high_water=4)
    swept = Swept(place)
    place.beat("listener-1")
    for number in range(40):
        place.accept(f"k{number}", at=utc_now() - timedelta(seconds=60), alone=True)
        failed(place, f"f{number}", at=utc_now() - timedelta(seconds=number), kib=2_100)
    seen: list[str] = []
    for _ in range(16 // taken):
        swept.sweep()
        for _ in range(taken):
            (keys,) = keys_of(place.queue(RECOVERY_QUEUE)[:1])
            seen += keys
            place.broker.rpop(RECOVERY_QUEUE)
    retried = sum(key.startswith("f") for key in seen)
    assert 4 <= retried <= 12
    swept.sweeper.close()


def test_failures_of_different_batches_share_a_delivery_that_tells_them_apart(place, swept):
    place.beat("listener-1")
    at = utc_now()
    failed(place, "a", batch="b1", at=at)
    failed(place, "b", batch="b2", at=at - timedelta(hours=1))

    swept.sweep()

    [sent] = place.queue(RECOVERY_QUEUE)
    assert sent.delivery.keys == ["b", "a"]
    assert [sent.delivery.part_of(key).accepted_at for key in ("a", "b")] == [at, at - timedelta(hours=1)]
    assert {part.batch for part in sent.delivery.batches} == {None}


def test_g5_two_contents_of_one_key_and_many_bytes_do_not_share_a_delivery(place, swept):
    """G5: a claim is of one content; and a winner holds all bodies of a delivery in memory."""
    place.beat("listener-1")
    failed(place, "a", digest="1d")
    failed(place, "a", digest="2d")
    for key in ("x", "y", "z"):
        failed(place, key, kib=1_500)

    swept.sweep()

    assert sorted(keys_of(place.queue(RECOVERY_QUEUE))) == [["a", "x", "y"], ["a", "z"]]


def test_a_due_failure_under_a_live_claim_waits(place, swept):
    place.beat("listener-1")
    failed(place, "a")
    claim(place, "a")

    assert swept.sweep().retried == 0


def test_what_the_ledger_has_is_no_failure(place, swept):
    place.beat("listener-1")
    failed(place, "due")
    failed(place, "dead", delay_ms=None)
    failed(place, "real", delay_ms=None)
    place.failures.record_final([(entry("conflict", "1x"), origin(place), "conflict", {"other_digest": "1d"})])
    place.commit("due", "dead", "conflict")

    assert swept.sweep().refuted == 1
    assert place.failures.counts() == {"dead": 2, "conflict": 1}
    assert swept.sweep(after_s=60).refuted == 1
    assert place.failures.counts() == {"dead": 1, "conflict": 1}, "the conflict is about another digest"

    place.db["events"].update_one({"_id": "conflict"}, {"$set": {"rejected": ["1x"]}})
    assert swept.sweep(after_s=60).refuted == 1
    assert place.failures.counts() == {"dead": 1}


def test_g7_failures_are_counted_without_reading_them(place):
    """At their limit they are many and long, and every look at the numbers counts them."""
    place.failures.ensure_indexes()
    failed(place, "a")
    failed(place, "b", delay_ms=None)
    plan = place.db.command("explain", {"aggregate": "failures", "pipeline": COUNTS, "cursor": {}}, verbosity="queryPlanner")
    assert not {"COLLSCAN", "FETCH"} & set(re.findall(r"[A-Z]+", str(plan)))
    assert place.failures.counts() == {"retrying": 1, "dead": 1}


# ------------------------------------------------------------------------------------------------------------- pauses


@pytest.fixture
def pauses(place, monkeypatch) -> Pauses:
    """Seen by the sweeper at once, not after a second."""
    monkeypatch.setattr("app.stores.pauses.REFRESH_S", -1.0)
    return Pauses(place.db)


def test_paused_types_are_parked_and_go_on_when_they_are_resumed(place, swept, pauses):
    place.beat("listener-1")
    old = utc_now() - timedelta(seconds=60)
    place.accept("a", "b", at=old)
    place.accept("c", "d", at=old, types={"d": "u"})
    failed(place, "f")
    pauses.pause("t")

    report = swept.sweep()
    assert (report.recovered, report.parked, report.retried) == (1, 0, 0)
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["d"]]
    assert swept.sweep().parked == 1

    pauses.resume("t")
    assert swept.sweep(after_s=GRACE_S).recovered == 1
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["d"], ["a", "b"], ["f"]]


def test_a_pause_that_matches_no_type_stops_nothing(place, swept, pauses):
    """An earlier release took the empty one, and no sweep went through any more."""
    place.beat("listener-1")
    place.accept("a", at=utc_now() - timedelta(seconds=60))
    place.db["meta"].insert_one({"_id": "paused", "v": 1, "types": [""]})
    assert swept.sweep().recovered == 1


@pytest.mark.parametrize(("type", "why"), [("", "is empty"), ("order.*", "a pattern cannot be paused"), ("a\nb", "control character")])
def test_what_is_no_type_is_not_paused(place, type, why):
    with pytest.raises(InvalidEvent, match=why):
        Pauses(place.db).pause(type)
    assert place.db.meta.find_one({"_id": "paused"}) is None


def test_g5_failures_of_a_paused_type_do_not_hide_others(place, swept, pauses, monkeypatch):
    monkeypatch.setattr("broadcaster.sweeper.retries._DUE_PER_SWEEP", 2)
    place.beat("listener-1")
    for number in range(3):
        failed(place, f"p{number}")
    pauses.pause("t")
    place.failures.record_attempt(entry("other", kind="u"), origin(place), Problem("boom"), delay_ms=0, ended_start=False)

    assert swept.sweep().retried == 1
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["other"]]


def test_parked_batches_do_not_hide_others(make_place, monkeypatch):
    monkeypatch.setattr("broadcaster.sweeper.backlog._HEADS", 2)
    place = make_place(queue_high_water=1)
    swept, pauses = Swept(place), Pauses(place.db)
    place.beat("listener-1")
    old = utc_now() - timedelta(seconds=60)
    pauses.pause("t")
    for number in range(8):
        place.accept(f"p{number}", at=old)
    place.accept("other", at=old, types={"other": "u"})

    eventually(lambda: swept.sweep().recovered == 1, 5)
    assert keys_of(place.queue(RECOVERY_QUEUE)) == [["other"]]
    swept.sweeper.close()


# ----------------------------------------------------------------------------------------- the deployment, and silence


def test_a_dropped_database_is_another_deployment(place, swept):
    place.beat("listener-1")
    place.accept("a", at=utc_now() - timedelta(seconds=60))
    claim(place, "a")
    before = place.deployment
    assert swept.sweep().recovered == 0, "the claim lives"

    place.db.client.drop_database(place.db.name)
    place.accept("a", at=utc_now() - timedelta(seconds=60))
    place.beat("listener-1")

    assert swept.sweep().recovered == 1, "the claim was the other deployment's"
    assert place.deployment != before
    assert [s.delivery.deployment for s in place.queue(RECOVERY_QUEUE)] == [place.deployment]


def test_a_sweep_says_when_it_succeeded(place, swept):
    assert place.presence.swept_before_ms() is None
    swept.sweep()
    said = place.presence.swept_before_ms()
    assert said is not None
    assert said < 5_000


def test_a_listener_that_is_silent_for_long_is_retired_with_its_queue(make_place):
    place = make_place(listener_grace_s=1, listener_retire_s=2, heartbeat_ms=100)
    swept = Swept(place)
    place.beat("gone", "stays")
    for name in ("gone", "stays"):
        remember_listener(place.db, name)
        fan_out(place, place.accept(name), 1, name)
    swept.sweep()

    def retired() -> list[str]:
        place.beat("stays")
        return retire_silent(place.db, place.presence, swept.sweeper._sender, place.settings)

    assert retired() == []
    assert eventually(retired, 5, "the silent one to be retired") == ["gone"]
    assert place.of("gone") == []
    assert len(place.of("stays")) == 1
    assert [d["_id"] for d in place.db["listeners"].find()] == ["stays"]
    swept.sweeper.close()


def test_a_listener_that_redis_forgot_is_retired_by_mongodbs_memory(make_place):
    place = make_place(listener_grace_s=1, listener_retire_s=2, heartbeat_ms=100)
    swept = Swept(place)
    remember_listener(place.db, "gone")
    place.db["listeners"].update_one({"_id": "gone"}, {"$set": {"last_seen_at": utc_now() - timedelta(seconds=10)}})

    assert swept.sweep().retired == 0, "it is looked for now and then"
    assert swept.sweep(after_s=30).retired == 1
    assert list(place.db["listeners"].find()) == []
    swept.sweeper.close()


def test_it_can_begin_anew_before_it_has_begun(place):
    swept = Swept(place)
    swept.sweeper.restart()
    place.beat("listener-1")
    place.accept("a", at=utc_now() - timedelta(seconds=60))

    assert swept.sweep().recovered == 1
    swept.sweeper.close()
