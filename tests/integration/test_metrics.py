"""``GET /metrics`` of real broadcasters: the whole deployment's numbers, the same from each, whatever starts, ends or is away."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app import redis_client
from app.embedded.process import ManagedProcess
from app.embedded.servers import EmbeddedServers
from app.feeding import FeedState, FeedStates
from app.presence import Beat, Presence
from app.settings import Settings
from app.stores import mongo
from app.stores.meta import deployment_id
from app.totals import Totals, outcome_field
from broadcaster.metrics import requests
from broadcaster.metrics.requests import Requests
from tests.support.broadcasters import broadcaster_process
from tests.support.servers import fresh_settings
from tests.support.system import System, events, system_on
from tests.support.waiting import eventually


class Scraped:
    """One scrape."""

    def __init__(self, url: str, **headers: str) -> None:
        answer = httpx.get(f"{url}/metrics", timeout=20, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.text
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(answer.text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """One sample, or None."""
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with these labels, whatever else they have."""
        return sum(value for (of, has), value in self.samples.items() if of == name and labels.items() <= dict(has).items())

    def of_deployment(self) -> dict[Any, float]:
        """What every broadcaster must say alike."""
        own = ("dedup_door", "dedup_socketio", "dedup_accepted", "process_", "dedup_inbox_oldest_age")
        return {key: value for key, value in self.samples.items() if not key[0].startswith(own)}


@pytest.fixture
def running(settings: Settings, tmp_path: Path) -> Iterator[tuple[Settings, str]]:
    settings = replace(settings, port=0)
    with broadcaster_process(settings, tmp_path) as (_, url):
        yield settings, url


def refreshed(url: str, wanted: Callable[[Scraped], Any]) -> Scraped:
    """A scrape of which ``wanted`` is true: an answer serves for a second."""
    last: list[Scraped] = []

    def scraped() -> bool:
        last[:] = [Scraped(url)]
        return bool(wanted(last[0]))

    eventually(scraped, 20, lambda: last[0].text if last else "", every_s=0.2)
    return last[0]


# ------------------------------------------------------------------------------------------------------- a single broadcaster


def test_an_empty_deployment_has_numbers_too(running):
    _, url = running
    found = Scraped(url)

    assert (
        found.value("dedup_up", server="mongodb")
        == found.value("dedup_up", server="redis")
        == found.value("dedup_up", server="broker")
        == 1
    )
    assert found.value("dedup_accepting") == 1
    assert found.value("dedup_inbox_batches") == found.value("dedup_inbox_bytes") == found.value("dedup_inbox_oldest_age_seconds") == 0
    assert found.value("dedup_inbox_limit_batches") == 100_000
    assert found.value("dedup_listeners_alive") == 0
    assert {
        state: found.value("dedup_failures", state=state) for state in ("retrying", "dead", "conflict", "stale", "malformed")
    } == dict.fromkeys(("retrying", "dead", "conflict", "stale", "malformed"), 0)
    assert found.value("dedup_queue_messages", queue="events.recovery") == 0
    assert found.value("dedup_sweeper_last_success_timestamp_seconds") is None
    assert found.value("process_resident_memory_bytes") > 1e6


def test_names_follow_the_conventions_of_prometheus(running):
    for family in Scraped(running[1]).families.values():
        assert family.documentation, family.name
        assert family.name.startswith(("dedup_", "process_"))
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_doors_are_counted_by_status_and_refusals_by_reason(running):
    _, url = running
    # Given
    for body, times in ((events(3), 2), ([{"no": "event"}], 1)):
        for _ in range(times):
            httpx.post(f"{url}/events", json=body)
    httpx.post(f"{url}/events", content=b"{")
    httpx.get(f"{url}/events/nobody")
    httpx.delete(f"{url}/coffee/42")

    # Then
    found = refreshed(url, lambda scraped: scraped.value("dedup_door_requests_total", door="other", method="DELETE", status="404"))
    assert found.value("dedup_door_requests_total", door="events", method="POST", status="202") == 2
    assert found.value("dedup_door_requests_total", door="events", method="GET", status="404") == 1
    refused = found.total("dedup_door_refused_total", door="events")
    assert refused == 2 == found.total("dedup_door_requests_total", door="events", method="POST") - 2
    assert found.value("dedup_door_request_duration_seconds_count", door="events") == 4
    assert found.value("dedup_door_request_duration_seconds_bucket", door="events", le="+Inf") == 4
    assert found.value("dedup_accepted_events_total") == 6
    assert found.value("dedup_inbox_batches") == 2


def test_strange_requests_make_no_new_series():
    counts = Requests()
    for number in range(10_000):
        counts.note(f"/{number}/x", f"M{number}", 404, 0.1)
        counts.note(f"odd{number}", "POST", 404, 0.1)
        counts.note(f"/events/{number}", "GET", 404, math.inf)
    assert set(counts.counts) == {("other", "other", 404), ("page", "POST", 404), ("events", "GET", 404)}
    assert {len(histogram.buckets) for histogram in counts.durations.values()} == {len(requests.BOUNDS_S) + 1}


def test_listeners_sweeper_and_feeds_are_read_from_redis(running):
    settings, url = running
    db, client = mongo.connect(settings, role="test"), redis_client.connect(settings)
    deployment = deployment_id(db)
    presence = Presence(client, deployment)

    # Given two listeners, one with two nodes, one that is only known by name; a sweep, a feed, and types with odd names
    for node in ("listener-1@a", "listener-1@b", "listener-2@a"):
        presence.beat(Beat(node=node, listener=node.partition("@")[0], pid=1))
    db["listeners"].insert_one({"_id": "listener-3", "v": 1, "last_seen_at": None})
    presence.note_sweep()
    FeedStates(client, deployment).put(FeedState("shop", "host#1", "http://x", connected=True, accepted=5, malformed=2, unaccepted=1))
    odd = 'a "b"\\\n{c="d"}'
    Totals(client, deployment).add({(outcome_field("listener-1", "won"), odd): 7}, process="p", number=1)

    # Then
    found = refreshed(url, lambda scraped: scraped.value("dedup_listeners_alive") == 2)
    assert [found.value("dedup_listener_alive", listener=f"listener-{n}") for n in (1, 2, 3)] == [1, 1, 0]
    assert found.value("dedup_listener_nodes", listener="listener-1") == 2
    assert found.value("dedup_queue_messages", queue="events.listener-3") == 0
    assert abs(found.value("dedup_sweeper_last_success_timestamp_seconds") - time.time()) < 60
    assert found.value("dedup_feed_connected", feed="shop", node="host#1") == 1
    assert found.value("dedup_feed_payloads_total", feed="shop", node="host#1", outcome="lost") == 1
    assert found.value("dedup_outcomes_total", listener="listener-1", type=odd, outcome="won") == 7
    client.close()
    db.client.close()


def test_many_scrapes_at_once_ask_the_stores_once(running):
    _, url = running
    with httpx.Client(timeout=20) as http:
        texts = {http.get(f"{url}/metrics").text for _ in range(20)}
    assert len(texts) < 20


def test_the_token_is_asked_for(settings, tmp_path):
    with broadcaster_process(replace(settings, port=0, token="secret"), tmp_path) as (_, url):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert httpx.get(f"{url}/metrics", headers=headers).status_code == 401
        assert Scraped(url, Authorization="Bearer secret").value("dedup_up", server="redis") == 1


# ------------------------------------------------------------------------------------------------------------ stores away


def test_a_store_that_is_away_is_said_and_the_rest_goes_on(private_servers: EmbeddedServers, tmp_path: Path):
    settings = fresh_settings(private_servers, tmp_path, port=0, mongo_timeout_ms=1_000)
    with broadcaster_process(settings, tmp_path) as (_, url):
        # Given all is well
        assert refreshed(url, lambda scraped: scraped.value("dedup_up", server="redis")).value("dedup_listeners_alive") == 0

        # When Redis goes
        private_servers.valkey.kill()
        found = refreshed(url, lambda scraped: scraped.value("dedup_up", server="redis") == 0)
        assert found.value("dedup_up", server="broker") == 0
        assert found.value("dedup_up", server="mongodb") == found.value("dedup_accepting") == 1
        assert found.value("dedup_inbox_batches") == 0
        assert found.value("dedup_listeners_alive") is None, "unknown, and not 0"

        # And MongoDB, too
        private_servers.mongo.kill()
        found = refreshed(url, lambda scraped: scraped.value("dedup_up", server="mongodb") == 0)
        assert found.value("dedup_accepting") == 0
        assert found.value("dedup_inbox_batches") is None
        assert found.families.keys() >= {"dedup_inbox_batches", "dedup_failures", "dedup_outcomes", "dedup_listeners_alive"}

        # Then Redis comes back alone
        private_servers.valkey.start()
        found = refreshed(url, lambda scraped: scraped.value("dedup_up", server="redis") == 1)
        assert found.value("dedup_listeners_alive") == 0

        # And MongoDB
        private_servers.mongo.start()
        refreshed(url, lambda scraped: scraped.value("dedup_inbox_batches") == 0)


def test_a_broadcaster_that_starts_without_servers_answers(settings, tmp_path):
    away = replace(settings, port=0, redis_url="redis://127.0.0.1:1/0", broker_url="redis://127.0.0.1:1/1", mongo_timeout_ms=1_000)
    away = replace(away, mongo_url="mongodb://127.0.0.1:1/dedup?replicaSet=rs0")
    with broadcaster_process(away, tmp_path) as (_, url):
        found = Scraped(url)
        assert [found.value("dedup_up", server=name) for name in ("mongodb", "redis", "broker")] == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------- the whole system


@pytest.fixture
def system(settings: Settings, spawn: Callable[..., ManagedProcess], tmp_path: Path) -> Iterator[System]:
    made = system_on(settings, spawn, tmp_path, max_attempts=1)
    yield made
    made.close()


def test_two_broadcasters_count_what_all_children_of_all_listeners_did(system: System):
    """With prefork, two children a listener; a listener and a broadcaster start again in between."""

    def won(scraped: Scraped) -> float:
        return scraped.total("dedup_outcomes_total", outcome="won")

    # Given two broadcasters, a bridge, and two listeners with two child processes each
    system.start_broadcaster("first")
    first = system.url
    system.start_broadcaster("second", env={"DEDUP_PORT": "0"})
    second = system.url
    system.start_bridge(env={"DEDUP_BROADCASTER_URL": f"{first},{second}"})
    for name in ("listener-1", "listener-2"):
        system.start_listener(name, "--pool", "prefork", "--concurrency", "2")
    system.await_listeners(2)
    system.await_fan_out("listener-1", "listener-2")
    before = len(system.told)

    # When events of two types come in by both, in many batches
    for url in (first, second):
        system.url = url
        system.accept(events(200), per_request=10)
        system.accept(events(50, kind="fault.mixed", do="dead"), per_request=10)
    system.await_finished()

    # Then both broadcasters count each event once as won or dead, and its other copy as skipped
    found = refreshed(first, lambda scraped: won(scraped) == before + 400 and scraped.total("dedup_outcomes_total", outcome="dead") == 100)
    assert found.total("dedup_outcomes_total", type="fault.mixed", outcome="won") == 0
    assert found.value("dedup_failures", state="dead") == 100
    assert found.total("dedup_accept_to_ledger_seconds_count") == before + 400
    assert found.total("dedup_claim_duration_seconds_count") > 0 < found.total("dedup_commit_duration_seconds_count")
    assert found.value("dedup_listeners_alive") == 2
    assert Scraped(second).value("dedup_door_requests_total", door="events", method="POST", status="202") >= 25

    # And they say the same
    def alike() -> bool:
        one, other = Scraped(first).of_deployment(), Scraped(second).of_deployment()
        swept = ("dedup_sweeper_last_success_timestamp_seconds", ())
        return one.pop(swept) > 0 < other.pop(swept) and one == other

    eventually(alike, 20, every_s=0.3)

    # When a listener ends in order and starts again, nothing is forgotten
    system.listener("listener-1").terminate()
    system.restart_listener("listener-1")
    system.await_listeners(2)
    system.accept(events(100), per_request=10)
    system.await_finished()
    refreshed(first, lambda scraped: won(scraped) == before + 500)
