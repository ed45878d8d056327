"""Managed processes, on real ones."""

import os
import signal
import sys
import textwrap
import threading

import psutil
import pytest

from app.embedded.process import ManagedProcess
from app.embedded.serverinfo import record_of
from app.errors import ServerStartError
from tests.support.waiting import eventually

FOREVER = "import signal, time\nwhile True: time.sleep(60)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nwhile True: time.sleep(60)"
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {FOREVER!r}])
print("child", child.pid, flush=True)
child.wait()
"""


def program(text):
    return ["python", "-c", textwrap.dedent(text)]


def child_of(process):
    process.wait_until(lambda: "child" in process.log_tail(), timeout_s=10, what="start its child")
    return record_of("child", int(process.log_tail().split()[-1]))


def test_a_process_runs_in_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(spawn):
    process = spawn("forever", program(FOREVER))

    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert process.alive


def test_waiting_for_a_process_that_ends_tells_its_exit_code_and_its_last_words(spawn):
    process = spawn("brief", program("import sys; print('no milk today'); sys.exit(3)"))

    with pytest.raises(ServerStartError, match=r"(?s)brief ended with exit code 3 on start; its log is .*brief\.log.*no milk today"):
        process.wait_until(lambda: False, timeout_s=10)


def test_waiting_ends_at_the_deadline_while_the_process_lives_on(spawn):
    process = spawn("forever", program(FOREVER))

    with pytest.raises(ServerStartError, match=r"forever did not open its door within 0\.1 s"):
        process.wait_until(lambda: False, timeout_s=0.1, what="open its door")

    assert process.alive


def test_a_program_that_does_not_exist_is_named(tmp_path):
    process = ManagedProcess("ghost", ["/no/such/program"], log=tmp_path / "ghost.log").start()

    with pytest.raises(ServerStartError, match=r"cannot run /no/such/program: No such file or directory"):
        process.wait_until(lambda: False, timeout_s=10)


def test_a_second_start_while_it_runs_is_refused(spawn):
    process = spawn("forever", program(FOREVER))

    with pytest.raises(ServerStartError, match="forever is running already"):
        process.start()


def test_the_log_tail_is_of_the_last_start_only(spawn):
    process = spawn("clock", program("import os; print('pid', os.getpid())"))
    assert process.wait(10) == 0
    first = process.pid

    process.start()
    assert process.wait(10) == 0

    assert process.log_tail() == f"pid {process.pid}"
    assert f"pid {first}" in process.log.read_text()


def test_terminate_kills_at_the_deadline_what_does_not_listen(spawn):
    process = spawn("deaf", program(DEAF))
    process.wait_until(lambda: "deaf" in process.log_tail(), timeout_s=10)

    assert process.terminate(deadline_s=0.2) == -signal.SIGKILL

    assert not process.alive
    assert process.terminate() == -signal.SIGKILL


def test_terminate_reaches_a_paused_process(spawn):
    process = spawn("forever", program(FOREVER))
    process.pause()
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 5)

    assert process.terminate(deadline_s=10) == -signal.SIGTERM


def test_pause_and_resume_reach_the_whole_group(spawn):
    process = spawn("parent", program(WITH_CHILD))
    both = (psutil.Process(process.pid), psutil.Process(child_of(process).pid))

    process.pause()
    eventually(lambda: all(p.status() == psutil.STATUS_STOPPED for p in both), 5)
    process.resume()
    eventually(lambda: not any(p.status() == psutil.STATUS_STOPPED for p in both), 5)


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_killed_process_leaves_no_child_behind(spawn, whole_group):
    process = spawn("parent", program(WITH_CHILD))
    child = child_of(process)

    if whole_group:
        process.kill()
    else:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL

    eventually(lambda: not child.alive, 5, "the end of the child")


def test_a_process_outlives_the_thread_that_started_it(spawn):
    """The kernel's parent-death signal watches the forking thread: a caller's thread may end, the process must go on."""
    up = program("print('up', flush=True)\n" + FOREVER)
    started = []

    def start():
        started.append(spawn("first", up))
        started[0].wait_until(lambda: "up" in started[0].log_tail(), timeout_s=10)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    second = spawn("second", up)
    second.wait_until(lambda: "up" in second.log_tail(), timeout_s=10)  # longer than a signal takes

    assert started[0].alive


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_a_process_dies_with_its_starter(spawn, tmp_path):
    starter = spawn(
        "starter",
        program(f"""
        from pathlib import Path
        from app.embedded.process import ManagedProcess
        process = ManagedProcess("forever", ["sleep", "600"], log=Path({str(tmp_path / "inner.log")!r})).start()
        print("child", process.pid, flush=True)
        {FOREVER.replace(chr(10), chr(10) + "        ")}
        """),
    )
    child = child_of(starter)
    assert os.getsid(child.pid) == child.pid, "in another session, so that not the group's end ends it"

    os.kill(starter.pid, signal.SIGKILL)

    eventually(lambda: not child.alive, 5, "the end of the child")
