"""A slow handler for ``bench/backlog.py``, and a count of what its listener receives.

``DEDUP_BENCH_HANDLER_MS`` says how long an event takes; every delivery that arrives adds a line to a file in ``DEDUP_BENCH_RECEIVED``.
"""

import os
import time
from pathlib import Path
from typing import Any

from celery.signals import task_received

from app.events.event import Event
from workers import Context, handler

_SECONDS = float(os.environ["DEDUP_BENCH_HANDLER_MS"]) / 1000
_RECEIVED = Path(os.environ["DEDUP_BENCH_RECEIVED"]) / f"{os.getpid()}.txt"


@handler("bench.slow")
def slow(_event: Event, _context: Context) -> None:
    """Take a while."""
    time.sleep(_SECONDS)


@task_received.connect
def count(request: Any, **_: Any) -> None:
    """Note how many keys a delivery names, and how often its batch has been sent."""
    message = request.message.payload[0][0]
    with _RECEIVED.open("a") as file:
        file.write(f"{len(message['keys'])} {message['seq']}\n")
