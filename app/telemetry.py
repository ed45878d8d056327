"""Logs: structlog through the standard library, so that our lines and the libraries' have one form and one stream.

Guarantees: one line per thing that happens, on standard error; JSON when that is no terminal; instants in UTC.

| field | is |
|---|---|
| ``at``, ``level`` | when, by this host's clock; how bad |
| ``event`` | what happened: one name per thing (``batch.accepted``). Of a library: its logger's name, and what it says is ``message`` |
| ``role``, ``pid``, ``listener`` | which process says it; the listener's name in all lines of its processes |
| ``key``, ``token``, ``batch``, ``task``, … | what it is about |
| ``exception`` | a traceback, without what the errors say |

**No payload.** What an error says may quote the event that it stumbled over: a handler's ``ValueError`` does. So errors stand here by
their types; message and traceback are in ``failures``. Only errors of connections and servers say more (:data:`_SPEAKING`). This module holds that for
tracebacks, uncaught errors, and for what libraries say; callers hold it for their own lines.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import Processor

_NOISY = ("engineio", "socketio", "uvicorn", "pymongo", "asyncio", "httpx", "httpcore", "urllib3", "websocket", "multiprocessing")
"""Libraries whose information is our debugging."""

_SPEAKING = frozenset(
    {
        "OSError",
        "RedisError",
        "ConnectionFailure",
        "OperationalError",
        "WorkerLostError",
        "TimeLimitExceeded",
        "TransientError",
        "SettingsError",
    }
)
"""Classes whose messages, and those of their subclasses, are about servers, settings and processes: Python's, redis', pymongo's, kombu's, billiard's, ours."""

_TASK = "_task_of_dedup"
_FIRST = ("at", "level", "event", "message", "role", "pid", "listener")

Line = MutableMapping[str, Any]


def configure(role: str, **bound: Any) -> None:
    """Set up the logs of this process; call it once, at the process's edge.

    Args:
        role: what this process is (``broadcaster``, ``bridge``, …); stands in every line beside its pid.
        bound: what else stands in every line.
    """
    bound = {"role": role, **bound}

    def identify(_logger: Any, _method: str, line: Line) -> Line:
        for name, value in bound.items():
            line.setdefault(name, value)
        line.setdefault("pid", os.getpid())  # asked each time: a pool's child is another process
        return line

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
    handler.addFilter(_Discreet())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _of_library],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _told, *_rendering(terminal=sys.stderr.isatty())],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook, threading.excepthook = _process_failed, _thread_failed


def _process_failed(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
    """What nobody caught is a line, too."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, tb)
    else:
        structlog.get_logger(__name__).critical("process.failed", exc_info=error)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        structlog.get_logger(__name__).error("thread.failed", thread=args.thread.name if args.thread else "", exc_info=args.exc_value)


def name_of(error: BaseException) -> str:
    """An error as it may stand in a log: its type; and what it says where that is about servers, settings and processes."""
    name = type(error).__name__
    if _SPEAKING.isdisjoint(base.__name__ for base in type(error).__mro__):
        return name
    return f"{name}: {str(error)[:500]}"


def traceback_of(error: BaseException) -> str:
    """The traceback of an error and of those that led to it, as Python prints it, but with each error by :func:`name_of`."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < 20:
        seen.add(id(current))
        parts.append("Traceback (most recent call last):\n" + "".join(traceback.format_tb(current.__traceback__)) + _names(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nwhich led to:\n\n".join(reversed(parts))


def _names(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__} of " + ", ".join(_names(one) for one in error.exceptions[:10])
    return name_of(error)


class _Name(str):
    """An error's name that looks the same with ``%r``."""

    __slots__ = ()
    __repr__ = str.__str__


class _Discreet(logging.Filter):
    """Takes out of a library's line what may quote a payload: errors become their names, a task's result loses what a handler returned."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; all of them pass."""
        args = record.args
        if isinstance(args, Mapping):
            named = {name: _Name(name_of(value)) if isinstance(value, BaseException) else value for name, value in args.items()}
            if "exc" in named and record.exc_info and record.exc_info[1] is not None:  # Celery's: the error's text
                named["exc"] = name_of(record.exc_info[1])
            if "return_value" in named:
                named["return_value"] = str(named["return_value"]).partition("; result ")[0]
            record.args = named
            record.__dict__[_TASK] = named.get("id")
        elif isinstance(args, tuple):
            record.args = tuple(_Name(name_of(value)) if isinstance(value, BaseException) else value for value in args)
        if record.name == "asyncio":  # below the first line come the error and the task, as Python shows them
            record.msg, record.args = record.getMessage().partition("\n")[0], None
        return True


def _of_library(_logger: Any, _method: str, line: Line) -> Line:
    """Mark a library's line; where Celery says which task it is about, note that."""
    line["_library"] = True
    if task := getattr(line["_record"], _TASK, None):
        line["task"] = task
    return line


def _told(_logger: Any, _method: str, line: Line) -> Line:
    """Put an exception's traceback in its place."""
    given = line.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        line["exception"] = traceback_of(error)
    return line


def _named_by_logger(_logger: Any, _method: str, line: Line) -> Line:
    """One name for what a library says, whatever it says."""
    if line.pop("_library", False):
        line["event"], line["message"] = line["logger"], line["event"]
    return line


def _in_order(_logger: Any, _method: str, line: Line) -> Line:
    """What all lines have comes first."""
    return {name: line[name] for name in _FIRST if name in line} | dict(line)


def _rendering(*, terminal: bool) -> list[Processor]:
    if terminal:
        return [_unmarked, structlog.dev.ConsoleRenderer(timestamp_key="at", colors="NO_COLOR" not in os.environ)]
    return [_named_by_logger, _in_order, structlog.processors.JSONRenderer(default=str)]


def _unmarked(_logger: Any, _method: str, line: Line) -> Line:
    line.pop("_library", None)
    return line
