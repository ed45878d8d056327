"""Processes and records of different versions meet."""

import threading

import msgspec
import socketio
import uvicorn
from celery import Celery
from redis import Redis

from app.messages import announcement, delivery
from app.naming import PROCESS_TASK, queue_of, task_id
from app.presence import Beat, Presence
from app.stores.meta import deployment_id
from app.stores.records import utc_now
from tests.support.system import System, events
from tests.support.waiting import eventually


def test_what_a_newer_version_wrote_is_refused_aloud_and_kept(system: System) -> None:
    """G1: a newer batch, a newer message and a newer listener stop nothing, get nothing done wrongly, and lose nothing."""
    system.up(1)
    system.await_fan_out("listener-1")
    deployment = deployment_id(system.db)
    with Redis.from_url(system.settings.redis_url) as redis, Redis.from_url(system.settings.broker_url) as broker:
        # given a listener of the next version, and a batch of the next version in the inbox
        beat = Beat(node="listener-9@host", listener="listener-9", pid=1, reads=2)
        bridge, listener = system.processes["bridge"].log, system.listener("listener-1").log

        def refused() -> bool:
            Presence(redis, deployment).beat(beat)
            return '"listener.refused"' in bridge.read_text()

        eventually(refused, 10)
        system.processes["bridge"].pause()
        keys = system.accept(events(5))
        newer = system.db.inbox.find_one_and_update({"forwards": 0}, {"$set": {"v": 2}})
        assert newer is not None
        system.processes["bridge"].resume()

        # and messages about it, of the next version and of this one
        entries = [(e["key"], e["digest"], e["type"]) for e in newer["events"]]
        known = delivery([announcement(newer["_id"], entries, utc_now())], deployment=deployment, seq=1, forwards=1)
        with Celery(broker=system.settings.broker_url, task_ignore_result=True) as app:
            for n, message in enumerate((known | {"v": 2}, known | {"v": 1}, {"v": 3}, "nonsense")):
                app.send_task(
                    PROCESS_TASK, [message], queue=queue_of("listener-1"), task_id=task_id(f"of-another-version-{n}", 0, "listener-1")
                )

        # when others come
        Presence(redis, deployment).beat(beat)
        system.accept(events(200))
        eventually(lambda: system.db.events.count_documents({"_id": {"$in": list(system.told)}}) == len(system.told) - len(keys), 20)
        eventually(lambda: '"batch.refused"' in bridge.read_text(), 5)
        eventually(lambda: listener.read_text().count('"delivery.unreadable"') == 3 and "UnknownVersion" in listener.read_text(), 10)

        # then the newer ones are as they were
        assert broker.llen(queue_of("listener-9")) == 0
        assert [d["_id"] for d in system.db.inbox.find()] == [newer["_id"]]
        assert system.db.events.count_documents({"_id": {"$in": keys}}) == 0

        # and once everybody speaks one version, all is done
        Presence(redis, deployment).beat(msgspec.structs.replace(beat, reads=1))
        system.db.inbox.update_one({"_id": newer["_id"]}, {"$set": {"v": 1}})
        system.await_finished(20)
    system.audit()


class Newer:
    """A broadcaster of the next version, which announces what nobody here knows to each bridge that connects."""

    def __init__(self) -> None:
        self._sockets = socketio.AsyncServer(async_mode="asgi", namespaces=["/bridge"])
        self._sockets.on("connect", self._announce, namespace="/bridge")
        self._server = uvicorn.Server(uvicorn.Config(socketio.ASGIApp(self._sockets), host="127.0.0.1", port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)

    async def _announce(self, sid: str, _environ: object, _auth: object) -> None:
        for said in (msgspec.msgpack.encode([{"v": 2, "batch": "b", "keys": ["k"]}]), b"\xc1", 5):
            self._sockets.start_background_task(self._sockets.emit, "batches", said, to=sid, namespace="/bridge")

    def __enter__(self) -> str:
        self._thread.start()
        eventually(lambda: self._server.started, 10)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)


def test_an_announcement_of_a_newer_version_is_refused_aloud(system: System) -> None:
    """G1: a bridge that does not know what a broadcaster announces says so once, and goes on with what it knows."""
    system.start_broadcaster()
    with Newer() as newer:
        bridge = system.start_bridge(env={"DEDUP_BROADCASTER_URL": f"{system.url},{newer}"})
        system.start_listener("listener-1")
        system.await_listeners(1)
        eventually(lambda: "announcement has version 2" in bridge.log.read_text() and "bridge.rubbish" in bridge.log.read_text(), 15)
        system.accept(events(100))
        system.await_finished(20)
        bridge.kill()
    system.audit()
