"""Paused event types: they stay in the inbox until they are resumed.

| collection | ``_id`` | fields |
|---|---|---|
| ``meta`` | ``paused`` | ``types``: array of event types, ``v`` |

A pause is seen within :data:`REFRESH_S` by listeners and sweeper; what is being handled goes on to its end.
"""

import time
from collections.abc import Callable

from pymongo.database import Database

from app.errors import InvalidEvent
from app.events.attributes import check_text
from app.naming import MESSAGE_VERSION
from app.stores.mongo import Document, translated

REFRESH_S = 1.0
"""How old a listener's knowledge of pauses may be."""


class Pauses:
    """Which types are paused. Thread-safe.

    Args:
        db: the deployment's database.
        clock: monotonic seconds.
    """

    def __init__(self, db: Database[Document], clock: Callable[[], float] = time.monotonic) -> None:
        self._meta = db["meta"]
        self._clock = clock
        self._known: frozenset[str] = frozenset()
        self._known_at = float("-inf")

    def paused(self) -> frozenset[str]:
        """The paused types, as of at most :data:`REFRESH_S` ago.

        Raises:
            StoreUnavailable: MongoDB is away.
        """
        if self._clock() - self._known_at > REFRESH_S:
            with translated("reading paused types"):
                found = self._meta.find_one({"_id": "paused"})
            self._known = frozenset(found["types"]) if found else frozenset()
            self._known_at = self._clock()
        return self._known

    def pause(self, type: str) -> None:
        """Park events of ``type`` in the inbox; safe to repeat.

        Raises:
            InvalidEvent: no event can be of such a type, or it is a pattern, which nothing here would match.
            StoreUnavailable: MongoDB is away.
        """
        if "*" in check_text(type, "type"):
            raise InvalidEvent("a pattern cannot be paused: pause each type by its name", field="type")
        with translated("pausing a type"):
            self._meta.update_one({"_id": "paused"}, {"$addToSet": {"types": type}, "$set": {"v": MESSAGE_VERSION}}, upsert=True)
        self._known_at = float("-inf")

    def resume(self, type: str) -> bool:
        """Let events of ``type`` go on; False when it was not paused."""
        with translated("resuming a type"):
            changed = self._meta.update_one({"_id": "paused"}, {"$pull": {"types": type}}).modified_count == 1
        self._known_at = float("-inf")
        return changed
