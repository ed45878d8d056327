"""``workers.testing.deliver``: handlers tested by their authors, on a real MongoDB."""

from typing import Any

from app.samples import flights
from app.settings import Settings
from workers import Context, PermanentFailure
from workers.examples.departures import count_departure
from workers.testing import deliver


def test_a_declared_handler_in_three_lines(settings: Settings) -> None:
    done = deliver(count_departure, next(flights(1)), **urls(settings))
    assert done.outcome == "won"
    assert done.db.departures_by_airport.find_one({"_id": "EWR"})["count"] == 1


def test_the_same_event_again_is_skipped(settings: Settings) -> None:
    def times(event: Any, context: Context) -> int:
        return context.db.seen.insert_one({"n": event.data["n"]}) and 7

    event = {"type": "t", "id": "1", "data": {"n": 1}}
    first = deliver(times, event, **urls(settings))
    again = deliver(times, event, mongo_url=first.mongo_url, redis_url=first.redis_url)
    assert (first.outcome, first.result, again.outcome) == ("won", 7, "skipped")
    assert again.db.seen.count_documents({}) == 1


def test_a_failure_is_told_and_rolled_back(settings: Settings) -> None:
    def never(event: Any, context: Context) -> None:
        context.db.seen.insert_one({"n": 1})
        raise PermanentFailure("not this one")

    done = deliver(never, {"type": "t", "data": {}}, **urls(settings))
    assert done.outcome == "failed"
    assert done.failure is not None
    assert done.failure["state"] == "dead"
    assert done.db.seen.count_documents({}) == 0


def test_without_urls_it_starts_its_own_servers() -> None:
    def nothing(event: Any, context: Context) -> None:
        pass

    assert deliver(nothing, {"type": "t", "data": {}}).outcome == "won"


def urls(settings: Settings) -> dict[str, str]:
    return {"mongo_url": settings.mongo_url, "redis_url": settings.redis_url}
