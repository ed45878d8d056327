"""Listeners that start, stop, stand still and share a name: faults 11, 13, 24."""

import re
from collections import Counter
from contextlib import closing
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from app.naming import RECOVERY_QUEUE, queue_of
from app.redis_client import connect
from tests.support.system import System, events
from tests.support.waiting import eventually


def broker_of(system: System) -> "Redis[bytes]":
    return Redis.from_url(system.settings.broker_url)


def heard(system: System) -> dict[str, dict[str, Any]]:
    """The listeners that live, by name, as the broadcaster sees them."""
    return {listener["name"]: listener for listener in system.stats()["listeners"]}


def test_no_listener_lives(system: System) -> None:
    """G1, G7: without a listener nothing is forwarded; what was accepted waits for the first one that starts."""
    system.start_broadcaster()
    system.start_bridge()
    system.accept(events(600))
    with broker_of(system) as broker:
        eventually(lambda: "bridge.active" in system.processes["bridge"].log.read_text(), 10)
        system.accept(events(100))
        assert broker.keys("events.*") == []
    assert all(head["forwards"] == 0 for head in system.db.inbox.find())
    system.start_listener("listener-1")
    system.await_finished()
    system.audit()


def test_away_for_longer_than_its_grace_and_back(system: System) -> None:
    """G7: a listener that stands still gets no more copies after its grace; going on, it takes up its queue."""
    system.up(2)
    system.await_fan_out("listener-1", "listener-2")
    paused = system.listener("listener-2")
    paused.pause()
    system.accept(events(50), per_request=10)  # the first copy goes to whoever waits at the queue, awake or not
    system.await_finished(20)
    with broker_of(system) as broker:
        eventually(lambda: broker.llen(queue_of("listener-2")) > 0, 5)
        eventually(lambda: "listener-2" not in heard(system), 10)
        eventually(lambda: _has_settled(system), 5)
        waiting = broker.llen(queue_of("listener-2"))
        for _ in range(5):
            system.accept(events(20))
        system.await_finished(20)
        assert broker.llen(queue_of("listener-2")) == waiting

        paused.resume()
        eventually(lambda: broker.llen(queue_of("listener-2")) == 0 and "listener-2" in heard(system), 10)
    system.accept(events(50))
    system.await_finished()
    system.audit()


def _has_settled(system: System) -> bool:
    """Whether the bridge, too, has forgotten listener-2: it gets none of what is accepted now."""
    with broker_of(system) as broker:
        before = broker.llen(queue_of("listener-2"))
        system.accept(events(1))
        system.await_finished(10)
        return bool(broker.llen(queue_of("listener-2")) == before)


def test_two_workers_of_one_name_share_its_queue(system: System) -> None:
    """G1, G2: two nodes of one listener share one copy of every event; one of them killed, the other goes on."""
    system.start_broadcaster()
    system.start_bridge()
    for node in ("a", "b"):
        system.start_listener("listener-1", node=node)
    eventually(lambda: len(heard(system).get("listener-1", {}).get("nodes", [])) == 2, 30, system.stats)
    system.await_fan_out("listener-1")
    before = system.db.events.count_documents({})
    system.accept(events(200, "fault.slow", ms=5), per_request=10)
    system.await_finished(20)
    system.audit()

    assert list(heard(system)) == ["listener-1"]
    won = eventually(lambda: (found := _won_by_node(system)).total() == before + 200 and found, 5, lambda: _won_by_node(system))
    assert min(won.values()) > 0, "both have worked"
    logs = "".join(system.processes[f"listener-1-{node}"].log.read_text() for node in "ab")
    more = [int(found) for found in re.findall(r"\+(\d+)/listener-1\] received", logs)]
    assert sum(more) + len(more) == 200, "one copy of each event, however many batches travelled together"

    system.accept(events(100, "fault.slow", ms=10), per_request=10)
    system.processes["listener-1-b"].kill()
    system.accept(events(100), per_request=10)
    system.await_finished(20)
    system.audit()


def _won_by_node(system: System) -> Counter[str]:
    return Counter({node["node"]: node["won"] for node in heard(system)["listener-1"]["nodes"]})


@pytest.mark.parametrize(("pool", "visibility_timeout_s"), [("prefork", 0), ("prefork", 300), ("solo", 0)])
def test_sigterm_finishes_the_slice_in_hand_and_gives_back_the_rest(system: System, pool: str, visibility_timeout_s: int) -> None:
    """G1, G2: a listener told to end is gone within a slice, not a delivery; the rest is done by others."""
    system.with_settings(visibility_timeout_s=visibility_timeout_s)
    system.start_broadcaster()
    system.start_bridge()
    stopping = system.start_listener("listener-1", "-P", pool)
    system.await_listeners(1)
    system.accept(events(200, "fault.slow", ms=100))  # 20 s of work in one delivery
    eventually(lambda: system.db.events.count_documents({}) > 0, 15, stopping.log_tail)

    assert stopping.terminate(deadline_s=15) == 0, stopping.log_tail()
    assert "delivery.given_back" in stopping.log.read_text()
    done = system.db.events.count_documents({})
    assert 0 < done < 100, "far from all: it waits for its slice, not for its delivery"
    with broker_of(system) as broker:
        assert broker.hlen("unacked") == broker.llen(queue_of("listener-1")) == 0, "its delivery is acknowledged"
    with closing(connect(system.settings)) as claims:
        assert len(claims.keys("dedup:{*}:[^=]*")) >= done, "done marks"
        held = [key for key in claims.keys("dedup:{*}:[^=]*") if (claims.get(key) or b"").startswith(b"P|")]
    assert held == [], "its claims are given back"

    system.start_listener("listener-2", "-c", "2")
    system.start_listener("listener-3", "-c", "2")
    system.await_finished()
    system.audit()
    assert all(d["attempt"] == 1 for d in system.db.events.find())


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_busy_listener_never_looks_dead(system: System, pool: str) -> None:
    """G2, G4: a handler that takes twice the listener's grace, in the main process itself, silences no heartbeat."""
    system.with_settings(listener_grace_s=2, max_handler_s=9.0)
    system.start_broadcaster()
    system.start_bridge()
    busy = system.start_listener("listener-1", "-P", pool)
    system.await_listeners(1)
    system.accept(events(1, "fault.slow", ms=4_500))
    silences: list[int] = []

    def finished() -> bool:
        found = heard(system)
        silences.append(found["listener-1"]["silent_ms"] if "listener-1" in found else 1_000_000)
        return system.db.events.count_documents({}) == 1

    eventually(finished, 15, busy.log_tail, every_s=0.1)
    assert len(silences) > 10
    assert max(silences) < 2_000, "never silent for its grace"
    system.await_finished(10)
    system.audit()
    assert system.db.events.find_one()["attempt"] == 1
    assert "taken_over" not in busy.log.read_text()


def test_connections_to_the_broker_are_cut_with_deliveries_in_hand(system: System) -> None:
    """G1, G2: a live listener puts back what four children have in hand, and none of its events runs twice."""
    system.start_broadcaster()
    system.start_bridge()
    listener = system.start_listener("listener-1", "-c", "4")
    system.await_listeners(1)
    for _ in range(4):
        system.accept(events(20, "fault.slow", ms=100))
    eventually(lambda: system.db.events.count_documents({"type": "fault.slow"}) > 0, 15)
    with broker_of(system) as broker:
        database = str(broker.connection_pool.connection_kwargs["db"])
        assert broker.llen(queue_of("listener-1")) == 0, "all are in hand"
        for client in broker.client_list():
            if client["db"] == database:
                broker.client_kill_filter(_id=client["id"])  # all but this one
    system.await_finished()
    system.audit()
    assert "Connection to broker lost" in listener.log.read_text()
    assert all(d["attempt"] == 1 for d in system.db.events.find())


def test_visibility_timeout_shorter_than_a_task(system: System) -> None:
    """G2: a delivery that the broker gives out again while its task runs is skipped, and harms nothing."""
    system.with_settings(visibility_timeout_s=3)
    system.up(1)
    system.await_fan_out("listener-1")
    system.accept(events(60, "fault.slow", ms=100))  # 6 s of work
    eventually(lambda: system.db.events.count_documents({"type": "fault.slow"}) > 0, 15)
    options = {"visibility_timeout": 3}
    with Celery(broker=system.settings.broker_url, broker_transport_options=options) as app, app.connection_for_read() as connection:

        def given_out_again() -> bool:
            """What each worker does by itself every minute or so."""
            connection.default_channel.qos.restore_visible(num=10, interval=1)
            return bool(connection.default_channel.client.llen(queue_of("listener-1")))

        eventually(given_out_again, 10, every_s=0.2)
    system.await_finished()
    system.audit()
    log = system.listener("listener-1").log
    eventually(lambda: log.read_text().count("+59/listener-1] received") == 2, 10, "the same delivery, received twice")
    assert all(d["attempt"] == 1 for d in system.db.events.find())
    with broker_of(system) as broker:
        eventually(lambda: broker.llen(queue_of("listener-1")) == broker.llen(RECOVERY_QUEUE) == broker.hlen("unacked") == 0, 10)
