"""Logs: structlog through the standard library, so that our lines and the libraries' have one form and one stream.

Guarantees: one line per thing that happens, on standard error; JSON when that is no terminal; instants in UTC; the name of the
event first (``batch.accepted``), with what identifies it beside it. Not guaranteed here but by every caller: payloads are
never logged.
"""

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor

_NOISY = ("engineio", "socketio", "uvicorn", "pymongo", "asyncio", "httpx", "httpcore", "urllib3", "websocket")
"""Libraries whose information is our debugging."""


def configure(role: str, *, level: str = "INFO") -> None:
    """Set up the logs of this process; call it once, at the process's edge.

    Args:
        role: what this process is (``broadcaster``, ``bridge``, …); stands in every line beside its pid.
        level: lowest level of our own lines; libraries are heard from ``WARNING`` on.
    """
    bound = {"role": role, "pid": os.getpid()}

    def identify(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in bound.items():
            event.setdefault(name, value)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        identify,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(terminal=sys.stderr.isatty())],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def _rendering(*, terminal: bool) -> list[Processor]:
    if terminal:
        return [structlog.dev.ConsoleRenderer(timestamp_key="at", colors="NO_COLOR" not in os.environ)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
