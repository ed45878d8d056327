"""Handlers that fault tests run in real listeners; each leaves one countable effect per event in ``effects``.

What an event is to do stands in its data. Files in ``DEDUP_TEST_GATES`` let a test hold a handler at a known place.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from app.events.event import Event
from workers import Context, PermanentFailure, RetryLater, handler


def effect(event: Event, context: Context) -> None:
    """Count this event's effect, inside the transaction."""
    context.db.effects.update_one({"_id": event.key}, {"$inc": {"n": 1}, "$set": {"listener": context.listener}}, upsert=True)


@handler("fault.count")
def count(event: Event, context: Context) -> None:
    """Just the effect."""
    effect(event, context)


@handler("fault.slow")
def slow(event: Event, context: Context) -> None:
    """Takes ``ms``."""
    time.sleep(event.data["ms"] / 1000)
    effect(event, context)


@handler("fault.wait")
async def wait(event: Event, context: Context) -> None:
    """Waits ``ms`` beside others."""
    await asyncio.sleep(event.data["ms"] / 1000)
    await context.db.effects.update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)


@handler("fault.gate")
def gate(event: Event, context: Context) -> None:
    """Has its effect, says so by a file ``entered-<listener>``, and goes on when ``open`` is there; at most 60 s."""
    effect(event, context)
    is_open = _entered(context)
    while not is_open():
        time.sleep(0.02)


@handler("fault.gate.async")
async def gate_async(event: Event, context: Context) -> None:
    """The same beside others, each in a transaction of its own."""
    await context.db.effects.update_one({"_id": event.key}, {"$inc": {"n": 1}}, upsert=True)
    is_open = _entered(context)
    while not is_open():  # noqa: ASYNC110  a file has no event
        await asyncio.sleep(0.02)


def _entered(context: Context) -> Callable[[], bool]:
    gates = Path(os.environ["DEDUP_TEST_GATES"])
    (gates / f"entered-{context.listener}").write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    return lambda: (gates / "open").exists() or time.monotonic() > deadline


@handler("fault.mixed")
def mixed(event: Event, context: Context) -> dict[str, int] | None:
    """Does what ``do`` says: kill, hang, raise (``times`` times, or always), exit or unwritable (from the second attempt on), dead, later, or nothing
    special.
    """
    do = event.data.get("do")
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "hang":
        time.sleep(3600)
    if do == "raise" and context.attempt <= event.data.get("times", 1_000_000):
        raise ValueError("as it was told")
    if do in ("exit", "unwritable") and context.attempt == 1:
        raise ValueError("at first like any other")
    if do == "exit":
        sys.exit(-1)
    if do == "unwritable":
        raise ValueError("no such file: \udcff.csv")
    if do == "dead":
        raise PermanentFailure("never")
    if do == "later" and time.time() < event.data["until"]:
        raise RetryLater(0.2)
    effect(event, context)
    return {"attempt": context.attempt}


@handler("fault.credit")
def credit(event: Event, context: Context) -> None:
    """The bank: an amount onto an account."""
    context.db.accounts.update_one({"_id": event.data["account"]}, {"$inc": {"balance": event.data["amount"]}}, upsert=True)
    effect(event, context)
