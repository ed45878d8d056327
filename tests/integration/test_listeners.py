"""The end of a listener's name: its queue, its leftovers, its heartbeats; and heartbeats that this version does not know."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from app.broker import Broker
from app.cli.main import exit_code
from app.naming import RECOVERY_QUEUE, queue_of
from app.presence import Beat, known_listeners, remember_listener
from app.retiring import ListenerLives, UnknownListener, forget, retire_silent
from app.settings import Settings
from tests.support.bridging import Place, place_of
from tests.support.servers import use_settings

OLD_MS = 3_600_000


@pytest.fixture
def place(make_settings) -> Iterator[Place]:
    with place_of(make_settings(heartbeat_ms=200, listener_grace_s=1, listener_retire_s=2)) as made:
        yield made


@pytest.fixture
def broker(place: Place) -> Iterator[Broker]:
    with closing(Broker(place.app.connection_for_write)) as made:
        yield made


def deliver_to(place: Place, name: str, *, unacked: int = 0, waiting: int = 0) -> None:
    """Deliveries of a listener: some that a dead process had in hand, as kombu keeps them, some that wait."""
    for number in range(unacked):
        tag = f"{name}-{number}"
        place.broker.hset("unacked", tag, json.dumps([{"body": "", "properties": {}}, "", queue_of(name)]))
        place.broker.zadd("unacked_index", {tag: 1})
    place.broker.sadd(f"_kombu.binding.{RECOVERY_QUEUE}", "\x06\x16".join([queue_of(name), "", queue_of(name)]))
    for _ in range(waiting):
        place.broker.lpush(queue_of(name), "{}")


def silent(place: Place, name: str) -> None:
    """A listener that was heard of long ago."""
    beat = Beat(node=f"{name}@host", listener=name, pid=7, at_ms=place.presence.now_ms() - OLD_MS)
    place.redis.hset(
        f"dedup:{{{place.deployment}}}:=nodes", f"{beat.node}#7", json.dumps({f: getattr(beat, f) for f in beat.__struct_fields__})
    )
    remember_listener(place.db, name)


def left_of(place: Place, name: str) -> list[object]:
    held = [tag for tag, value in place.broker.hgetall("unacked").items() if json.loads(value)[2] == queue_of(name)]
    return [
        *held,
        *(tag for tag in place.broker.zrange("unacked_index", 0, -1) if tag.decode().startswith(name)),
        *place.broker.keys(queue_of(name)),
        *(member for member in place.broker.smembers(f"_kombu.binding.{RECOVERY_QUEUE}") if member.decode().endswith(queue_of(name))),
        *(known for known, _ in known_listeners(place.db) if known == name),
        *(field for field in place.redis.hkeys(f"dedup:{{{place.deployment}}}:=nodes") if field.decode().startswith(f"{name}@")),
    ]


def test_forgetting_removes_all_that_a_listener_left_and_nothing_of_others(place, broker):
    for name in ("gone", "stays"):
        silent(place, name)
        deliver_to(place, name, unacked=2, waiting=3)
    stays = left_of(place, "stays")

    forget(place.db, place.presence, broker, place.settings, "gone")

    assert left_of(place, "gone") == []
    assert left_of(place, "stays") == stays
    assert len(stays) == 2 + 2 + 1 + 1 + 1 + 1


def test_one_that_lives_and_one_that_nobody_knows_are_not_forgotten(place, broker):
    place.beat("alive")
    with pytest.raises(ListenerLives, match="alive was heard of"):
        forget(place.db, place.presence, broker, place.settings, "alive")
    with pytest.raises(UnknownListener, match="'nobody'"):
        forget(place.db, place.presence, broker, place.settings, "nobody")


def test_retirement_removes_the_same(place, broker):
    silent(place, "gone")
    deliver_to(place, "gone", unacked=1, waiting=1)
    place.db["listeners"].update_one(
        {"_id": "gone"}, {"$set": {"last_seen_at": place.db["listeners"].find_one()["last_seen_at"].replace(year=2020)}}
    )

    assert retire_silent(place.db, place.presence, broker, place.settings) == ["gone"]
    assert left_of(place, "gone") == []


def test_the_commands_say_what_they_did(place, monkeypatch, tmp_path, capsys):
    # The broker's settings of this process are of whoever imported celeryconfig first; a queue of its own is not needed here.
    use_settings(monkeypatch, place.settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "app.celery", type("module", (), {"app": place.app}))
    silent(place, "gone")
    place.beat("alive")
    deliver_to(place, "gone", waiting=2)

    assert exit_code(["listeners", "list", "--json"]) == 0
    alive, gone = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (alive["name"], alive["alive"], alive["queue"]) == ("alive", True, 0)
    assert (gone["name"], gone["alive"], gone["queue"]) == ("gone", False, 2)
    assert exit_code(["listeners", "list"]) == 0
    assert "SILENT" in capsys.readouterr().out

    assert exit_code(["listeners", "forget", "gone"]) == 0
    assert "gone is forgotten" in capsys.readouterr().out
    place.beat("alive")  # its last one may have run out on a busy machine
    assert exit_code(["listeners", "forget", "alive"]) == 1
    assert "stop it" in capsys.readouterr().err
    assert left_of(place, "gone") == []


def test_a_heartbeat_that_cannot_be_read_hides_no_other(place):
    key = f"dedup:{{{place.deployment}}}:=nodes"
    place.redis.hset(key, "strange@host#1", b"\xff{")
    place.redis.hset(key, "newer@host#1", json.dumps({"v": 9, "name": "newer"}))
    place.beat("listener-1")

    assert [found.name for found in place.presence.listeners(within_ms=10_000)] == ["listener-1"]
    place.presence.drop_silent(for_ms=0)
    assert place.redis.hexists(key, "newer@host#1"), "left to those who know it"


def test_nothing_is_said_to_listen_where_none_does(settings: Settings, monkeypatch, tmp_path, capsys):
    use_settings(monkeypatch, settings)
    monkeypatch.chdir(tmp_path)
    with place_of(settings) as here:
        monkeypatch.setitem(sys.modules, "app.celery", type("module", (), {"app": here.app}))
        assert exit_code(["listeners", "list"]) == 0
    assert "no listeners" in capsys.readouterr().err
