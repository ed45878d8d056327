"""Socket.IO namespace ``/watch``: what open pages are told.

| event | argument | when |
|---|---|---|
| ``frame`` | :meth:`broadcaster.live.sample.Sample.take` | four times a second, where there is something new |
| ``state`` | :func:`state_view` | every second |

Guarantees: the same token as everywhere; without a page that is open nothing is asked, counted or kept; a page that does not read is
told less, not the others. Not guaranteed: that a page hears everything; the next ``state`` puts its numbers right.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pymongo.database import Database

from app import redis_client
from app.settings import Settings
from app.stores.meta import deployment_id
from app.stores.mongo import Document
from broadcaster.answers import encode
from broadcaster.ingress import Stored
from broadcaster.live.relay import Relay
from broadcaster.live.sample import Sample
from broadcaster.sockets import SocketServer
from broadcaster.stats import Report

NAMESPACE = "/watch"
FRAME_S = 0.25
STATE_S = 1.0

LetIn = Callable[[str, dict[str, Any], Any], Awaitable[None]]


class Watchers:
    """The open pages. Belongs to one event loop.

    Args:
        server: the Socket.IO server; the namespace's connect handler is set here.
        report: the numbers.
        db, settings: of the deployment.
        let_in: refuses clients without the token.
    """

    def __init__(self, server: SocketServer, report: Report, db: Database[Document], settings: Settings, let_in: LetIn) -> None:
        self._server = server
        self._report = report
        self._let_in = let_in
        self._sample: Sample | None = None
        self._client = redis_client.connect(settings)
        self._relay = Relay(self._client, lambda: deployment_id(db), self._told)
        self._somebody = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        server.on("connect", self._welcome, namespace=NAMESPACE)

    def start(self) -> None:
        """Begin to wait for pages."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._tell_frames()), loop.create_task(self._tell_states())]

    async def stop(self) -> None:
        """Tell nothing more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._relay.stop()
        self._client.close()

    def push(self, stored: list[Stored]) -> None:
        """Take in what was accepted; never waits."""
        if self._sample is not None:
            self._sample.accepted(stored)

    async def _welcome(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
        await self._let_in(sid, environ, auth)
        self._somebody.set()
        asyncio.get_running_loop().call_later(FRAME_S, self._somebody.set)  # a page is counted as open a moment after this

    def _told(self, told: Any) -> None:
        if self._sample is not None:
            self._sample.told(told)

    async def _tell_frames(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._somebody.wait()
            self._sample = Sample(loop.time)
            self._relay.start()
            await asyncio.sleep(FRAME_S)  # the page that woke us is let in by then
            while self._server.members(NAMESPACE):
                if frame := self._sample.take():
                    self._send("frame", frame)
                await asyncio.sleep(FRAME_S)
            self._somebody.clear()
            self._relay.stop()
            self._sample = None

    async def _tell_states(self) -> None:
        while True:
            await self._somebody.wait()
            self._send("state", state_view(await self._report.stats(), self._relay.error))
            await asyncio.sleep(STATE_S)

    def _send(self, name: str, content: Any) -> None:
        pages = self._server.members(NAMESPACE)
        if pages:
            self._server.send_json(pages, NAMESPACE, encode([name, content]))


def state_view(stats: dict[str, Any], outcomes_error: str) -> dict[str, Any]:
    """What a page shows of ``GET /stats``, of a size that does not grow with types and nodes.

    Returns:
        ``accepted, inbox, ledger, failures, redis`` as there; ``listeners``: ``name, silent_ms, won, skipped, failed, queue``, and
        ``life``, which changes when the listener's counts begin anew; ``outcomes``: ``{"ok": bool, "error"?}``.
    """
    listeners = [
        {name: listener[name] for name in ("name", "silent_ms", "won", "skipped", "failed", "queue")}
        | {"life": ",".join(sorted(f"{node['node']}#{node['pid']}#{node['started_ms']}" for node in listener["nodes"]))}
        for listener in stats["listeners"]
    ]
    return {
        "accepted": {"events": stats["accepted"]["events"], "since": stats["accepted"]["since"]},
        "inbox": stats["inbox"],
        "ledger": stats["ledger"],
        "failures": stats["failures"],
        "redis": stats["redis"],
        "listeners": listeners,
        "outcomes": {"ok": not outcomes_error, "error": outcomes_error},
    }
