"""The fixtures themselves: what tests rely on to be apart from each other."""

import pytest

from app.settings import load_settings
from tests.support import servers as support
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


def test_a_missing_server_skips_here_and_fails_in_ci(monkeypatch):
    monkeypatch.setattr(support, "IN_CI", False)
    with pytest.raises(pytest.skip.Exception, match="no mongod"):
        support.missing("no mongod")

    monkeypatch.setattr(support, "IN_CI", True)
    with pytest.raises(pytest.fail.Exception, match="in CI nothing is skipped: no mongod"):
        support.missing("no mongod")


def test_eventually_returns_the_answer_or_tells_what_was_awaited():
    answers = iter([0, 0, 7])
    assert eventually(lambda: next(answers), 1) == 7

    with pytest.raises(AssertionError, match=r"not within 0 s: a true answer \(last answer: 0\)"):
        eventually(lambda: 0, 0, "a true answer")
