"""That the benchmarks run, and judge what they measured; never how fast."""

import json
import os
import subprocess
import sys

from tests.e2e.test_demo import clean_environment, processes_in
from tests.support.system import ROOT


def test_a_quick_look_at_throughput_audits_every_way_and_leaves_nothing_behind(tmp_path):
    # Given variables of the user's own, which a benchmark must leave alone
    env = clean_environment() | {"DEDUP_MONGO_URL": "mongodb://127.0.0.1:1/precious", "TMPDIR": str(tmp_path)}

    # When
    command = [sys.executable, "-m", "bench", "throughput", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)

    # Then
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["events"] for row in result["rows"]] == [5_000, 1_000, 500, 5_000, 1_000, 1_000, 300]
    assert all(row["events_per_s"] > 0 for row in result["rows"])
    assert [target["met"] in (True, False) for target in result["targets"]] == [True]
    assert {"machine", "versions", "command", "at"} <= result.keys()
    assert "HTTP, requests of 500: " in done.stderr
    assert processes_in(tmp_path) == []
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - hidden files, too
