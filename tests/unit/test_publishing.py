"""Publishing over Socket.IO: what one client may have under way, against a writer that waits."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from app.events.parsing import EventParser
from app.events.policies import Policies
from app.settings import Settings
from broadcaster.ingress import Ingress
from broadcaster.publishing import MAX_UNDER_WAY, Publishing
from broadcaster.reception import Reception
from broadcaster.refusals import Refusals
from broadcaster.sockets import SocketServer, packet_bytes

SETTINGS = Settings(redis_url="redis://x", broker_url="redis://x", mongo_url="mongodb://x/d")
Publish = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


def run(scenario: Callable[[Publish, threading.Event], Coroutine[Any, Any, None]], **overrides: Any) -> Refusals:
    """Run a scenario; the writer waits until the event is set."""
    settings = replace(SETTINGS, **overrides)
    refusals = Refusals()
    free = threading.Event()

    def write(_documents: Sequence[dict[str, Any]]) -> None:
        assert free.wait(10)

    async def main() -> None:
        ingress = Ingress(write, max_events=500, repeat_for_s=1.0, on_stored=lambda _: None)
        reception = Reception(ingress, settings)
        door = Publishing(SocketServer(), reception, EventParser(Policies.load(None, settings), settings), refusals)
        try:
            async with asyncio.timeout(10):
                await scenario(door._publish, free)
        finally:
            free.set()
            await ingress.close()
            reception.close()
        assert not door._under_way
        assert not reception.budget._by_client

    asyncio.run(main())
    return refusals


def event(n: int) -> dict[str, Any]:
    return {"type": "a", "source": "s", "id": str(n)}


def test_one_client_has_so_many_under_way_and_others_do_not_wait_for_it():
    async def scenario(publish: Publish, free: threading.Event) -> None:
        tasks = [asyncio.create_task(publish("greedy", event(n))) for n in range(MAX_UNDER_WAY + 5)]
        await asyncio.sleep(0)
        other = asyncio.create_task(publish("other", event(-1)))
        await asyncio.wait([tasks[-1]])
        free.set()
        answers = await asyncio.gather(*tasks)
        assert [a["accepted"] for a in answers[:MAX_UNDER_WAY]] == [1] * MAX_UNDER_WAY
        errors = [a["error"] for a in answers[MAX_UNDER_WAY:]]
        assert {(e["status"], e["retry_after_s"]) for e in errors} == {(429, 1)}
        assert (await other)["accepted"] == 1
        assert (await publish("greedy", event(99)))["accepted"] == 1

    assert run(scenario).view() == {"publish": {"429": 5}}


def test_bytes_under_way_count():
    async def scenario(publish: Publish, free: threading.Event) -> None:
        packet_bytes.set(20 * 1024 * 1024)
        tasks = [asyncio.create_task(publish("a", event(n))) for n in range(2)]
        error = (await tasks[1])["error"]
        assert (error["status"], error["retry_after_s"] > 0) == (503, True)
        free.set()
        assert (await tasks[0])["accepted"] == 1

    run(scenario)


def test_what_is_rubbish_is_answered():
    async def scenario(publish: Publish, free: threading.Event) -> None:
        free.set()
        loop: list[Any] = []
        loop.append(loop)
        deep: Any = 1
        for _ in range(100_000):
            deep = [deep]
        wrong = [
            (),
            (1,),
            (None,),
            ("x",),
            ([],),
            ([1],),
            ({},),
            (event(1), event(2)),
            ({1: 2},),
            (b"x",),
            (loop,),
            ([event(1) | {"data": deep}],),
        ]
        wrong += [([event(1) | {"data": object()}],), ([event(1) | {"data": [b"\0" * 1_000_000] * 100_000}],)]
        for arguments in wrong:
            error = (await publish("a", *arguments))["error"]
            assert error["status"] == 422, arguments
        for _ in range(100_000):  # taken apart by hand: its destruction would recurse as deep
            deep = deep[0]

    assert run(scenario).view()["publish"]["422"] >= 10
