"""The sample flights: real, typed, always the same, and without two of one key."""

from itertools import islice
from pathlib import Path

import pytest

from app import samples
from app.errors import PermanentError
from app.events.parsing import EventParser
from app.events.policies import Policies
from app.samples import TOTAL, SamplesMissing, flights
from app.settings import Settings

SETTINGS = Settings(redis_url="redis://x", broker_url="redis://x", mongo_url="mongodb://x/d")


def test_the_first_flight():
    assert list(flights(1)) == [
        {
            "type": "flight.departed",
            "source": "nycflights13",
            "time": "2013-01-01T10:00:00Z",
            "data": {
                "year": 2013,
                "month": 1,
                "day": 1,
                "dep_time": 517,
                "sched_dep_time": 515,
                "dep_delay": 2,
                "arr_time": 830,
                "sched_arr_time": 819,
                "arr_delay": 11,
                "carrier": "UA",
                "flight": 1545,
                "tailnum": "N14228",
                "origin": "EWR",
                "dest": "IAH",
                "air_time": 227,
                "distance": 1400,
                "hour": 5,
                "minute": 15,
                "time_hour": "2013-01-01T10:00:00Z",
            },
        }
    ]


def test_what_is_not_available_is_none():
    cancelled = next(flight["data"] for flight in flights(2_000) if flight["data"]["dep_time"] is None)

    assert cancelled["dep_delay"] is None
    assert type(cancelled["sched_dep_time"]) is int


def test_flights_can_be_taken_in_portions():
    assert list(flights(3, start=2)) == list(islice(flights(10), 2, 5))
    assert list(flights(0)) == []


def test_the_policy_file_gives_every_flight_its_own_key():
    parser = EventParser(Policies.load(Path(__file__).parents[2] / "policies.toml", SETTINGS), SETTINGS)
    some = list(flights(500, start=100_000))

    assert len(parser.values(some)) == 500


def test_no_two_flights_have_the_same_key_fields():
    """The whole year, which is what the policy file's comment claims."""
    seen = set()
    count = 0
    for flight in flights(10**9):
        data = flight["data"]
        seen.add((data["carrier"], data["flight"], data["origin"], data["time_hour"]))
        count += 1

    assert count == TOTAL
    assert len(seen) == TOTAL


def test_a_missing_package_is_one_plain_sentence(monkeypatch):
    monkeypatch.setattr(samples, "find_spec", lambda name: None)

    with pytest.raises(SamplesMissing, match="sample data is missing: install it with") as caught:
        next(flights(1))
    assert isinstance(caught.value, PermanentError)


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_a_damaged_package_is_one_plain_sentence(monkeypatch, tmp_path, content):
    archive = tmp_path / "flights.csv.zip"
    if content is not None:
        archive.write_bytes(content)
    monkeypatch.setattr(samples, "_archive", lambda: archive)

    with pytest.raises(SamplesMissing, match="damaged: install it again"):
        next(flights(1))
