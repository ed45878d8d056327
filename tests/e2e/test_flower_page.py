"""Flower's task page, in a headless Chromium: wins, skips and failures at every batch size, and the filters that documents name."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.embedded.ports import free_port
from app.settings import Settings
from tests.e2e.conftest import answers
from tests.support.browser import Browser
from tests.support.servers import environment
from tests.support.system import ROOT, System
from tests.support.waiting import eventually

SIZES = (1, 2, 250, 500)
ROWS = "[...document.querySelectorAll('#tasks-table tbody tr')].map(r => [...r.cells].map(c => (c.querySelector('.task-uuid-full') ?? c).textContent.trim()))"
HOSTILE = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def row(cells: list[str]) -> dict[str, str]:
    return dict(zip(("id", "state", "args", "result", "received", "runtime", "worker"), cells, strict=True))


def rows(page: Browser) -> list[dict[str, str]]:
    """The rows of the task table, as they are shown."""
    return [row(cells) for cells in page.js(ROWS) if len(cells) == 7]


def shown(page: Browser, url: str, holds: Callable[[list[dict[str, str]]], Any]) -> list[dict[str, str]]:
    """Load a task list again and again until it shows what it is to show."""

    def looked() -> list[dict[str, str]]:
        page.forget(url.partition("/tasks")[0])  # Flower remembers the last search
        page.open(url)
        page.wait(
            "document.querySelector('#tasks-table tbody tr') && !/Loading|Processing/.test(document.querySelector('#tasks-table').innerText)"
        )
        page.js("document.querySelector('#tasks-table_length select') && ($('#tasks-table').DataTable().page.len(100).draw())")
        page.wait(f"{ROWS}.length > 0")
        found = rows(page)
        return found if holds(found) else []

    return eventually(looked, 30, lambda: rows(page), every_s=0.5)


@pytest.fixture(scope="module")
def keys(running: System, flower: str) -> dict[int, list[str]]:
    """Batches of each size that have been through, by size."""
    assert flower
    sent = {}
    for size in SIZES:
        events = [{"type": "stored", "source": "flower", "id": f"{size}-{number}"} for number in range(size)]
        sent[size] = running.accept(events, per_request=500)
    running.await_finished()
    return sent


def of(key: str, found: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of deliveries that begin with a key."""
    return [one for one in found if re.match(re.escape(key) + r"[/+]", one["id"])]


def test_wins_and_skips_at_every_batch_size(running: System, flower: str, browser: Browser, keys: dict[int, list[str]]) -> None:
    browser.size(1640, 905)
    found = shown(browser, f"{flower}/tasks", lambda all_rows: all(len(of(keys[size][0], all_rows)) == 3 for size in SIZES))
    for size in SIZES:
        mine = of(keys[size][0], found)
        [win] = [one for one in mine if one["state"] == "SUCCESS"]
        winner = win["worker"].partition("@")[0]
        assert win["result"] == f"won {size}"
        assert win["id"].endswith(f"/{winner}")
        assert running.db.events.find_one({"_id": keys[size][-1]})["listener"] == winner
        for skip in (one for one in mine if one is not win):
            assert skip["state"] == "SKIPPED"
            assert re.fullmatch(rf"skipped {size} \((busy|done) {winner}\)", skip["result"]), skip
    browser.picture("flower")


def test_tasks_without_a_win_say_what_became_of_their_events(running: System, flower: str, browser: Browser) -> None:
    # Given events that fail at once, that fail at first, and of which one of three fails
    [dead] = running.accept([{"type": "fault.mixed", "source": "flower", "id": "dead", "data": {"do": "dead"}}])
    [later] = running.accept([{"type": "fault.mixed", "source": "flower", "id": "later", "data": {"do": "raise", "times": 1}}])
    mixed = running.accept(
        [{"type": "fault.mixed", "source": "flower", "id": f"mixed-{n}", "data": {"do": "dead"} if n else {}} for n in range(3)]
    )
    running.await_finished()
    ran = {dead: "FAILURE", later: "RETRY", mixed[0]: "SUCCESS"}

    # When they are looked for
    found = shown(
        browser, f"{flower}/tasks", lambda all_rows: all(state in {r["state"] for r in of(key, all_rows)} for key, state in ran.items())
    )

    # Then no task that won nothing is green, and the text says the rest
    states = {key: {one["state"]: one["result"] for one in of(key, found)} for key in ran}
    assert states[dead]["FAILURE"] == "failed 1 (dead)"
    assert "SUCCESS" not in states[dead]
    assert states[later]["RETRY"] == "failed 1 (retrying)"
    assert states[later]["SUCCESS"] == "won 1", "the second time, as another task"
    wins = [one for one in found if one["state"] == "SUCCESS"]
    assert all(one["result"].startswith("won ") for one in wins), wins
    assert any(re.search(r"failed \d \(dead\)", one["result"]) for one in of(mixed[0], found))
    badge = "[...document.querySelectorAll('#tasks-table .badge')].find(b => b.textContent === 'FAILURE').className"
    assert "danger" in browser.js(badge)
    browser.picture("flower-failures")


@pytest.mark.parametrize(
    "query, right",
    [
        (
            "state=SKIPPED",
            lambda one: one["state"] == "SKIPPED" and re.search(r"(busy|done) listener-\d|in failures: (dead|not due)", one["result"]),
        ),
        ("state=SUCCESS", lambda one: one["state"] == "SUCCESS" and one["result"].startswith("won")),
        ("state=FAILURE", lambda one: one["state"] == "FAILURE" and "dead" in one["result"]),
        ("worker=listener-1", lambda one: one["worker"].startswith("listener-1@")),
        ("state=SKIPPED&worker=listener-2", lambda one: one["state"] == "SKIPPED" and one["worker"].startswith("listener-2@")),
    ],
)
def test_links_filter(
    flower: str, browser: Browser, keys: dict[int, list[str]], query: str, right: Callable[[dict[str, str]], bool]
) -> None:
    found = shown(browser, f"{flower}/tasks?{query}", lambda filtered: filtered and all(right(one) for one in filtered))
    assert found


@pytest.mark.parametrize(
    "search, right",
    [
        ("state:SKIPPED worker:listener-1", lambda one: one["state"] == "SKIPPED" and one["worker"].startswith("listener-1@")),
        ("result:won", lambda one: "won" in one["result"]),
        ("result:failed", lambda one: "failed" in one["result"]),
        ("id~flower~250-0", lambda one: one["id"].startswith("id~flower~250-0")),
    ],
)
def test_the_search_box_filters(
    flower: str, browser: Browser, keys: dict[int, list[str]], search: str, right: Callable[[dict[str, str]], bool]
) -> None:
    shown(browser, f"{flower}/tasks", len)
    total = len(rows(browser))
    browser.js("document.querySelector('#tasks-table_filter input').focus()")
    browser.press(search)
    browser.js("document.querySelector('#tasks-table_filter input').dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))")
    browser.wait(f"{ROWS}.length < {total}")
    found = eventually(lambda: rows(browser), 10, browser.text)
    assert all(right(one) for one in found), found


def test_hostile_keys_are_text_in_flower_too(running: System, flower: str, browser: Browser) -> None:
    [key] = running.accept([{"type": f"t{HOSTILE}", "source": HOSTILE, "id": HOSTILE, "data": HOSTILE}])
    running.await_finished()
    found = shown(browser, f"{flower}/tasks", lambda all_rows: [one for one in all_rows if "hacked" in one["id"]])
    task = next(one["id"] for one in found if "hacked" in one["id"])
    browser.open(f"{flower}/task/{quote(task, safe='')}")
    browser.wait("document.querySelector('.task-details-card')")
    assert browser.js("window.hacked") is None
    assert browser.js("document.querySelectorAll('img[src=x]').length") == 0
    assert running.db.events.find_one({"_id": key})


class TestOutsideLoopback:
    def argv(self) -> list[str]:
        return ["celery", "-A", "app", "flower", f"--conf={ROOT / 'flowerconfig.py'}"]

    def env(self, settings: Settings, **more: str) -> dict[str, str]:
        return environment(settings) | {"PYTHONPATH": str(ROOT), "DEDUP_HOST": "0.0.0.0", "DEDUP_FLOWER_PORT": str(free_port())} | more

    def test_flower_refuses_to_start_without_a_password(self, settings: Settings, tmp_path: Path) -> None:
        program = Path(sys.executable).with_name("celery")
        done = subprocess.run(
            [program, *self.argv()[1:]], cwd=tmp_path, env=self.env(settings), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0
        assert "DEDUP_FLOWER_AUTH" in done.stderr
        assert "Traceback" not in done.stderr

    def test_with_one_every_page_and_the_api_ask_for_it(self, settings: Settings, spawn: Any) -> None:
        env = self.env(settings, DEDUP_FLOWER_AUTH="ops:s3cret")
        process = spawn("flower", self.argv(), settings=settings, env=env)
        url = f"http://127.0.0.1:{env['DEDUP_FLOWER_PORT']}"
        eventually(lambda: answers(f"{url}/healthcheck"), 30, process.log_tail)
        for path in ("/", "/tasks", "/workers", "/api/tasks", "/api/workers"):
            assert httpx.get(url + path).status_code == 401, path
            assert httpx.get(url + path, auth=("ops", "wrong")).status_code == 401, path
        assert httpx.post(f"{url}/api/worker/shutdown/x").status_code == 401
        assert answers(f"{url}/tasks", auth=("ops", "s3cret"))
