"""A listener dies or stops: faults 1, 2, 3, 4, 12."""

import json
import os
import re
import signal

import pytest

from tests.support.system import System, events
from tests.support.waiting import eventually


def test_sigkill_of_a_listener_amid_2000_events(system: System) -> None:
    """G1, G2: a listener killed amid 2,000 events loses none and repeats none."""
    system.up(3)
    system.accept(events(940))
    system.accept(events(60, "fault.slow", ms=100))
    system.await_amid("listener-1")
    system.listener("listener-1").kill()
    assert system.in_hand("listener-1"), "it died with events in hand"
    assert system.unfinished() > 0
    system.accept(events(1_000))
    system.await_finished()
    system.audit()


def test_sigkill_of_a_listener_amid_single_events(system: System) -> None:
    """G1, G2: the same with events accepted one by one, of which several travel in one delivery."""
    system.up(3)
    system.processes["bridge"].pause()  # so that they wait for each other, however slowly the door takes them
    system.accept(events(150, "fault.slow", ms=40), per_request=1)
    system.processes["bridge"].resume()
    log = system.listener("listener-1").log
    eventually(lambda: re.search(r"\+\d+/listener-1\] received", log.read_text()), 20, "several batches of one sequence")
    system.await_amid("listener-1")
    system.listener("listener-1").kill()
    assert system.in_hand("listener-1"), "it died with events in hand"
    system.accept(events(150), per_request=1)
    system.await_finished()
    system.audit()
    assert len(system.db.events.distinct("batch")) == 300


@pytest.mark.parametrize("kind", ["fault.gate", "fault.gate.async"])
def test_sigkill_in_the_open_transaction(system: System, kind: str) -> None:
    """G2, G4: a winner killed inside its transaction leaves no effect, and does not hold its successor up."""
    system.up(2)
    system.accept(events(3, kind))
    dead = system.entered()
    system.listener(dead).kill()
    (system.folder / "gates" / f"entered-{dead}").unlink()
    system.open_gate()
    system.await_finished(20)
    system.audit()
    assert {d["listener"] for d in system.db.events.find()} == {"listener-1", "listener-2"} - {dead}


@pytest.mark.parametrize("kind", ["fault.gate", "fault.gate.async"])
def test_sigstop_past_the_lease_then_sigcont(system: System, kind: str) -> None:
    """G3: a winner paused past its lease loses to its successor, and its late commit changes nothing."""
    system.up(2)
    system.accept(events(3, kind))
    paused = system.entered()
    system.listener(paused).pause()
    (system.folder / "gates" / f"entered-{paused}").unlink()
    system.open_gate()
    system.await_finished(20)
    system.listener(paused).resume()
    system.accept(events(50))
    system.await_finished()
    system.audit()
    by = {d["_id"]: d["listener"] for d in system.db.events.find({"type": kind})}
    assert paused not in by.values()


def test_handler_slower_than_the_lease_is_left_alone(system: System) -> None:
    """G2: a living handler that outlasts its lease is renewed, not taken over."""
    system.up(2)
    system.accept(events(1, "fault.slow", ms=3_000))
    system.await_finished(20)
    system.audit()
    assert "taken_over" not in "".join(p.log.read_text() for p in system.processes.values())
    assert system.db.events.find_one()["attempt"] == 1


def test_all_listeners_killed_and_back(system: System) -> None:
    """G1: with every listener dead nothing is lost; when they come back, all is processed."""
    system.up(2)
    for name in ("listener-1", "listener-2"):
        system.listener(name).kill()
    system.accept(events(600))
    for name in ("listener-1", "listener-2"):
        system.restart_listener(name)
    system.await_finished()
    system.audit()


def test_single_events_that_waited_for_listeners_are_few_deliveries(system: System) -> None:
    """G1, G7: what was accepted one by one while no listener lived is sent together, and processed."""
    system.up(0)
    system.accept(events(200), per_request=1)
    system.start_listener("listener-1")
    system.await_finished()
    system.audit()
    sent = [json.loads(line) for line in system.processes["bridge"].log.read_text().splitlines() if '"batch.recovered"' in line]
    assert sum(said["batches"] for said in sent) >= 200
    assert sum(said["deliveries"] for said in sent) < 100


def test_child_of_the_pool_is_killed(system: System) -> None:
    """G1, G2: a pool child killed by the system's out-of-memory killer, say, is replaced, and its slice done by others."""
    system.up(2)
    system.accept(events(2, "fault.gate"))
    name = system.entered()
    os.kill(int((system.folder / "gates" / f"entered-{name}").read_text()), signal.SIGKILL)
    system.open_gate()
    system.await_finished(20)
    system.audit()
    assert eventually(lambda: system.listener(name).alive, 1)


def test_sigkill_after_the_commit_before_the_ack(private_system: System) -> None:
    """G2: a winner killed between its commit and its mark of done is followed by a skip, not by a second run."""
    system = private_system
    assert private_system.servers is not None
    system.up(2)
    system.accept(events(1, "fault.gate"))
    winner = system.entered()
    private_system.servers.valkey.pause()
    system.open_gate()
    eventually(lambda: system.db.events.count_documents({}) == 1, 10, "the commit")
    system.listener(winner).kill()
    private_system.servers.valkey.resume()
    system.await_finished(20)
    system.audit()
    assert system.db.events.find_one()["listener"] == winner
