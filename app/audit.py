"""The audit: what MongoDB, and MongoDB alone, says about events: processed, lost, twice, unfinished, failed.

What it can see:

* ``processed``: documents of the ledger.
* ``unfinished``: (key, digest) pairs of the inbox that are neither in the ledger nor in ``failures``: still on their way.
* ``failures``: documents of ``failures`` by state. They have their bodies and wait for a retry or a decision, so they are not lost.
* ``lost``: of the keys that the caller expects (those that a door answered 202 for), the ones that are in none of the three.
  Without expected keys, only what shows itself: events of the inbox and of ``failures`` whose body is missing.
* ``twice``: departures with the same carrier, flight, origin and hour under more than one key, which a wrong key rule would
  make; and, where the example handler keeps its counts, departures that were counted and are not in the ledger. A key that
  stands twice in the ledger cannot be: ``_id`` is unique. What an operator had processed again (:mod:`app.reprocessing`) was
  meant to be counted again, and the ledger says how often it was committed.
* ``uncounted``: the other way round, departures in the ledger that the example handler did not count. It is asked for when the
  handler is known to have been there from the first event on, and then is part of ``lost``.

What it cannot see: an event that no door acknowledged, what a handler did outside MongoDB, keys that were processed and whose
retention is over. Numbers are exact when nothing moves; while events flow, an event that moves between two reads is never
missed, for the reads follow its way (inbox, failures, ledger).

Reads are majority reads of the primary. A whole ledger is scanned where it holds departures.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec
import pymongo
from pymongo.database import Database

from app.samples import TYPE
from app.stores.failures import Failures
from app.stores.ledger import Ledger
from app.stores.mongo import Document, translated
from app.stores.progress import Pair, finished

Item = TypeVar("Item")

IDENTITY = ("carrier", "flight", "origin", "time_hour")
"""What makes two departures the same one, whatever their keys say."""
COUNTS = "departures_by_airport"
"""Collection of the example handler: ``{_id: airport, count}``."""

_LONGEST_S = 120.0
"""A scan may take longer than other calls."""
_CHUNK = 1_000
_SHOWN = 10
"""So many keys are named of each kind."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found; see the module's docstring for the words.

    Attributes:
        expected: distinct keys that the caller expected, or None when it named none.
        lost_keys, twice_keys: some of them, for a person to look up.
    """

    processed: int
    lost: int
    twice: int
    unfinished: int
    failures: int
    failures_by_state: dict[str, int]
    uncounted: int
    expected: int | None
    lost_keys: list[str]
    twice_keys: list[str]

    @property
    def ok(self) -> bool:
        """Whether everything is done and right: nothing lost, twice or unfinished."""
        return self.lost == self.twice == self.unfinished == 0


def audit(db: Database[Document], *, expected: Iterable[str] | None = None, counted_from_start: bool = False) -> Audit:
    """Draw the balance.

    Args:
        db: the deployment's database, from :func:`app.stores.mongo.connect`.
        expected: keys that were accepted; a key named twice counts once.
        counted_from_start: the example handler has run since the first event, so departures that it did not count are lost.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    wanted = None if expected is None else list(dict.fromkeys(expected))
    with translated("auditing"):
        db.client.admin.command("ping")  # an absent server shows within the usual time, not the longest
    with translated("auditing"), pymongo.timeout(_LONGEST_S):
        # The order of the reads is the order in which an event moves.
        waiting = _waiting(db)
        failed = Failures(db).counts()
        missing = list(_missing(db, wanted or (), {key for key, _ in waiting}))
        bodiless = [key for (key, _), has_body in waiting.items() if not has_body] + _failures_without_body(db)
        unfinished = _unfinished(db, list(waiting))
        twins = _twins(db)
        excess, uncounted = _counts_against_ledger(db, must_be_there=counted_from_start)
        processed = Ledger(db).count()
    return Audit(
        processed=processed,
        lost=len(missing) + len(bodiless) + (uncounted if counted_from_start else 0),
        twice=sum(surplus for _, surplus in twins) + excess,
        unfinished=unfinished,
        failures=sum(failed.values()),
        failures_by_state=dict(sorted(failed.items())),
        uncounted=uncounted,
        expected=None if wanted is None else len(wanted),
        lost_keys=(missing + bodiless)[:_SHOWN],
        twice_keys=[key for key, _ in twins[:_SHOWN]],
    )


def _waiting(db: Database[Document]) -> dict[Pair, bool]:
    """The events of the inbox, and whether each has its body."""
    event = {"k": "$$e.key", "d": "$$e.digest", "b": {"$eq": [{"$type": "$$e.body"}, "object"]}}
    rows = db["inbox"].aggregate([{"$project": {"events": {"$map": {"input": "$events", "as": "e", "in": event}}}}])
    return {(e["k"], e["d"]): e["b"] for row in rows for e in row["events"]}


def _unfinished(db: Database[Document], pairs: Sequence[Pair]) -> int:
    ledger, failures = Ledger(db), Failures(db)
    return sum(len(chunk) - len(finished(chunk, ledger=ledger, failures=failures)) for chunk in _chunks(pairs))


def _missing(db: Database[Document], keys: Sequence[str], waiting: set[str]) -> Iterator[str]:
    """The keys that are neither waiting nor in ``failures`` nor in the ledger."""
    for chunk in _chunks(keys):
        found = {d["key"] for d in db["failures"].find({"key": {"$in": chunk}}, {"_id": 0, "key": 1})}
        found |= {d["_id"] for d in db["events"].find({"_id": {"$in": chunk}}, {"_id": 1})}
        yield from (key for key in chunk if key not in found and key not in waiting)


def _failures_without_body(db: Database[Document]) -> list[str]:
    return [str(d.get("key", d["_id"])) for d in db["failures"].find({"body": {"$not": {"$type": "object"}}}, {"key": 1})]


def _twins(db: Database[Document]) -> list[tuple[str, int]]:
    """Departures that the ledger has under several keys: one of the keys, and how many too many."""
    identity = {name: f"$body.data.{name}" for name in IDENTITY}
    complete: Document = {f"body.data.{name}": {"$exists": True} for name in IDENTITY}
    rows = db["events"].aggregate(
        [
            {"$match": {"type": TYPE, **complete}},
            {"$group": {"_id": identity, "n": {"$sum": 1}, "key": {"$max": "$_id"}}},
            {"$match": {"n": {"$gt": 1}}},
        ],
        allowDiskUse=True,
    )
    return sorted((str(row["key"]), int(row["n"]) - 1) for row in rows)


def _counts_against_ledger(db: Database[Document], *, must_be_there: bool) -> tuple[int, int]:
    """The example handler's counts beside the ledger: how many too many, how many too few.

    The counts are read first, and each is committed together with its document of the ledger: so none can be too high by chance.
    """
    counts = Counter({str(d["_id"]): int(d.get("count", 0)) for d in db[COUNTS].find()})
    if not counts and not must_be_there:
        return 0, 0
    commits: Document = {"$add": [1, {"$ifNull": ["$recommits", 0]}]}  # an operator may have had it processed again
    rows = db["events"].aggregate([{"$match": {"type": TYPE}}, {"$group": {"_id": "$body.data.origin", "n": {"$sum": commits}}}])
    committed = Counter({str(row["_id"]): int(row["n"]) for row in rows})
    return (counts - committed).total(), (committed - counts).total()


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
