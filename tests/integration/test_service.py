"""A child that ends is started again, but not for ever."""

import sys
from collections.abc import Callable

import pytest

from app.embedded.process import ManagedProcess
from app.errors import ServerStartError
from app.service import MAX_RESTARTS, Service
from tests.support.waiting import eventually


@pytest.fixture
def make(tmp_path):
    made: list[ManagedProcess] = []

    def service(code: str, *, clock: Callable[[], float] = lambda: 0.0, ready: Callable[[], bool] = lambda: True) -> Service:
        made.append(ManagedProcess("child", [sys.executable, "-c", code], log=tmp_path / "child.log"))
        return Service(made[-1], ready=ready, timeout_s=20, clock=clock)

    yield service
    for process in made:
        process.kill()


def test_one_that_runs_is_left_alone(make):
    service = make("import time; time.sleep(60)")
    service.process.start()
    service.wait_ready()
    assert service.look_after() is None


def test_one_that_was_killed_is_said_and_started_again(make):
    service = make("import time; time.sleep(60)")
    service.process.start().kill()
    assert service.look_after() == f"child ended by SIGKILL; its log is {service.process.log}"
    assert service.look_after() == "child is started again"
    assert service.process.alive


def test_one_that_cannot_live_is_given_up(make):
    now = [0.0]
    service = make("raise SystemExit(3)", clock=lambda: now[0])
    service.process.start()
    said: list[str] = []
    while not service.given_up:
        eventually(lambda: not service.process.alive)
        said += filter(None, [service.look_after()])
        now[0] += 4.5  # longer than any pause
        assert len(said) < 20
    assert sum("is started again" in line for line in said) == MAX_RESTARTS
    assert said[-1].startswith(f"child ended with exit code 3, for the {MAX_RESTARTS + 1}th time in a minute, and is not started again")
    assert service.look_after() is None


def test_ends_that_are_long_ago_are_forgiven(make):
    now = [0.0]
    service = make("raise SystemExit(3)", clock=lambda: now[0])
    service.process.start()
    for _ in range(2 * MAX_RESTARTS):
        eventually(lambda: not service.process.alive)
        assert "ended with exit code 3" in str(service.look_after())
        assert service.look_after() == "child is started again"
        now[0] += 61
    assert not service.given_up


def test_an_end_right_after_the_start_is_followed_by_a_pause(make):
    now = [0.0]
    service = make("raise SystemExit(3)", clock=lambda: now[0])
    service.process.start()
    for pause_s in (0.0, 0.5, 1.0, 2.0):
        eventually(lambda: not service.process.alive)
        assert "ended" in str(service.look_after())
        if pause_s:
            now[0] += pause_s - 0.01
            assert service.look_after() is None
            now[0] += 0.01
        assert service.look_after() == "child is started again"


def test_one_that_never_gets_ready_is_an_error_with_its_log(make):
    service = make("print('out of luck'); raise SystemExit(3)", ready=lambda: False)
    service.process.start()
    with pytest.raises(ServerStartError, match=r"(?s)child ended with exit code 3 on start.*out of luck"):
        service.wait_ready()
