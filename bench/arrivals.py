"""When each event came into the ledger, as somebody who watches it sees it: a change stream, which shows only what a majority holds.

The instants are those at which this process received the change, by its monotonic clock: later than the commit by what the stream takes,
never earlier. Ledger documents say when they were made, which is before their commit is acknowledged, and in whole milliseconds: not used.
"""

import threading
import time
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient

from app.settings import database_of

_INSERTS: list[dict[str, Any]] = [{"$match": {"operationType": "insert"}}, {"$project": {"documentKey": 1}}]
_WAIT_MS = 200


class Arrivals:
    """A context manager that watches a ledger from its beginning to its end.

    Attributes:
        at: by key, when it came, by the monotonic clock.
    """

    def __init__(self, mongo_url: str) -> None:
        self.at: dict[str, float] = {}
        self._client: MongoClient[dict[str, Any]] = MongoClient(mongo_url)
        self._collection = self._client[database_of(mongo_url)]["events"]
        self._watching = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="arrivals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._watching.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def __len__(self) -> int:
        return len(self.at)

    def _watch(self) -> None:
        with self._collection.watch(_INSERTS, max_await_time_ms=_WAIT_MS) as stream:
            self._watching.set()
            while not self._stop.is_set():
                change = stream.try_next()
                if change is not None:
                    self.at[change["documentKey"]["_id"]] = time.monotonic()
