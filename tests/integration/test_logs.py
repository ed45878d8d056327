"""What processes write about themselves: one form, one name per thing that happens, and never an event's content."""

import asyncio
import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import socketio
import structlog

from app import telemetry
from app.embedded.ports import free_port
from app.embedded.process import ManagedProcess
from app.settings import Settings
from app.stores.failures import Failures
from tests.support.system import ROOT, System, system_on
from tests.support.waiting import eventually

MARKER = "Bl4ckAd3r"
"""Stands in the content of every event here, and nowhere else."""

POLICIES = """
[hooks.shop]
type = "body.type"
id = "body.id"

[types."key.*"]
key = ["data.order"]
"""
_NAME = re.compile(
    r"[a-z_]+(\.[a-z_]+)+|celery\S*|kombu\S*|py\.warnings|uvicorn\.\w+|asyncio|multiprocessing|engineio\S*|socketio\S*|websocket\S*"
)


def lines_of(process: ManagedProcess) -> list[dict[str, Any]]:
    """What it has written; each line is a JSON object, and there is nothing else."""
    found = []
    for line in process.log.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            pytest.fail(f"{process.name} wrote a line that is no JSON: {line!r}")
    return found


@pytest.fixture
def system(settings: Settings, spawn: Callable[..., ManagedProcess], tmp_path: Path) -> Iterator[System]:
    (tmp_path / "policies.toml").write_text(POLICIES)
    made = system_on(settings, spawn, tmp_path, handlers=("tests.support.telling_handlers",), max_attempts=2, backoff_ms=20)
    yield made
    made.close()


def content(**more: Any) -> dict[str, Any]:
    return {"name": MARKER, "list": [MARKER, {MARKER: MARKER}]} | more


def told(kind: str, number: object = 0) -> dict[str, Any]:
    return {"type": kind, "source": "test", "id": f"{kind}-{number}", "data": content(number=str(number))}


def test_no_content_of_an_event_is_ever_logged(system: System, spawn: Callable[..., ManagedProcess]):
    # Given a whole system, with a foreign feed, and a client of each door
    foreign_port = free_port()
    spawn("foreign", ["python", "-m", "tests.support.foreign_server", str(foreign_port)], cwd=ROOT)
    system.up(2)
    feeds = spawn(
        "feeds",
        ["dedup", "bridge", "--from", f"http://127.0.0.1:{foreign_port}", "--event", "departure", "--key", "id"],
        settings=system.settings,
        env={"PYTHONPATH": str(ROOT)},
    )
    http = httpx.Client(base_url=system.url, timeout=20)

    # When events come whose handlers fail in every way, and quote them
    kinds = ("raise", "cause", "group", "dead", "later", "twin", "unstorable", "refused", "result", "no-result")
    many = [told(f"tell.{kind}", number) for kind in kinds for number in range(3)]
    many += [told("tell-async.raise", number) for number in range(3)] + [told("tell-once.raise", number) for number in range(3)]
    many += [told("unhandled", number) | {"data": content()} for number in range(3)]
    system.accept(many)
    system.accept([told("tell.twin", "again") | {"data": content(number="0")}])
    system.accept([told("tell.exit")])
    system.accept([told("tell.result", "alone")])

    # And the same key with other content
    conflicting = [told("unhandled", 0) | {"data": content(other=True)}]
    assert http.post("/events", json=conflicting).status_code == 202

    # And malformed and hostile ones, by every door
    plain = told("unhandled", "x")
    for body in (
        f'{{"type": "{MARKER}',
        f'{{"type": "a", "data": {{"{MARKER}": 1, "{MARKER}": 2}}}}',
        json.dumps([plain | {MARKER: 1}]),
        json.dumps([plain | {"time": MARKER}]),
        json.dumps([plain | {"type": {"a": MARKER}}]),
        json.dumps([plain | {"specversion": MARKER}]),
        json.dumps([plain | {"data_base64": MARKER + "!"}]),
        json.dumps([{"type": "key.a", "source": "test", "data": {"order": {"a": MARKER}}}]),
        json.dumps([plain, plain | {"data": {"other": MARKER}}]),
        '{"type": "a", "data": ' + "[" * 300 + f'"{MARKER}"' + "]" * 300 + "}",
        json.dumps({"type": "a", "data": 10**30, "x": MARKER}),
        MARKER,
    ):
        for path in ("/events", "/hooks/shop"):
            assert http.post(path, content=body.encode(), headers={"Content-Type": "application/json"}).status_code >= 400
    assert http.post("/hooks/shop", json={"type": "unhandled", "id": 1, "body": MARKER}).status_code == 202
    cloud = {"ce-specversion": "1.0", "ce-type": "unhandled", "ce-source": "test", "ce-id": "c", "content-type": "text/plain"}
    assert http.post("/events", content=MARKER, headers=cloud).status_code in (202, 422)
    http.post("/failures/decisions", json={"decision": MARKER, "key": "k"})
    asyncio.run(_publish(system.url))

    # And by a foreign feed
    eventually(lambda: _clients(foreign_port) == 1, 20, feeds.log_tail)
    payloads = [{"id": "f1", "text": MARKER}, {"text": MARKER}, MARKER, [MARKER], {"id": {"x": MARKER}}]
    httpx.post(f"http://127.0.0.1:{foreign_port}/emit", json={"event": "departure", "payloads": payloads}).raise_for_status()
    httpx.post(f"http://127.0.0.1:{foreign_port}/raw", content=f'2["{MARKER}'.encode()).raise_for_status()
    http.close()

    # Then all of it has happened …
    failures = Failures(system.db)
    eventually(lambda: failures.counts().get("malformed", 0) >= 3, 30, feeds.log_tail)
    eventually(lambda: system.db.inbox.count_documents({}) == 0, 60, system.state)
    eventually(
        lambda: system.db.failures.count_documents({"state": "retrying", "reason": {"$not": re.compile(MARKER)}}) == 0, 60, system.state
    )
    eventually(lambda: failures.counts().get("dead", 0) >= 20 and failures.counts().get("conflict", 0) >= 1, 60, failures.counts)
    assert MARKER in str(system.db.failures.find_one({"key": "id~test~tell.raise-0"})["error"]), "there it is kept"
    system.listener("listener-1").terminate()
    for process in (*system.processes.values(), feeds):
        process.terminate()

    # … and no log says what was in any of them
    said: set[str] = set()
    for process in (*system.processes.values(), feeds):
        text = process.log.read_text(encoding="utf-8")
        quoted = [line[:2_000] for line in text.splitlines() if MARKER in line]
        assert not quoted, f"{process.name}: {quoted[:3]}"
        said |= _well_formed(process)
    assert said >= {
        *("event.failed", "event.dead", "event.conflict", "batch.one_by_one", "feed.malformed", "bridge.rubbish", "door.refused"),
        *(
            "listener.starting",
            "listener.ready",
            "listener.stopping",
            "broadcaster.ready",
            "broadcaster.stopped",
            "bridge.active",
            "bridge.stopped",
        ),
        *("celery.worker.strategy", "celery.app.trace"),
    }


def _well_formed(process: ManagedProcess) -> set[str]:
    """Check each line's form; the names of what it says."""
    lines = lines_of(process)
    assert lines
    for line in lines:
        assert list(line)[:3] == ["at", "level", "event"], line
        assert line["role"] in ("listener", "broadcaster", "bridge")
        assert isinstance(line["pid"], int)
        assert _NAME.fullmatch(line["event"]), line
        if line["role"] == "listener":
            assert line["listener"] == process.name.removesuffix("-h"), line
        if line["event"].startswith(("event.", "claim.")) and "key" in line:
            assert {"token", "digest"} & line.keys() or line["event"] == "event.stale", line
        if line["event"].startswith("celery.") and "dedup.process" in line["message"]:
            assert line["task"], line
    return {line["event"] for line in lines}


async def _publish(url: str) -> None:
    client = socketio.AsyncClient()
    await client.connect(url, transports=["websocket"])
    for argument in (
        MARKER,
        [{MARKER: 1}],
        [{"type": "a", "time": MARKER}],
        {"type": "unhandled", "source": "s", "id": "p", "data": MARKER},
    ):
        await client.call("publish", argument, timeout=10)
    await client.emit(MARKER, MARKER)
    await client.disconnect()


def _clients(port: int) -> int:
    try:
        return int(httpx.get(f"http://127.0.0.1:{port}/clients").json())
    except httpx.TransportError:
        return 0


# -------------------------------------------------------------------------------------------------------------- the form


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logs of this process into memory, configured as a process does it; all as it was afterwards."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with _as_before():
        telemetry.configure("test", listener="listener-1")
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@contextmanager
def _as_before() -> Iterator[None]:
    """What ``configure`` changes in this process is as it was afterwards; what others did to libraries' loggers is undone meanwhile."""
    root = logging.getLogger()
    loggers = [logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    kept = [(logger, logger.handlers[:], logger.level, logger.propagate, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate, logger.disabled = [], True, False
        logger.setLevel(logging.NOTSET)
    handlers, level, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for logger, its_handlers, its_level, logger.propagate, logger.disabled in kept:
            logger.handlers[:] = its_handlers
            logger.setLevel(its_level)
        sys.excepthook, threading.excepthook = hooks
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


def test_libraries_and_we_have_one_form(written):
    structlog.get_logger("workers.run").warning("claim.lost", key="k", token=7)
    logging.getLogger("celery.worker.strategy").warning("Task %(name)s[%(id)s] received", {"name": "n", "id": "k/listener-1"})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind this", stacklevel=1)

    ours, theirs, warning = written()
    assert list(ours) == ["at", "level", "event", "role", "pid", "listener", "key", "token", "logger"]
    assert (theirs["event"], theirs["message"]) == ("celery.worker.strategy", "Task n[k/listener-1] received")
    assert theirs["task"] == "k/listener-1"
    assert warning["event"] == "py.warnings"
    assert "mind this" in warning["message"]
    assert {line["listener"] for line in (ours, theirs, warning)} == {"listener-1"}


def test_errors_are_told_by_their_types_and_tracebacks_without_their_texts(written):
    def fails() -> None:
        try:
            int({}[MARKER])
        except KeyError as error:
            raise ExceptionGroup(MARKER, [ValueError(MARKER), OSError("connection refused")]) from error

    log = structlog.get_logger("a")
    try:
        fails()
    except ExceptionGroup as error:
        log.exception("one.failed")
        log.error("two.failed", exc_info=error)
        logging.getLogger("uvicorn.error").error("Exception in %s", error, exc_info=error)
        logging.getLogger("celery.app.trace").error(
            "Task %(id)s raised: %(exc)s", {"id": "t", "exc": repr(error)}, exc_info=(type(error), error, error.__traceback__)
        )
        as_asyncio_says_it = f"Task exception was never retrieved\nfuture: {error!r}"
        logging.getLogger("asyncio").error(as_asyncio_says_it, exc_info=error)
    logging.getLogger("celery.app.trace").warning("Task %(id)s: %(return_value)s", {"id": "t", "return_value": f"'won 1; result {MARKER}'"})
    logging.getLogger("celery.worker.consumer").error(
        "Cannot connect to %s: %s", "redis", ConnectionRefusedError(111, "Connection refused")
    )

    lines = written()
    assert MARKER not in json.dumps(lines)
    assert len(lines) == 7
    for line in lines[:5]:
        assert "in fails" in line["exception"]
        assert line["exception"].index("KeyError") < line["exception"].index("ExceptionGroup of ValueError, OSError: connection refused")
    assert lines[2]["message"] == "Exception in ExceptionGroup"
    assert lines[4]["message"] == "Task exception was never retrieved"
    assert lines[5]["message"] == "Task t: 'won 1"
    assert lines[6]["message"].endswith("ConnectionRefusedError: [Errno 111] Connection refused")


def test_what_nobody_caught_is_a_line_too(written):
    thread = threading.Thread(target=lambda: int(MARKER), name="odd")
    thread.start()
    thread.join()
    try:
        int(MARKER)
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    of_thread, of_process = written()
    assert (of_thread["event"], of_thread["thread"], of_process["event"]) == ("thread.failed", "odd", "process.failed")
    assert MARKER not in json.dumps([of_thread, of_process])


def test_an_error_that_led_to_itself_ends(written):
    error = ValueError()
    other = KeyError()
    error.__context__, other.__context__ = other, error
    structlog.get_logger("a").error("a.failed", exc_info=error)
    assert written()[0]["exception"].count("Traceback") == 2


def test_a_terminal_gets_lines_for_people_and_no_local_variables(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    with _as_before():
        telemetry.configure("test")
        local = MARKER + "local"
        try:
            int(local)
        except ValueError:
            structlog.get_logger("a").exception("one.failed", key="k")
        logging.getLogger("celery.apps.worker").warning("ready")
    text = stream.getvalue()
    assert "one.failed" in text
    assert "ready" in text
    assert "ValueError" in text
    assert MARKER not in text
