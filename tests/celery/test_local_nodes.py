"""A local process does what pytest-celery expects of a container."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_celery import CeleryTestContainer, CeleryTestNode

from app.embedded.ports import free_port
from tests.celery.local_nodes import LocalContainer, LocalProcess
from tests.support.waiting import eventually

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
print("child", child.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""


class Server(LocalContainer, CeleryTestContainer):
    @property
    def ready_prompt(self) -> str:
        return "child"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[CeleryTestNode]:
    port = free_port()
    process = LocalProcess("server", [sys.executable, "-c", SERVER, str(port)], log=tmp_path / "log", ports={80: port}).start()
    made = CeleryTestNode(Server(process))
    eventually(made.ready, 20, made.logs, every_s=0.05)
    yield made
    made.teardown()


def child_of(node: CeleryTestNode) -> int:
    return int(node.logs().split()[-1])


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_it_is_ready_when_its_ports_are_open(node: CeleryTestNode):
    assert node.container.status == "running"
    assert node.container.get_addr("80/tcp")[0] == "127.0.0.1"
    assert node.container.get_open_tcp_ports() == ["80"]
    assert not gone(child_of(node))


def test_a_kill_ends_all_that_it_started_and_is_seen(node: CeleryTestNode):
    child = child_of(node)
    node.kill()
    assert node.container.status == "exited"
    assert node.container.attrs["State"]["ExitCode"] == 137
    assert eventually(lambda: gone(child), 5)
    node.kill()  # nothing happens, as with a container
    with pytest.raises(RuntimeError, match="is not running"):
        node.container.kill()


def test_a_restart_keeps_the_log_and_leaves_nothing_of_before(node: CeleryTestNode):
    before = child_of(node)
    node.restart()
    assert node.container.status == "running"
    after = eventually(lambda: child_of(node) if child_of(node) != before else 0, 10)
    assert node.logs().count("child") == 2
    assert gone(before)
    assert not gone(after)
    node.assert_log_exists(f"child {after}")


def test_other_signals_go_to_the_process_alone(node: CeleryTestNode):
    node.kill(signal="SIGCONT")
    assert node.container.status == "running"
    node.kill(signal="SIGTERM", reload_container=False)
    eventually(lambda: (node.container.reload(), node.container.status == "exited")[1], 5)
    assert node.container.attrs["State"]["ExitCode"] == 143


def test_a_pause_holds_it_and_a_stop_ends_it_even_then(node: CeleryTestNode):
    raw = node.container._container
    raw.pause()
    assert raw.status == "paused"
    raw.unpause()
    assert raw.status == "running"
    raw.pause()
    raw.stop(timeout=5)
    assert raw.status == "exited"
    assert raw.wait() == {"StatusCode": 143}
    raw.remove()


def test_a_program_runs_in_its_environment(tmp_path: Path):
    process = LocalProcess("x", ["true"], log=tmp_path / "log", env={"PATH": os.environ["PATH"], "A": "1"}, cwd=tmp_path)
    assert process.exec_run(["sh", "-c", "echo $A; pwd; exit 3"]) == (3, f"1\n{tmp_path}\n".encode())
    assert process.status == "created"
    assert process.logs() == b""
