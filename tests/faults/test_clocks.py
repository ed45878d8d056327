"""Clocks that disagree and jump: fault 23."""

from pathlib import Path

import pytest

from tests.support.system import ROOT, System, events

_SHIM = Path(__file__).parents[1] / "support" / "skewed_clock"


def _offset(seconds: int) -> dict[str, str]:
    """Environment of a process whose wall clock is off; monotonic time stays true."""
    return {"PYTHONPATH": f"{_SHIM}:{ROOT}", "TEST_CLOCK_OFFSET_S": str(seconds)}


@pytest.mark.parametrize("hours", [-2, 2])
def test_clocks_of_processes_disagree_by_hours(system: System, hours: int) -> None:
    """G1, G2, G4: bridge and one listener two hours off, a listener killed: all is processed once, and soon."""
    off = _offset(hours * 3600)
    system.start_broadcaster()
    system.start_bridge(env=off)
    system.start_listener("listener-1", env=off)
    system.start_listener("listener-2")
    system.await_listeners(2)
    system.accept(events(300))
    system.accept(events(3, "fault.gate"))
    dead = system.entered()
    system.listener(dead).kill()
    system.open_gate()
    system.accept([event | {"data": {"do": "raise", "times": 1}} for event in events(5, "fault.mixed")])
    system.await_finished(30)
    system.audit()


def test_batches_nobody_forwarded_are_found_whatever_the_clock_says(system: System) -> None:
    """G1: events accepted while the bridge was away are sent by a bridge whose clock is two hours behind."""
    off = _offset(-7200)
    system.start_broadcaster()
    system.accept(events(300))
    system.start_listener("listener-1")
    system.start_bridge(env=off)
    system.await_finished(30)
    system.audit()
