"""Events with ``async def`` handlers, beside each other: up to ``async_limit`` of a slice at once, as tasks on the process's event loop.

They come back in groups: all that have finished since this thread looked last, and what finishes soon after. So a slow handler delays nobody
else's commit, and a group costs about what one event would: those that need no transaction are one insert into the ledger. Those whose
transactional handlers used MongoDB are committed by then, each in a transaction that it shared with nobody.

Guarantees: when :func:`commit_concurrently` returns or raises, no handler that it began is running.
"""

import asyncio
import contextlib
import queue
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from workers.handling import run_async_at_least_once
from workers.judging import NOT_THROUGH, judge, may_go_through
from workers.run import Run, Work
from workers.sessions import Sessions
from workers.storing import judge_taken, store, won
from workers.transaction import Unanswered, commit_async_transaction_of

GATHER_S = 0.01
"""How long a group waits for others that still run; meanwhile the next ones have begun."""


@dataclass(slots=True)
class Task:
    """An event on its way.

    Attributes:
        session: of its transaction, where it has ``async def`` transactional handlers.
        passed: its ``at_least_once`` handlers have run.
        tries: transactions that were begun.
        give_up_at: until when they may go on, by the monotonic clock; 0 before the first.
        committed: by a transaction of its own.
        error: why it did not go through.
    """

    work: Work
    session: AsyncClientSession | None
    passed: bool = False
    tries: int = 0
    give_up_at: float = 0.0
    committed: bool = False
    error: BaseException | None = None


def commit_concurrently(run: Run, works: Sequence[Work], sessions: Sessions, together: Callable[[list[Work]], None]) -> None:
    """Run the handlers of events that have ``async def`` ones, and commit the events as they finish.

    Args:
        run: the task's execution.
        works: the events.
        sessions: of the slice.
        together: commits events in a plain transaction: those whose ``async def`` handlers are all ``at_least_once``, and which have plain
            transactional ones.

    Raises:
        StoreUnavailable, CommitUnknown: MongoDB is away.
    """
    if not works:
        return
    once = {work.entry.key: work for work in reversed(works)}  # a session is for one at a time
    tasks = Tasks(run, [Task(work, sessions.on_loop.get(key)) for key, work in reversed(once.items())])
    try:
        for group in tasks:
            again = _settle(run, group, sessions, together)
            tasks.start(again)
    finally:
        won(run, [task.work for task in tasks.end() if task.committed])
    judge_taken(run, [work for work in works if work is not once[work.entry.key]])


def _settle(run: Run, group: Sequence[Task], sessions: Sessions, together: Callable[[list[Work]], None]) -> list[Task]:
    """Commit what has gone through and note what has not; the tasks to be tried again."""
    through = [task for task in group if task.error is None]
    won(run, [task.work for task in through if task.committed])
    store(run, [task.work for task in through if not task.committed and (task.session is not None or not task.work.transactional)])
    together([task.work for task in through if task.session is None and task.work.transactional])
    again: list[Task] = []
    for task in group:
        if task.error is None:
            continue
        if not isinstance(task.error, NOT_THROUGH):
            raise task.error
        key = task.work.entry.key
        if not judge(run, task.work, task.error, session_id=sessions.id_for(key), give_up_at=task.give_up_at):
            again.append(task)
    return again


class Tasks:
    """Runs tasks on the loop. Iterating gives them back in groups, until none is left."""

    def __init__(self, run: Run, tasks: Sequence[Task]) -> None:
        self._run = run
        self._limit = asyncio.Semaphore(run.runtime.settings.async_limit)
        self._finished: queue.SimpleQueue[list[Task]] = queue.SimpleQueue()
        self._group: list[Task] = []
        self._running: set[asyncio.Task[None]] = set()
        self._left = 0
        self._ending = False
        self.start(tasks)

    def start(self, tasks: Sequence[Task]) -> None:
        """Run these, too."""
        if tasks:
            self._left += len(tasks)
            self._run.runtime.loop.call(self._start, tasks)

    def __iter__(self) -> Iterator[list[Task]]:
        while self._left:
            group = self._finished.get()
            until = time.monotonic() + GATHER_S
            with contextlib.suppress(queue.Empty):
                while len(group) < self._left:
                    group += self._finished.get(timeout=max(0.0, until - time.monotonic()))
            self._left -= len(group)
            yield group

    def end(self) -> list[Task]:
        """Begin nothing more, and wait for what runs; gives it back, with what never began."""
        self._ending = True
        return [task for group in self for task in group]

    # ------------------------------------------------------------------------------------------------------------ on the loop

    def _start(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            running = asyncio.get_running_loop().create_task(self._one(task))
            self._running.add(running)  # the loop itself keeps no hold of it
            running.add_done_callback(self._running.discard)

    async def _one(self, task: Task) -> None:
        task.error = None
        try:
            async with self._limit:
                if not self._ending:
                    await self._through(task)
        except BaseException as error:  # noqa: BLE001  it is for the thread that waits, and an exit must not end the loop
            task.error = error
        if not self._group:
            asyncio.get_running_loop().call_soon(self._hand_back)  # with all others that finish in this turn of the loop
        self._group.append(task)

    def _hand_back(self) -> None:
        group, self._group = self._group, []
        self._finished.put(group)

    async def _through(self, task: Task) -> None:
        """Run the handlers; try again on write conflicts for as long as a handler may take."""
        run, work = self._run, task.work
        if not task.passed:
            await run_async_at_least_once(run, work)
            task.passed = True
        if task.session is None:
            return
        task.give_up_at = task.give_up_at or time.monotonic() + work.policy.max_handler_s
        while True:
            if task.tries:
                await asyncio.sleep(random.uniform(0.002, 0.02) * min(task.tries, 10))
            task.tries += 1
            try:
                task.committed = await commit_async_transaction_of(run, work, task.session)
            except (OperationFailure, Unanswered) as error:
                if not may_go_through(error) or time.monotonic() > task.give_up_at:
                    raise
            else:
                return
