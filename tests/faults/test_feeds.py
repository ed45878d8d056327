"""Foreign feeds when bridges die."""

import httpx

from app.embedded.ports import free_port
from app.embedded.process import ManagedProcess
from tests.support.system import ROOT, System
from tests.support.waiting import eventually


def test_two_bridges_on_one_feed(system: System) -> None:
    """G1, G2: both accept each event and it is processed once; one of them killed, the other misses nothing."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    foreign = system.spawn("foreign", ["python", "-m", "tests.support.foreign_server", str(port)], cwd=ROOT)
    system.start_broadcaster()
    argv = ["dedup", "bridge", "--from", url, "--event", "tick", "--type", "'fault.count'", "--key", "n", "--source", "'foreign'"]
    bridges: list[ManagedProcess] = [system.start_process(name, argv) for name in ("bridge-1", "bridge-2")]
    system.start_listener("listener-1")
    system.await_listeners(1)
    eventually(lambda: httpx.get(f"{url}/clients").json() == 2, 15, foreign.log_tail)

    def emit(numbers: range) -> None:
        payloads = [{"n": n} for n in numbers]
        httpx.post(f"{url}/emit", json={"event": "tick", "payloads": payloads}, timeout=20).raise_for_status()
        system.told |= {f"id~foreign~{p['n']}": p for p in payloads}

    emit(range(500))
    eventually(lambda: system.db.events.count_documents({}) == 500, 20, system.state)
    system.await_finished()
    eventually(lambda: [feed["accepted"] for feed in system.stats()["feeds"]] == [500, 500], 5, system.stats)
    emit(range(500, 700))
    bridges[0].kill()
    emit(range(700, 1_000))
    eventually(lambda: system.db.events.count_documents({}) == 1_000, 20, system.state)
    system.await_finished()
    system.audit()
    assert system.db.failures.count_documents({}) == 0
