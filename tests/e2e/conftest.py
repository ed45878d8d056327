"""A whole system for a module's tests, and a browser to look at it with."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.embedded.servers import EmbeddedServers
from tests.support.browser import Browser, chromium
from tests.support.processes import Processes
from tests.support.servers import fresh_settings, remove_data
from tests.support.system import QUICK, ROOT, System
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def running(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A broadcaster, a bridge and three listeners with the handlers of the fault tests."""
    folder = tmp_path_factory.mktemp("running")
    settings = fresh_settings(servers, folder, **QUICK)
    processes = Processes(folder)
    try:
        with closing(System(settings, processes.start, folder)) as system:
            system.up(3)
            system.await_fan_out("listener-1", "listener-2", "listener-3")
            yield system
    finally:
        processes.kill()
        remove_data(settings)


@pytest.fixture(scope="module")
def flower(running: System) -> str:
    """Flower beside it, and where."""
    url = f"http://127.0.0.1:{running.settings.flower_port}"
    argv = ["celery", "-A", "app", "flower", f"--conf={ROOT / 'flowerconfig.py'}"]
    process = running.spawn("flower", argv, settings=running.settings, env={"PYTHONPATH": str(ROOT)})
    eventually(lambda: answers(f"{url}/healthcheck"), 30, process.log_tail)
    return url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One page of a headless Chromium."""
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        yield page


def answers(url: str, **options: Any) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=2, **options).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(autouse=True)
def _say_where_pictures_are(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "browser" in request.fixturenames:
        folder: Path = request.getfixturevalue("browser").folder
        print(f"pictures: {', '.join(sorted(str(path) for path in folder.glob('*.png'))) or 'none'}")
