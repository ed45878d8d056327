"""What a listener refuses at its start, in one sentence; and how listeners share slow work."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from app.embedded.servers import EmbeddedServers
from app.settings import Settings
from tests.support.servers import fresh_settings
from tests.support.system import ROOT, Spawn, System, events

GOOD = "from workers import handler\n@handler('a.b')\ndef h(event, context): pass\n"


@pytest.mark.parametrize(
    ("module", "policies", "sentence"),
    [
        ("import no_such_module_at_all", "", "handler module 'mine' (DEDUP_HANDLERS) does not import: ModuleNotFoundError"),
        (GOOD + "@handler('a.b', name='mine.h')\ndef g(event, context): pass\n", "", "two handlers are named 'mine.h'"),
        (GOOD.replace("event, context", "event"), "", "handler mine.h must take two arguments"),
        (GOOD, '[types."a.b"]\nmax_handler_s = 11\n', "max_handler_s"),
        (GOOD, '[types."a.b"]\ncolour = "red"\n', "colour"),
        (GOOD + "@handler('a.*')\nasync def g(event, context): pass\n", "", "cannot share a transaction"),
    ],
    ids=["no import", "two of one name", "one argument", "over the transaction's lifetime", "unknown field", "plain beside async"],
)
def test_refused_at_start_in_one_sentence(
    settings: Settings, spawn: Spawn, tmp_path: Path, module: str, policies: str, sentence: str
) -> None:
    """G5: what cannot work is refused at the start of the listener, in one sentence, before it takes an event."""
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "policies.toml").write_text(policies)
    _is_refused(settings, spawn, tmp_path, sentence, DEDUP_HANDLERS="mine", DEDUP_POLICIES=str(tmp_path / "policies.toml"))


def test_transactional_handlers_on_a_standalone_mongodb_are_refused(
    start_servers: Callable[..., EmbeddedServers], spawn: Spawn, tmp_path: Path
) -> None:
    """G2: without transactions, transactional handlers are refused at start, with the remedy."""
    (tmp_path / "mine.py").write_text(GOOD)
    settings = fresh_settings(start_servers(standalone=True), tmp_path)
    _is_refused(settings, spawn, tmp_path, "transactional handlers need MongoDB as a replica set", DEDUP_HANDLERS="mine")


def _is_refused(settings: Settings, spawn: Spawn, folder: Path, sentence: str, **env: str) -> None:
    argv = ["celery", "-A", "app", "worker", "-n", "listener-1@%h"]
    process = spawn("listener", argv, settings=settings, env={"PYTHONPATH": f"{ROOT}:{folder}", **env})
    assert process.wait(30) == 1, process.log_tail()
    said = [line for line in process.log.read_text().splitlines() if line.startswith("dedup: ")]
    assert len(said) == 1, process.log_tail()
    assert sentence in said[0]
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("kind", ["fault.slow", "fault.wait"])
def test_three_listeners_share_a_batch_of_slow_events(system: System, kind: str) -> None:
    """G7: a batch of 250 events of 100 ms each is shared: none of three listeners wins more than half of it."""
    system.up(3)
    system.await_fan_out("listener-1", "listener-2", "listener-3")
    system.accept(events(250, kind, ms=100))
    system.await_finished(40)
    system.audit()
    wins: Counter[Any] = Counter(d["listener"] for d in system.db.events.find({"type": kind}))
    assert len(wins) == 3
    assert max(wins.values()) <= 125, wins


def test_a_late_copy_of_a_done_event_shows_the_result(system: System) -> None:
    """G2: a skip of a single event that is done says what its handler returned: in Flower, and not in the log."""
    system.up(2)
    event = events(1, "fault.mixed")
    system.accept(event)
    system.await_finished()

    done: list[str] = []

    def note(told: dict[str, Any]) -> None:
        if "(done " in told["result"]:  # the first copies were skipped while their event was busy, and may be told only now
            done.append(told["result"])

    with Celery(broker=system.settings.broker_url) as app, app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-skipped": note})
        for number, _ in enumerate(receiver.itercapture(limit=30, timeout=20, wakeup=False)):
            if number == 0:  # heartbeats are heard, so what comes now will be, too
                system.accept(event)
            if done:
                break

    assert '; result {"attempt": 1}' in done[0]
    system.await_finished()
    assert "; result" not in "".join(system.listener(f"listener-{n}").log.read_text() for n in (1, 2))
