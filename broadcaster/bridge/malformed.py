"""Payloads of a foreign feed that are no events: kept in ``failures`` as ``malformed``, up to a number, and counted.

Guarantees: a payload is kept once, however often it comes and through however many bridges; ``failures`` is not flooded by a server
that changed its form (G7). Not guaranteed: that every one is kept, nor the whole of a long one; the log says how many are not.
"""

import time
from typing import Any

import bson
import structlog
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from app.errors import DedupError
from app.events.sources import MAX_KEPT_BYTES, Malformed, Source, malformed
from app.events.values import canonical
from app.stores.failures import Failures, Origin
from app.stores.mongo import Document, translated
from app.stores.records import Entry, utc_now

MAX_KEPT = 10_000
"""So many malformed payloads the deployment keeps."""
MAX_BODY_BYTES = 2 * MAX_KEPT_BYTES
"""So long a body may be: all that are kept together stay below the limit of ``failures``, so that no feed closes the doors."""
_COUNT_EVERY_S = 10.0
_SAY_EVERY_S = 10.0

log: Any = structlog.get_logger()


class MalformedStore:
    """Of one feed. For one thread at a time.

    Attributes:
        seen: payloads that were no events.
        unkept: of these, the ones that were only counted.
    """

    def __init__(self, source: Source, db: Database[Document], *, max_kept: int = MAX_KEPT) -> None:
        self.seen = 0
        self.unkept = 0
        self._source = source
        self._max_kept = max_kept
        self._failures = Failures(db)
        self._waiting: list[tuple[Malformed, str]] = []
        self._room = 0
        self._counted_at = self._said_at = float("-inf")

    def note(self, payload: Any, error: DedupError) -> None:
        """Take a payload in; it is kept by the next :meth:`flush`."""
        self.seen += 1
        self._waiting.append((malformed(self._source, payload), str(error)))
        if time.monotonic() - self._said_at > _SAY_EVERY_S:
            self._said_at = time.monotonic()
            # why, is in failures: it may quote the payload
            log.warning("feed.malformed", feed=self._source.name, payloads=self.seen, unkept=self.unkept)

    def flush(self) -> None:
        """Keep what was noted.

        Raises:
            TransientError: MongoDB is away; what was noted waits for the next call.
        """
        if not self._waiting:
            return
        self._count()
        kept = self._waiting[: self._room]
        self._failures.record_final([self._record(one, reason) for one, reason in kept])
        self._room -= len(kept)
        self.unkept += len(self._waiting) - len(kept)
        self._waiting = []

    def _count(self) -> None:
        if time.monotonic() - self._counted_at < _COUNT_EVERY_S:
            return
        with translated("counting malformed payloads"):
            found = self._failures.collection.count_documents({"state": "malformed"}, limit=self._max_kept)
        self._room = self._max_kept - found
        self._counted_at = time.monotonic()

    def _body(self, data: Any) -> bytes:
        """BSON may be many times as long as JSON: then the JSON is kept, as text."""
        body = bson.encode({"source": self._source.name, "data": data})
        return body if len(body) <= MAX_BODY_BYTES else bson.encode({"source": self._source.name, "data": canonical(data).decode()})

    def _record(self, one: Malformed, reason: str) -> tuple[Entry, Origin, str, Document]:
        entry = Entry(one.key, one.digest, self._source.event, RawBSONDocument(self._body(one.data)))
        return entry, Origin(batch=None, accepted_at=utc_now(), listener="", token=0), "malformed", {"reason": reason}
