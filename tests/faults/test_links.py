"""What lies between broadcaster, bridge and broker is cut, or dies in between: faults 14, 15, 16, 17."""

import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.embedded.ports import free_port
from app.embedded.process import ManagedProcess
from tests.support.proxy import Proxy
from tests.support.system import System, events
from tests.support.waiting import eventually


@pytest.fixture
def link(system: System) -> Iterator[Proxy]:
    """A proxy before the broadcaster, which is not yet started."""
    with Proxy(system.settings.port) as made:
        yield made


def start_behind(link: Proxy, system: System, listeners: int) -> ManagedProcess:
    """The system, its bridge connected through the proxy."""
    system.start_broadcaster()
    bridge = system.start_bridge(env={"DEDUP_BROADCASTER_URL": f"http://127.0.0.1:{link.url_port}"})
    for number in range(1, listeners + 1):
        system.start_listener(f"listener-{number}")
    system.await_listeners(listeners)
    eventually(lambda: "bridge.connected" in said(bridge) and "bridge.active" in said(bridge), 20, bridge.log_tail)
    return bridge


def said(process: ManagedProcess) -> str:
    return process.log.read_text()


def listeners_said(folder: Path) -> str:
    return "".join(log.read_text() for log in folder.glob("listener-*.log"))


def test_bridge_killed_mid_fan_out(system: System) -> None:
    """G1: a bridge that dies between two listeners' copies leaves nothing unsent: another one's sweeper finds the rest."""
    broker = urlsplit(system.settings.broker_url)
    assert broker.port
    with Proxy(broker.port) as cable:
        through = system.settings.broker_url.replace(f":{broker.port}/", f":{cable.url_port}/")
        system.start_broadcaster()
        first = system.start_bridge("bridge-1", env={"DEDUP_BROKER_URL": through})
        for name in ("listener-1", "listener-2", "listener-3"):
            system.start_listener(name)
        system.await_listeners(3)
        eventually(lambda: "bridge.connected" in said(first) and "bridge.active" in said(first), 20, first.log_tail)
        system.await_fan_out("listener-1", "listener-2", "listener-3")
        before = listeners_said(system.folder).count("/listener-1] received")

        cable.stop_before = b"LPUSH\r\n$17\r\nevents.listener-2"
        for _ in range(10):
            system.accept(events(5))
        assert cable.stopped_at.wait(10), "the fan-out has begun"
        first.kill()
    system.start_bridge("bridge-2")
    system.await_finished()
    system.audit()
    received = [line for line in listeners_said(system.folder).splitlines() if " received" in line]
    assert sum("/listener-1]" in line for line in received) == before + 1, "the first listener had its copy of the first batch"
    assert any("+4/recovery]" in line for line in received), "the sweeper sent what was never fanned out"


def test_broadcaster_killed_after_accept_before_emit(system: System, link: Proxy) -> None:
    """G1: what a broadcaster acknowledged and told nobody is found by the sweeper, without any broadcaster."""
    bridge = start_behind(link, system, 2)
    link.swallow()
    system.accept(events(300))
    system.processes["broadcaster"].kill()
    link.cut()
    system.await_finished(20)
    system.audit()
    assert "batch.recovered" in said(bridge)
    assert "/listener-1]" not in listeners_said(system.folder), "no bridge heard of any of it"


def test_socket_link_cut_and_back(system: System, link: Proxy) -> None:
    """G1: events accepted while the link is cut are found; once it is back, events are fanned out as before."""
    bridge = start_behind(link, system, 2)
    link.cut()
    eventually(lambda: "the connection was lost" in said(bridge), 10, bridge.log_tail)
    system.accept(events(300))
    system.await_finished(20)
    assert "/listener-1]" not in listeners_said(system.folder)

    link.mend()
    eventually(lambda: said(bridge).count("bridge.connected") == 2, 15, bridge.log_tail)
    system.accept(events(200))
    system.await_finished(20)
    system.audit()
    assert "/listener-1]" in listeners_said(system.folder), "fanned out again"


def test_two_bridges_and_two_broadcasters_in_any_order(system: System) -> None:
    """G1, G2: of two bridges and two broadcasters one each may be killed amid the work, and come back."""
    other_port = free_port()
    urls = {"DEDUP_BROADCASTER_URL": f"http://127.0.0.1:{system.settings.port},http://127.0.0.1:{other_port}"}
    bridges = {name: system.start_bridge(name, env=urls) for name in ("bridge-1", "bridge-2")}
    system.start_listener("listener-1")
    system.start_broadcaster("broadcaster-1")
    first_url = system.url
    system.start_broadcaster("broadcaster-2", env={"DEDUP_PORT": str(other_port)})
    second_url = system.url
    system.start_listener("listener-2")
    system.await_listeners(2)
    eventually(lambda: all(said(bridge).count("bridge.connected") == 2 for bridge in bridges.values()), 20)
    active, standby = sorted(bridges.values(), key=lambda bridge: "bridge.active" not in said(bridge))
    assert "bridge.standby" in said(standby)

    def feed(url: str) -> None:
        system.url = url
        system.accept(events(400), per_request=50)

    feed(first_url)
    feeding = threading.Thread(target=feed, args=(second_url,))
    feeding.start()
    active.kill()
    feeding.join(30)
    system.processes["broadcaster-1"].kill()
    feed(second_url)
    eventually(lambda: "bridge.active" in said(standby), 10, standby.log_tail)
    system.start_bridge("bridge-3", env=urls)
    standby.kill()
    feed(second_url)
    system.await_finished()
    system.audit()
