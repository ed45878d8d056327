"""An event loop in a thread of its own, for ``async def`` handlers; the steps of a task stay plain functions."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

if sys.platform == "win32":
    from asyncio import new_event_loop
else:
    from uvloop import new_event_loop

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads. Started at the first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop; wait for what it returns or raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running()).result()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a plain function on the loop's thread; nobody waits for it."""
        self._running().call_soon_threadsafe(function, *arguments)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="async-handlers", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Stop the loop; one whose thread does not end at once is left to the end of the process."""
        with self._lock:
            if self._loop is not None and self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(1.0)
                if not self._thread.is_alive():
                    self._loop.close()
                self._loop = self._thread = None
