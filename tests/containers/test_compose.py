"""docker-compose.yml with the project's image: fed, cut, killed and audited; plain, and with the profile ``redundant``."""

import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.support.compose import LEASE_MS, LISTENERS, SECOND, Stack
from tests.support.docker import ROOT, compose_program
from tests.support.waiting import eventually

both = pytest.mark.parametrize("stack", ["plain", "redundant"], indirect=True)
plain = pytest.mark.parametrize("stack", ["plain"], indirect=True)
redundant = pytest.mark.parametrize("stack", ["redundant"], indirect=True)

GRACE_S = {"broadcaster": 15, "bridge": 10, "flower": 10, "listener-1": 30, "valkey": 15, "mongo": 30}


@both
def test_2000_flights(stack: Stack):
    """G1, G2: 2,000 flights, each processed once; Flower shows wins and skips, to those who have its password alone."""
    stack.feed(2_000)
    stack.audit()
    assert stack.listeners().keys() == set(LISTENERS)
    eventually(lambda: sum(found["won"] for found in stack.listeners().values()) == len(stack.told), 15, stack.listeners)

    login = tuple(stack.secrets["DEDUP_FLOWER_AUTH"].split(":"))
    with httpx.Client(base_url=stack.url("flower"), timeout=20) as flower:
        assert flower.get("/api/tasks").status_code == 401
        flower.auth = login
        eventually(
            lambda: {"SUCCESS", "SKIPPED"} <= {task["state"] for task in flower.get("/api/tasks").raise_for_status().json().values()},
            15,
            "wins and skips in Flower",
            every_s=0.5,
        )
    assert set(stack.health().values()) == {"healthy"}


@both
def test_doors_need_the_token(stack: Stack):
    with stack.client() as client:
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
            assert client.get("/stats", headers=headers).status_code == 401
            assert client.post("/events", json=[], headers=headers).status_code == 401


@both
def test_only_doors_and_flower_are_published_and_only_here(stack: Stack):
    bound = {service: stack.container(service).attrs["HostConfig"]["PortBindings"] or {} for service in stack.services}
    published = {service for service, ports in bound.items() if ports}
    assert published == {"broadcaster", "flower", *({"broadcaster-2"} & set(stack.services))}
    assert {binding["HostIp"] for ports in bound.values() for bindings in ports.values() for binding in bindings} == {"127.0.0.1"}


@both
def test_our_processes_run_as_nobody_of_importance(stack: Stack):
    for service in set(stack.services) - {"valkey", "mongo"}:
        container = stack.container(service)
        assert container.exec_run(["id", "-u"]).output.strip() == b"10001", service
        assert container.exec_run(["touch", "/srv/dedup/x"]).exit_code != 0, service


@both
def test_a_listener_container_is_killed(stack: Stack):
    """G1, G2: one of three listeners killed amid 2,000 flights loses none and repeats none."""
    before = len(stack.told)
    with stack.feeding(2_000):
        eventually(lambda: len(stack.told) > before + 300, 30, "the first events")
        stack.container("listener-2").kill()
    stack.audit()
    stack.container("listener-2").start()
    stack.await_healthy()
    stack.audit()


@both
def test_a_listener_is_cut_off_past_its_lease(stack: Stack):
    """G3, G4: a listener off the network, amid its transaction, is taken over; what it commits when it is back changes nothing."""
    with stack.feeding(1_000):
        cut = stack.gate(3)
        with stack.cut_off(cut):
            time.sleep(LEASE_MS / 1000)  # what is tested is the time itself
            stack.open_gate()
            stack.audit()
    assert not any(n > 1 for n in stack.effects().values())
    stack.await_healthy()
    stack.feed(500)
    stack.audit()
    assert set(stack.effects().values()) == {1}


@both
def test_mongodb_and_valkey_are_stopped_in_turn(stack: Stack):
    """G1, G2: without MongoDB producers get 503, without Valkey they notice nothing; nothing is lost or repeated."""
    stack.feed(500)
    stack.container("mongo").stop()
    with stack.client() as client:
        refused = client.post("/events", json=[{"type": "fault.count", "source": "test", "id": "1", "data": {}}])
    assert refused.status_code == 503
    assert "Retry-After" in refused.headers
    assert not stack.healthy("broadcaster", "broadcaster")
    stack.container("mongo").start()
    stack.feed(500)
    stack.audit()

    stack.container("valkey").stop()
    stack.feed(500)
    assert not stack.healthy("bridge", "bridge")
    stack.container("valkey").start()
    stack.feed(500)
    stack.audit()
    stack.await_healthy()


@redundant
def test_the_first_broadcaster_and_the_acting_bridge_are_killed(stack: Stack):
    """G1, G2: with two of each, producers and events find the others; then the pair that was left is killed, too."""
    for broadcaster, left in (("broadcaster", "broadcaster-2"), ("broadcaster-2", "broadcaster")):
        with stack.feeding(1_000, doors=(broadcaster, left)):
            stack.container(broadcaster).kill()
            acting = next(name for name in ("bridge", "bridge-2") if _acts(stack, name))
            stack.container(acting).kill()
        stack.audit(door=left)
        for service in (broadcaster, acting):
            stack.container(service).start()
        stack.await_healthy()
    assert set(SECOND) <= stack.health().keys()


@plain
def test_the_sample_flights_again_out_of_their_container(stack: Stack):
    """G2: 'docker compose run flights' feeds 5,000 flights; they were all here before, and none is processed again."""
    stack.feed(max(0, 5_000 - stack.fed))
    before = stack.audit()
    stack.compose("run", "--rm", "flights")
    assert stack.audit() == before


@plain
def test_each_process_ends_within_its_grace_and_data_outlives_containers(stack: Stack):
    """G1: SIGTERM ends each container in order; without containers the data stays, and nothing has to be initiated twice."""
    with stack.feeding(1_000):
        for service, grace_s in GRACE_S.items():
            container = stack.container(service)
            began = time.monotonic()
            container.stop(timeout=grace_s)
            container.reload()
            assert container.attrs["State"]["ExitCode"] in (0, 143), f"{service}: {container.attrs['State']}"
            assert time.monotonic() - began < grace_s, service
            container.start()
    stack.await_healthy()
    stack.audit()
    stack.down(volumes=False)
    stack.up()
    stack.feed(100)
    stack.audit()


def test_without_passwords_nothing_starts(tmp_path: Path):
    """The file has no password of its own, not even for a moment."""
    (tmp_path / "env").touch()
    done = subprocess.run(
        [*compose_program(), "--env-file", tmp_path / "env", "-f", ROOT / "docker-compose.yml", "config"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode != 0
    assert ".env.example" in done.stderr


def _acts(stack: Stack, bridge: str) -> bool:
    words = [word for word in stack.container(bridge).logs().decode().split('"') if word in ("bridge.active", "bridge.standby")]
    return bool(words) and words[-1] == "bridge.active"
