"""The protocol's model, checked exhaustively by Spin (Debian: ``spin`` and ``gcc``); broken variants must be seen to fail."""

import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("dedup.pml")


def check(folder: Path, *variant: str, fair: bool = True) -> str:
    """What Spin's verifier says of the model: safety and, where they are, cycles in which the event is never finished."""
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {program}")
    run(folder, "spin", "-a", *variant, str(MODEL))
    run(folder, "gcc", "-O2", "-w", *(["-DNFAIR=8"] if fair else []), "-o", "verifier", "pan.c")
    return run(folder, "./verifier", "-a", "-m400000", *(["-f"] if fair else []))


def run(folder: Path, *argv: str) -> str:
    """A program's output; it must end well."""
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_never_two_commits_and_every_accepted_event_finishes(tmp_path: Path) -> None:
    """G1, G2: with crashes, pauses, a Redis that forgets and a MongoDB restored, over all interleavings."""
    said = check(tmp_path)
    assert "errors: 0" in said, said
    assert "max search depth too small" not in said


@pytest.mark.parametrize(
    ("variant", "fair", "fault"),
    [
        pytest.param("-DNO_FENCE", True, "assertion violated (commits<=1)", id="commit without the unique fence"),
        pytest.param("-DREDIS_DECIDES", True, "assertion violated ledger", id="removal justified by Redis"),
        pytest.param("-DNO_FORGET", True, "acceptance cycle", id="a refuted mark of done is left alone"),
        pytest.param("-DNO_SWEEPER", False, "acceptance cycle", id="nobody sends again"),
    ],
)
def test_broken_variants_are_seen_to_fail(tmp_path: Path, variant: str, fair: bool, fault: str) -> None:
    assert fault in check(tmp_path, variant, fair=fair)
