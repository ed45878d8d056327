"""Events keep what the door took, through the stores' form and back."""

from app.events.event import Event
from app.stores.records import entry_of, event_of, new_batch_id


def test_data_that_looks_like_a_reference_stays_data() -> None:
    data = {"a": [{"$ref": "x", "$id": 1, "more": {"$ref": "y", "$id": "z"}}], "$db": "d"}
    event = Event(key="k", digest="d", type="t", source="s", id=None, time=None, data=data, extra={})
    assert event_of(entry_of(event)) == event


def test_batch_ids_are_ordered_by_time() -> None:
    ids = [new_batch_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [i[:9] for i in ids] == sorted(i[:9] for i in ids)
    assert {len(i) for i in ids} == {26}
