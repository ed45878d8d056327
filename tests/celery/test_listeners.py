"""Listeners as pytest-celery's workers: who wins, who skips, and what happens when one of them or the broker goes."""

import time
from collections import Counter
from typing import Any

import kombu

from app.naming import RECOVERY_QUEUE
from tests.celery.setup import DedupTestSetup
from tests.support.system import events
from tests.support.waiting import eventually
from workers.tally import counts

NAMES = {"listener-1", "listener-2", "listener-3"}


def total(setup: DedupTestSetup, what: str) -> int:
    """How many copies all listeners have won, skipped or failed."""
    return sum(listener[what] for listener in setup.listeners().values())


def test_workers_are_listeners_and_each_event_has_one_winner(celery_setup: DedupTestSetup):
    """G2: each of three workers gets every event on a queue of its own; one wins it, two skip it."""
    assert celery_setup.ready(control=True)
    queues = celery_setup.app.control.inspect(timeout=2).active_queues()
    assert {worker.hostname() for worker in celery_setup.worker_cluster} == queues.keys()
    for worker in celery_setup.worker_cluster:
        assert {queue["name"] for queue in queues[worker.hostname()]} == {worker.worker_queue, RECOVERY_QUEUE}

    eventually(lambda: total(celery_setup, "won") == celery_setup.ledger.count_documents({}), 10, celery_setup.listeners)
    won, skipped = total(celery_setup, "won"), total(celery_setup, "skipped")

    keys = celery_setup.accept(events(300), per_request=100)

    celery_setup.await_finished()
    eventually(lambda: total(celery_setup, "won") == won + 300, 10, celery_setup.listeners)
    eventually(lambda: total(celery_setup, "skipped") == skipped + 600, 10, celery_setup.listeners)
    celery_setup.audit()
    assert celery_setup.ledger.count_documents({"_id": {"$in": keys}}) == 300
    for worker in celery_setup.worker_cluster:
        worker.assert_log_exists("succeeded in")


def test_task_events_are_complete_and_share_messages(celery_setup: DedupTestSetup):
    """What Flower hears: of each copy that it came, began and how it ended, in far fewer messages than events."""
    messages: list[list[dict[str, Any]]] = []
    keys: list[str] = []
    ends = ("task-succeeded", "task-skipped")

    def ours() -> list[list[dict[str, Any]]]:
        return [told for message in messages if (told := [one for one in message if any(key in one.get("uuid", "") for key in keys)])]

    def outcomes() -> Counter[str]:
        ended = (counts(event["result"]) for message in ours() for event in message if event["type"] in ends)
        return sum(map(Counter, ended), Counter())

    def note(body: Any, _: Any) -> None:
        messages.append(body if isinstance(body, list) else [body])

    with celery_setup.app.connection_for_read() as connection:
        receiver = celery_setup.app.events.Receiver(connection)
        with kombu.Consumer(connection, [receiver.queue], callbacks=[note], no_ack=True, accept=["json"]):
            connection.drain_events(timeout=20)  # a heartbeat is heard, so what comes now will be, too
            for event in events(30):
                keys += celery_setup.accept([event])
            until = time.monotonic() + 30
            while outcomes() != {"won": 30, "skipped": 30 * (len(NAMES) - 1)} and time.monotonic() < until:
                connection.drain_events(timeout=20)
            celery_setup.await_finished()

    assert outcomes() == {"won": 30, "skipped": 60}
    told = Counter(event["type"] for message in ours() for event in message)
    assert told["task-received"] == told["task-started"] == sum(told[end] for end in ends), told
    assert len(ours()) <= told.total() / 2, (len(ours()), told)


def test_a_killed_worker_loses_nothing_and_comes_back(celery_setup: DedupTestSetup):
    """G1, G2: SIGKILL of a worker amid its events loses none and repeats none; restarted, it gets copies again."""
    worker = celery_setup.worker
    celery_setup.accept(events(440))
    celery_setup.accept(events(60, "fault.slow", ms=100))
    celery_setup.system.await_amid(worker.worker_name)

    worker.kill()
    assert worker.container.status == "exited"
    assert celery_setup.system.in_hand(worker.worker_name), "it died with events in hand"
    assert celery_setup.system.unfinished() > 0
    celery_setup.accept(events(500))
    celery_setup.await_finished()
    celery_setup.await_listeners(2)

    worker.restart()
    celery_setup.await_listeners(3)
    celery_setup.await_copies()
    celery_setup.audit()


def test_a_broker_that_restarts(celery_setup: DedupTestSetup):
    """G1, G2: the broker, which is also the claims' Redis, restarts amid the events; none is lost or repeated."""
    celery_setup.accept(events(440))
    celery_setup.accept(events(60, "fault.slow", ms=100))
    celery_setup.system.await_amid()

    celery_setup.broker.restart()
    assert celery_setup.system.unfinished() > 0, "it restarted amid the work"
    celery_setup.accept(events(500))

    celery_setup.await_finished()
    celery_setup.await_listeners(3)
    celery_setup.await_copies()
    celery_setup.audit()


def test_the_events_of_a_dead_winner_are_taken_over(celery_setup: DedupTestSetup):
    """G3, G4: a worker killed inside its handler's transaction leaves nothing behind, and another one takes its events over."""
    celery_setup.accept(events(3, "fault.gate"))
    dead = celery_setup.system.entered()
    (worker,) = (node for node in celery_setup.worker_cluster if node.worker_name == dead)

    worker.kill()
    celery_setup.system.open_gate()

    celery_setup.await_finished()
    celery_setup.audit()
    assert {document["listener"] for document in celery_setup.ledger.find({"type": "fault.gate"})} <= NAMES - {dead}
    assert any("claim.taken_over" in node.logs() for node in celery_setup.worker_cluster if node is not worker)


def test_retry_and_dead(celery_setup: DedupTestSetup):
    """G5: what raises once is tried again; what always raises, or says that it never can, is dead, beside neighbours that are not."""
    bad = [*events(1, "fault.mixed", do="raise"), *events(1, "fault.mixed", do="dead")]
    celery_setup.accept([*bad, *events(48, "fault.mixed", do="raise", times=1)])

    celery_setup.await_finished()
    celery_setup.audit(failed=2)
    dead = {failure["body"]["data"]["do"]: failure for failure in celery_setup.failures.find({"state": "dead"})}
    assert {do: failure["attempts"] for do, failure in dead.items()} == {"raise": 3, "dead": 1}
    assert {document["attempt"] for document in celery_setup.ledger.find({"type": "fault.mixed"})} == {2}
