"""Grouping, folding and limits of ingress, against a writer that is a function: nothing here claims anything about MongoDB."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from app.errors import CommitUnknown, InboxFull, InvalidEvent, PermanentError, StoreUnavailable
from app.events.event import Event
from app.stores.submission import prepare
from broadcaster import ingress as ingress_module
from broadcaster.ingress import Ingress, Stored


def event(key: str, digest: str = "d", **fields: Any) -> Event:
    return Event(key=key, digest=digest, type="t", source="s", **fields)


class Writer:
    """Notes what is written; writes wait while it is held, and raise what is queued in ``errors``."""

    def __init__(self) -> None:
        self.writes: list[list[dict[str, Any]]] = []
        self.errors: list[Exception] = []
        self.refuses: str | None = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self, documents: Sequence[dict[str, Any]]) -> None:
        self.writes.append(list(documents))
        assert self.free.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        if self.refuses and any(e["key"] == self.refuses for d in documents for e in d["events"]):
            raise PermanentError("MongoDB cannot hold these events")

    @property
    def documents(self) -> list[list[str]]:
        """The keys of each document, over all writes."""
        return [[e["key"] for e in d["events"]] for write in self.writes for d in write]


Scenario = Callable[[Ingress, Writer], Coroutine[Any, Any, None]]


def run(scenario: Scenario, *, max_events: int = 500, repeat_for_s: float = 5.0, stored: list[Stored] | None = None) -> Writer:
    writer = Writer()

    async def main() -> None:
        ingress = Ingress(
            writer, max_events=max_events, repeat_for_s=repeat_for_s, on_stored=stored.extend if stored is not None else lambda _: None
        )
        try:
            async with asyncio.timeout(10):
                await scenario(ingress, writer)
        finally:
            writer.free.set()
            await ingress.close()

    asyncio.run(main())
    return writer


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the condition is of another thread
        await asyncio.sleep(0.001)


async def while_writers_are_busy(
    ingress: Ingress, writer: Writer, *requests: list[Event], doors: Sequence[str] = ()
) -> tuple[list[asyncio.Task[Any]], list[asyncio.Task[Any]]]:
    """Occupy every writer, then let requests arrive; both as tasks. The caller lets the writer go."""
    writer.free.clear()
    busy = [asyncio.create_task(ingress.accept([event(f"busy-{n}")], door="http")) for n in range(ingress_module.WRITERS)]
    await until(lambda: len(writer.writes) == len(busy))
    names = doors or ["http"] * len(requests)
    waiting = [asyncio.create_task(ingress.accept(events, door=door)) for events, door in zip(requests, names, strict=True)]
    await asyncio.sleep(0)
    return busy, waiting


def test_idle_event_goes_at_once_and_alone():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        receipt = await ingress.accept([event("a")], door="http")
        assert receipt.accepted == 1
        assert receipt.keys == ("a",)
        assert receipt.batch == writer.writes[0][0]["_id"]
        await ingress.accept([event("b")], door="http")

    assert run(scenario).documents == [["a"], ["b"]]


def test_what_arrives_while_the_writers_are_busy_goes_together():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(ingress, writer, *[[event(f"k{n}")] for n in range(20)])
        writer.free.set()
        receipts = await asyncio.gather(*waiting)
        assert len({receipt.batch for receipt in receipts}) == 1
        await asyncio.gather(*busy)

    assert run(scenario).documents[2:] == [[f"k{n}" for n in range(20)]]


def test_equal_events_of_different_requests_are_folded():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(ingress, writer, [event("a"), event("b")], [event("b"), event("c")], [event("a")])
        writer.free.set()
        first, second, third = await asyncio.gather(*waiting)
        assert first.batch == second.batch == third.batch
        assert second.keys == ("b", "c")
        assert second.accepted == 2
        await asyncio.gather(*busy)

    assert run(scenario).documents[2:] == [["a", "b", "c"]]


def test_another_digest_of_a_key_goes_into_another_document_with_its_whole_request():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(
            ingress, writer, [event("a"), event("b")], [event("c"), event("a", "other")], [event("d")]
        )
        writer.free.set()
        first, second, third = await asyncio.gather(*waiting)
        assert first.batch == third.batch != second.batch
        await asyncio.gather(*busy)

    writer = run(scenario)
    assert writer.documents[2:] == [["a", "b", "d"], ["c", "a"]]
    assert len(writer.writes) == 3


def test_a_request_never_spans_two_documents():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        requests = [[event(f"{n}-{i}") for i in range(3)] for n in range(3)]
        busy, waiting = await while_writers_are_busy(ingress, writer, *requests)
        writer.free.set()
        await asyncio.gather(*waiting, *busy)

    written = run(scenario, max_events=7).documents[2:]
    assert written == [["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"], ["2-0", "2-1", "2-2"]]


def test_a_document_holds_events_of_one_door():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(
            ingress, writer, [event("a")], [event("b")], [event("c")], doors=["http", "socketio", "http"]
        )
        writer.free.set()
        await asyncio.gather(*waiting, *busy)

    writer = run(scenario)
    assert [(d["door"], [e["key"] for e in d["events"]]) for d in writer.writes[2]] == [("http", ["a", "c"]), ("socketio", ["b"])]


def test_documents_and_writes_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingress_module, "SHARED_BYTES", 2_500)
    monkeypatch.setattr(ingress_module, "WRITE_BYTES", 5_000)

    async def scenario(ingress: Ingress, writer: Writer) -> None:
        requests = [[event(f"k{n}", data="x" * 800)] for n in range(8)]
        busy, waiting = await while_writers_are_busy(ingress, writer, *requests)
        writer.free.set()
        await asyncio.gather(*waiting, *busy)

    writer = run(scenario)
    assert [[len(d["events"]) for d in write] for write in writer.writes[2:]] == [[2, 2, 1], [2, 1]]


def test_a_write_holds_so_many_documents_at_most():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        requests = [[event("same", f"digest-{n}")] for n in range(ingress_module.WRITE_DOCUMENTS + 1)]
        busy, waiting = await while_writers_are_busy(ingress, writer, *requests)
        writer.free.set()
        await asyncio.gather(*waiting, *busy)

    writer = run(scenario)
    assert [len(write) for write in writer.writes[2:]] == [ingress_module.WRITE_DOCUMENTS, 1]


def test_a_client_that_goes_away_cancels_nobody():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, (first, gone, last) = await while_writers_are_busy(ingress, writer, [event("a")], [event("b")], [event("c")])
        gone.cancel()
        busy[0].cancel()
        writer.free.set()
        await asyncio.gather(first, last, busy[1])
        assert gone.cancelled()

    assert run(scenario).documents[2:] == [["a", "b", "c"]]


def test_an_unconfirmed_write_is_repeated_with_the_same_documents():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        writer.errors = [CommitUnknown("lost"), CommitUnknown("lost again")]
        receipt = await ingress.accept([event("a")], door="http")
        assert [[d["_id"] for d in write] for write in writer.writes] == [[receipt.batch]] * 3
        assert writer.writes[0] == writer.writes[2]

    run(scenario)


def test_a_write_that_stays_unconfirmed_is_told_to_all_of_its_producers():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(ingress, writer, [event("a")], [event("b")])
        writer.errors = [CommitUnknown("lost")] * 50
        writer.free.set()
        answers = await asyncio.gather(*busy, *waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [CommitUnknown] * 4
        writer.errors = []
        await ingress.accept([event("a")], door="http")

    run(scenario, repeat_for_s=0.2)


def test_nobody_waits_for_a_store_that_is_away():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(ingress, writer, [event("a")], [event("b")])
        writer.errors = [StoreUnavailable("away")] * 2
        writer.free.set()
        answers = await asyncio.gather(*busy, *waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 4
        await ingress.accept([event("a")], door="http")

    assert run(scenario).documents[2:] == [["a"]]


def test_a_request_that_the_store_refuses_harms_only_itself():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        writer.refuses = "bad"
        busy, waiting = await while_writers_are_busy(ingress, writer, [event("a")], [event("bad")], [event("b")])
        writer.free.set()
        good, bad, other = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*busy)
        assert good.keys == ("a",)
        assert other.keys == ("b",)
        assert isinstance(bad, InvalidEvent)
        assert bad.status == 422

    run(scenario)


def test_an_unexpected_error_leaves_nobody_waiting():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        writer.errors = [ZeroDivisionError("a bug")]
        with pytest.raises(StoreUnavailable):
            await ingress.accept([event("a")], door="http")
        await ingress.accept([event("a")], door="http")

    run(scenario)


def test_a_full_inbox_takes_nothing():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        ingress.full = "the inbox is full"
        with pytest.raises(InboxFull, match="the inbox is full"):
            await ingress.accept([event("a")], door="http")
        ingress.full = ""
        await ingress.accept([event("a")], door="http")

    assert run(scenario).documents == [["a"]]


def test_what_waits_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingress_module, "WAITING_BYTES", 2_000)

    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(ingress, writer, *[[event(f"k{n}", data="x" * 700)] for n in range(3)])
        with pytest.raises(InboxFull):
            await waiting[2]
        writer.free.set()
        await asyncio.gather(*busy, *waiting[:2])
        await ingress.accept([event("k2", data="x" * 700)], door="http")

    run(scenario)


def test_closing_finishes_what_was_taken_and_takes_no_more():
    async def scenario(ingress: Ingress, writer: Writer) -> None:
        busy, waiting = await while_writers_are_busy(ingress, writer, [event("a")])
        closing = asyncio.create_task(ingress.close())
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable):
            await ingress.accept([event("late")], door="http")
        writer.free.set()
        await asyncio.gather(*busy, *waiting, closing)

    assert run(scenario).documents[2:] == [["a"]]


def test_what_was_stored_is_passed_on_after_its_producers_were_told():
    stored: list[Stored] = []

    async def scenario(ingress: Ingress, writer: Writer) -> None:
        receipt = await ingress.accept([event("a"), event("b")], door="http")
        await until(lambda: bool(stored))
        assert [(s.batch, [e.key for e in s.events]) for s in stored] == [(receipt.batch, ["a", "b"])]
        writer.errors = [StoreUnavailable("away")]
        with pytest.raises(StoreUnavailable):
            await ingress.accept([event("c")], door="http")
        assert len(stored) == 1

    run(scenario, stored=stored)


def test_prepare_keeps_the_order():
    made = prepare([event("b"), event("a")])
    assert made.keys == ("b", "a")
    assert [entry.key for entry in made.entries] == ["b", "a"]
    assert made.size == sum(made.sizes) >= sum(len(entry.body.raw) for entry in made.entries)


@pytest.mark.parametrize(
    "events, status, index",
    [
        ([event("a"), event("b", data=2**63)], 422, 1),
        ([event("a", data={"x\0y": 1})], 422, 0),
        ([event(str(n), data="x" * 3_000_000) for n in range(5)], 413, None),
    ],
)
def test_prepare_refuses_what_an_inbox_document_cannot_hold(events: list[Event], status: int, index: int | None):
    with pytest.raises(InvalidEvent) as refused:
        prepare(events)
    assert (refused.value.status, refused.value.index) == (status, index)
