"""Handlers for benchmarks, loaded in the listeners that they measure.

| type | handler |
|---|---|
| ``bench.plain.<ms>``, ``bench.async.<ms>`` | takes so many milliseconds, as a plain function or an ``async def``; transactional |
| ``bench.outside.<ms>`` | the same as an ``async def`` outside the transaction: ``at_least_once`` |
| ``bench.spread``, ``bench.spread.async`` | transactional, adds one to one of 10,000 documents; as a plain function or an ``async def`` |
| ``bench.hot`` | transactional, adds one to one of three documents, which all listeners want |
| ``bench.stuck`` | the first to enter says who it is in ``DEDUP_BENCH_STUCK`` and stays until it is killed |

Where ``DEDUP_BENCH_RECEIVED`` names a folder, every delivery that arrives adds a line to a file in it: how many keys it names, and its sequence number.
"""

import asyncio
import os
import time
import zlib
from pathlib import Path
from typing import Any

from celery.signals import task_received

from app.events.event import Event
from workers import Context, handler

SPREAD_OVER = 10_000
COUNTS = "bench_counts"
_STUCK_S = 60.0


@handler("bench.plain.*")
def plain(event: Event, _context: Context) -> None:
    """Take a while."""
    time.sleep(_seconds(event))


@handler("bench.async.*")
async def waiting(event: Event, _context: Context) -> None:
    """Take a while, beside others."""
    await asyncio.sleep(_seconds(event))


@handler("bench.outside.*", at_least_once=True)
async def waiting_outside(event: Event, _context: Context) -> None:
    """The same, with no transaction open meanwhile."""
    await asyncio.sleep(_seconds(event))


@handler("bench.spread")
def spread(event: Event, context: Context) -> None:
    """Count in a document that few others want."""
    _count(context, _one_of_many(event))


@handler("bench.spread.async")
async def spread_async(event: Event, context: Context) -> None:
    """The same, beside others."""
    counts: Any = context.db[COUNTS]
    await counts.update_one({"_id": _one_of_many(event)}, {"$inc": {"count": 1}}, upsert=True)


@handler("bench.hot")
def hot(event: Event, context: Context) -> None:
    """Count by airport, as the example handler does."""
    _count(context, f"hot-{event.data['origin']}")


@handler("bench.stuck", at_least_once=True)
def stuck(_event: Event, context: Context) -> None:
    """Hang, if nobody has before."""
    _hang_once(context)


@handler("bench.stuck.open")
def stuck_inside(_event: Event, context: Context) -> None:
    """The same with a transaction open."""
    _hang_once(context)


def _hang_once(context: Context) -> None:
    try:
        with Path(os.environ["DEDUP_BENCH_STUCK"]).open("x") as file:
            file.write(context.listener)
    except FileExistsError:
        return
    time.sleep(_STUCK_S)


def _one_of_many(event: Event) -> str:
    return f"spread-{zlib.crc32((event.id or '').encode()) % SPREAD_OVER}"


def _count(context: Context, name: str) -> None:
    context.db[COUNTS].update_one({"_id": name}, {"$inc": {"count": 1}}, upsert=True)


def _seconds(event: Event) -> float:
    return float(event.type.rpartition(".")[2]) / 1000


def _note(request: Any, **_: Any) -> None:
    message = request.message.payload[0][0]
    with (Path(os.environ["DEDUP_BENCH_RECEIVED"]) / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{len(message['keys'])} {message['seq']}\n")


if "DEDUP_BENCH_RECEIVED" in os.environ:
    task_received.connect(_note)
