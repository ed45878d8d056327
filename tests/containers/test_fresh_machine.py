"""The README's two commands on a machine that has only Python, venv, make and git: ``fresh_machine.sh`` in a bare container."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.docker import PYTHON_IMAGE, ROOT, own_name, require_engine

IMAGE = os.environ.get("DEDUP_FRESH_IMAGE", PYTHON_IMAGE)
TEST_ARGS = os.environ.get("DEDUP_FRESH_TEST_ARGS", "--ignore=tests/integration --ignore=tests/e2e --ignore=tests/celery")
"""By default the tests that take minutes are left out: they run on this machine. An empty value runs all."""


@pytest.mark.timeout(3_600)
def test_the_readmes_two_commands_on_a_fresh_machine():
    """What they need beyond Python, venv, make and git, the program names, with the remedy, and so does the README."""
    require_engine().close()
    command = ["docker", "run", "--rm", "--init", "--name", own_name(), "-v", f"{ROOT}:/source:ro", "-e", f"TEST_ARGS={TEST_ARGS}"]
    done = subprocess.run(
        [*command, IMAGE, "bash", "/source/tests/containers/fresh_machine.sh"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-4_000:]
    assert "0 lost · 0 twice" in done.stdout
    assert "passed: make demo" in done.stdout
    assert "passed: make test" in done.stdout
    named = {package for line in re.findall(r"named by .* and installed: (.+)", done.stdout) for package in line.split()}
    readme = (ROOT / "README.md").read_text()
    assert {package for package in named if not re.search(rf"apt install [^`]*\b{re.escape(package)}\b", readme)} == set()
