"""``dedup demo``: the whole system, from nothing, fed with real flights, audited, and taken down again."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.edge import Interrupted, Signals, home_folder, put, put_json, say
from app.errors import DedupError, ServerStartError
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from pymongo.database import Database

    from app.audit import Audit
    from app.cli.demo_feed import Feed
    from app.cli.demo_view import ListenerCounts, Snapshot, View
    from app.stack import Stack
    from app.stores.mongo import Document

HANDLER = "workers.examples.departures"
POLICIES = Path(__file__).with_name("demo.toml")
_LOOK_EVERY_S = 0.2
_STALLED_S = 60.0
"""Longest time without progress."""
_LAST_BEATS_S = 6.0
"""Longest wait for the listeners' last heartbeats."""
_HEARD_S = 0.8
"""The bridge asks twice a second which listeners live; an event before that would wait for the sweeper."""
_HEARTBEAT_MS = 500
"""Quicker than the default, for a livelier table."""


def demo(
    events: Annotated[int, typer.Option(min=1, max=336_776, help="How many flights.")] = 5_000,
    listeners: Annotated[int, typer.Option(min=1, max=16, help="How many listeners.")] = 3,
    handler: Annotated[
        bool, typer.Option(help="Count the departures of each airport in the example handler; the audit checks them.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="The last line of standard output is one JSON object; the rest goes to standard error.")
    ] = False,
) -> None:
    """Run the whole system on real flights, audit it, stop it.

    Everything starts on free ports with empty data. Some 50 events come one by one, so that Flower shows what each listener does
    with each; the rest comes in bulk. Every listener gets every event: one wins it, the others skip it. Variables, .env and
    servers of yours are left alone.

    Exit code 0 only when every event was processed once: nothing lost, nothing twice. 'seconds' and 'events_per_s' are those of
    the bulk, from its first request to its last processed event.
    """
    from app.cli.demo_view import View, stream_for

    home = (home_folder() / "demo").absolute()
    with _alone(home):
        try:
            with View(stream_for(as_json=as_json)) as view:
                result = _run(home, events=events, listeners=listeners, handler=handler, view=view)
        except Interrupted:
            _remove_data(home)
            raise
        _tell(result, home, as_json=as_json)
        if not result["ok"]:
            raise typer.Exit(1)
        _remove_data(home)


def _run(home: Path, *, events: int, listeners: int, handler: bool, view: "View") -> dict[str, Any]:
    from app.stack import Stack

    started = time.monotonic()
    _remove_data(home)
    shutil.rmtree(home / "logs", ignore_errors=True)
    stack = Stack(_settings(home, handler=handler), embedded=True, listeners=listeners, cwd=home, report=view.note)
    with Signals().caught() as signals:
        signals.hurry = stack.hurry
        try:
            stack.start()
            view.note(f"ready after {time.monotonic() - started:.1f} s; Flower: {stack.flower_url}/tasks")
            time.sleep(_HEARD_S)
            result = _feed_and_audit(stack, events, view, counted=handler)
            signals.ending()
        except Interrupted:
            say("stopping")
            raise
        finally:
            signals.ending()
            stack.stop()
    return result | {"total_s": round(time.monotonic() - started, 1)}


def _settings(home: Path, *, handler: bool) -> Settings:
    """The demo's own settings; nothing of the environment gets in."""
    from app.embedded.ports import free_port
    from app.stack import placeholder_urls

    port = free_port()
    flower_port = free_port()
    while flower_port == port:
        flower_port = free_port()
    return load_settings(
        {},
        folder=home,
        **placeholder_urls(),
        home=home,
        port=port,
        flower_port=flower_port,
        policies=POLICIES,
        heartbeat_ms=_HEARTBEAT_MS,
        handlers=(HANDLER,) if handler else (),
    )


def _feed_and_audit(stack: "Stack", events: int, view: "View", *, counted: bool) -> dict[str, Any]:
    from app.audit import COUNTS, audit
    from app.cli.demo_feed import Feed
    from app.stores import mongo

    db = mongo.connect(stack.settings, role="demo")
    feed = Feed(stack.broadcaster_url, events)
    feed.start()
    try:
        watch = Watch(stack, db, feed, events)
        done_at = watch.until_finished(view)
        last = watch.last_beats()
        view.end(last)
        view.note("auditing")
        found = audit(db, expected=feed.keys, counted_from_start=counted)
        departures = {str(row["_id"]): int(row["count"]) for row in db[COUNTS].find().sort("_id")}
    finally:
        feed.stop()
        db.client.close()
    return _result(stack, feed, found, last, seconds=max(done_at - feed.bulk_at, 0.001)) | {"departures": departures}


def _result(stack: "Stack", feed: "Feed", found: "Audit", last: "Snapshot", *, seconds: float) -> dict[str, Any]:
    bulk = len(feed.keys) - (feed.bulk_from or 0)
    return {
        "accepted": len(feed.keys),
        "processed": found.processed,
        "won": sum(entry.won for entry in last.listeners),
        "skipped": sum(entry.skipped for entry in last.listeners),
        "lost": found.lost,
        "twice": found.twice,
        "seconds": round(seconds, 3),
        "events_per_s": round(bulk / seconds, 1),
        "bulk_events": bulk,
        "unfinished": found.unfinished,
        "failures": found.failures,
        "listeners": len(stack.listeners),
        "by_listener": {entry.name: {"won": entry.won, "skipped": entry.skipped, "failed": entry.failed} for entry in last.listeners},
        "flower_url": stack.flower_url,
        "ok": found.ok and found.processed == len(feed.keys),
    }


class Watch:
    """Sees what has become of the events, out of MongoDB and the listeners' heartbeats."""

    def __init__(self, stack: "Stack", db: "Database[Document]", feed: "Feed", events: int) -> None:
        from app.stores.failures import Failures
        from app.stores.inbox import Inbox
        from app.stores.ledger import Ledger

        self._stack = stack
        self._feed = feed
        self._events = events
        self._ledger = Ledger(db)
        self._failures = Failures(db)
        self._inbox = Inbox(db)

    def until_finished(self, view: "View") -> float:
        """Show the progress until nothing is left to do; returns when that was, by the monotonic clock.

        Raises:
            DedupError: the feed ended in an error, or nothing has moved for a minute.
        """
        moved_at, before = time.monotonic(), -1
        while True:
            self._stack.look_after()
            alive = self._feed.is_alive()
            now = self.snapshot()
            seen_at = time.monotonic()
            view.show(now)
            if self._feed.error:
                raise self._feed.error
            if not alive and now.finished >= now.accepted and self._inbox.size() == 0:
                return seen_at
            if now.finished + now.accepted != before:
                moved_at, before = seen_at, now.finished + now.accepted
            elif seen_at - moved_at > _STALLED_S:
                raise DedupError(f"nothing has moved for a minute, with {now.lag:,} events unfinished; the logs are in {self._stack.logs}")
            time.sleep(_LOOK_EVERY_S)

    def snapshot(self) -> "Snapshot":
        """The present state."""
        from app.cli.demo_view import Snapshot

        accepted = len(self._feed.keys)  # before the rest, which may only be ahead of it
        return Snapshot(
            events=self._events,
            accepted=accepted,
            processed=self._ledger.size(),
            failures=sum(self._failures.counts().values()),
            listeners=self._listeners(),
        )

    def last_beats(self) -> "Snapshot":
        """The state once every listener has told of every event, or when that takes too long."""
        give_up_at = time.monotonic() + _LAST_BEATS_S
        while True:
            now = self.snapshot()
            told = sum(entry.won + entry.skipped + entry.failed for entry in now.listeners)
            if told >= now.accepted * len(now.listeners) or time.monotonic() > give_up_at:
                return now
            time.sleep(_LOOK_EVERY_S)

    def _listeners(self) -> "tuple[ListenerCounts, ...]":
        from app.cli.demo_view import ListenerCounts

        found = {listener.name: listener.nodes for listener in self._stack.presence().listeners(within_ms=60_000)}
        return tuple(
            ListenerCounts(
                name=name,
                won=sum(node.won for node in found.get(name, ())),
                skipped=sum(node.skipped for node in found.get(name, ())),
                failed=sum(node.failed for node in found.get(name, ())),
            )
            for name in self._stack.listeners
        )


def _tell(result: dict[str, Any], home: Path, *, as_json: bool) -> None:
    counts = [
        f"{result['accepted']:,} events",
        f"{result['listeners']} listener" + ("s" if result["listeners"] > 1 else ""),
        f"{result['processed']:,} processed" + (" once" if not result["twice"] else ""),
        f"{result['skipped']:,} skipped",
        f"{result['lost']:,} lost",
        f"{result['twice']:,} twice",
    ]
    lines = [" · ".join(counts)]
    if result["failures"] or result["unfinished"]:
        lines.append(f"{result['failures']:,} failures · {result['unfinished']:,} unfinished")
    if result["bulk_events"]:
        lines.append(f"in bulk: {result['bulk_events']:,} events in {result['seconds']:.1f} s, {result['events_per_s']:,.0f} a second")
    if result["departures"]:
        lines.append("counted by the example handler: " + ", ".join(f"{airport} {n:,}" for airport, n in result["departures"].items()))
    lines.append(f"Flower was at {result['flower_url']}; 'make up' keeps everything running")
    if not result["ok"]:
        lines.append(f"the balance does NOT hold; data and logs stay in {home}")
    for line in lines:
        say(line) if as_json else put(line)
    if as_json:
        put_json(result)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one demo per home at a time, for it empties its data.

    Raises:
        ServerStartError: another one runs, or the folder cannot be written.
    """
    if sys.platform == "win32":
        raise ServerStartError("there are no embedded servers for Windows: use WSL 2")
    import fcntl

    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "demo.lock").open("a")
    except OSError as error:
        raise ServerStartError(
            f"{error.filename or home} cannot be written ({error.strerror or error}): set DEDUP_HOME to another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerStartError(f"another demo runs in {home}: wait for it, or set DEDUP_HOME to another folder") from None
        yield


def _remove_data(home: Path) -> None:
    for name in ("valkey", "mongo"):
        shutil.rmtree(home / name, ignore_errors=True)
