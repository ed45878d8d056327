"""The fixtures themselves: what tests rely on to be apart from each other."""

import subprocess
import sys

import pytest

from app.settings import load_settings
from tests.support import servers as support
from tests.support.system import ROOT
from tests.support.waiting import eventually


def test_settings_share_nothing_and_leave_nothing(servers, make_settings):
    first, second = make_settings(lease_ms=500), make_settings()
    assert first.lease_ms == 500
    assert len({first.redis_url, first.broker_url, second.redis_url, second.broker_url}) == 4
    assert first.mongo_url != second.mongo_url
    assert len({first.port, first.flower_port, second.port, second.flower_port}) == 4

    with servers.valkey.client(int(first.redis_url.rpartition("/")[2])) as redis, servers.mongo.nodes[0].client() as mongo:
        redis.set("a", "b")
        mongo[first.mongo_url.rpartition("/")[2].partition("?")[0]]["t"].insert_one({})
        support.remove_data(first)
        assert redis.dbsize() == 0
        assert first.mongo_url.rpartition("/")[2].partition("?")[0] not in mongo.list_database_names()


def test_a_child_gets_all_settings_through_its_environment(make_settings, monkeypatch):
    settings = make_settings(handlers=("a.b", "c"), lease_ms=700)
    monkeypatch.setenv("DEDUP_TOKEN", "of the developer's shell")

    env = support.environment(settings)

    assert load_settings(env, folder=settings.home.parent) == settings


def test_private_servers_are_apart_from_the_shared_ones(servers, private_servers):
    assert private_servers.info.redis_url != servers.info.redis_url
    assert private_servers.info.mongo_url != servers.info.mongo_url


SKIPPING = """
import pytest

@pytest.fixture
def server():
    pytest.skip("no mongod")

def test_with_a_fixture(server): ...

def test_by_itself():
    pytest.skip("no mongod")
"""
SKIPPING_ITSELF = """
import pytest

pytest.skip("no mongod", allow_module_level=True)
"""


@pytest.mark.parametrize(("ci", "counted"), [("", "3 skipped"), ("true", "1 failed, 2 errors")], ids=["here", "in CI"])
def test_a_missing_server_skips_here_and_fails_in_ci(tmp_path, ci, counted):
    (tmp_path / "test_one.py").write_text(SKIPPING)
    (tmp_path / "test_two.py").write_text(SKIPPING_ITSELF)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p conftest -rs --continue-on-collection-errors\n")
    env = support.environment() | {"CI": ci, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-m", "pytest"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert f"{counted} in " in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("in CI nothing may be: ") == (3 if ci else 0), done.stdout
    assert "no mongod" in done.stdout


def test_eventually_returns_the_answer_or_tells_what_was_awaited():
    answers = iter([0, 0, 7])
    assert eventually(lambda: next(answers), 1) == 7

    with pytest.raises(AssertionError, match=r"not within 0 s: a true answer \(last answer: 0\)"):
        eventually(lambda: 0, 0, "a true answer")
