"""Handlers: the user's functions, and how they are found.

A handler is declared with :func:`handler` in a module named in ``DEDUP_HANDLERS``. By default it is *transactional*: it runs
inside the MongoDB transaction that writes the event's ledger document, and all that it writes through ``context.db`` stands
or falls with that document. With ``at_least_once=True`` it runs before the commit, outside a transaction, and may run more
than once for an event.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pymongo.database import Database

from app.errors import DedupError, HandlerSetupError, PermanentError
from app.events.event import Event
from app.events.patterns import matches, overlap
from app.events.policies import Policies
from app.events.values import find_fault
from app.settings import MAX_SECONDS
from app.stores.mongo import Document

MAX_RESULT_BYTES = 64 * 1024

Function = Callable[[Event, "Context"], Any]
F = TypeVar("F", bound=Callable[..., Any])


class PermanentFailure(DedupError):
    """Raised by a handler: this event will never go through; it is dead at once, without further attempts."""


class RetryLater(DedupError):
    """Raised by a handler: not now, and no attempt. The event comes again after ``seconds``.

    Raises:
        ValueError, TypeError: the time is no number of seconds from 0 to a hundred years.
    """

    def __init__(self, seconds: float, reason: str = "asked for by its handler") -> None:
        super().__init__(reason)
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"RetryLater takes seconds from 0 to {MAX_SECONDS}, not {seconds!r:.100}")
        self.seconds = seconds


class ResultRefused(PermanentError):
    """A handler returned something that is not JSON, or too large to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a handler gets beside the event.

    Attributes:
        db: the deployment's database; for a transactional handler bound to the transaction, so that a forgotten
            ``session=`` cannot escape it. Threads that the handler starts are outside.
        key: the event's dedup key: pass it on as idempotency key.
        fencing_token: grows with every winner of the key: pass it on to whatever can refuse an older one.
        attempt: 1 for the first run.
        listener: name of this listener.
    """

    db: Database[Document]
    key: str
    fencing_token: int
    attempt: int
    listener: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A declared handler.

    Attributes:
        name: unique in a listener.
        pattern: an event type, or one with ``*`` in it.
        function: the user's.
        at_least_once: it runs before the commit, outside the transaction.
        is_async: it is an ``async def``.
    """

    name: str
    pattern: str
    function: Function
    at_least_once: bool = False
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(self.function))  # asked several times for each event

    def matches(self, type: str) -> bool:
        """Whether it takes events of ``type``: equal, or fitting a pattern whose ``*`` stands for any text."""
        return matches(self.pattern, type)


class Registry:
    """Declared handlers, in the order of their declaration."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self.for_type: Callable[[str], tuple[Handler, ...]] = lru_cache(maxsize=4096)(self._for_type)

    def add(self, new: Handler) -> None:
        """Declare a handler.

        Raises:
            HandlerSetupError: the name is taken.
        """
        if new.name in self._handlers:
            raise HandlerSetupError(f"two handlers are named {new.name!r}: give one of them another name=")
        self._handlers[new.name] = new
        self.for_type.cache_clear()  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def _for_type(self, type: str) -> tuple[Handler, ...]:
        return tuple(h for h in self._handlers.values() if h.matches(type))


registry = Registry()
"""The handlers of this process."""


def handler(pattern: str, *, at_least_once: bool = False, name: str | None = None) -> Callable[[F], F]:
    """Declare a handler for a type of events.

    Args:
        pattern: an event type such as ``flight.departed``, or a pattern such as ``flight.*``.
        at_least_once: run before the commit and outside the transaction, perhaps more than once for an event.
        name: by default ``module.function``; unique in a listener.

    Raises:
        HandlerSetupError: not a function of two arguments, an empty pattern, or a name that is taken.
    """
    if not _is_type(pattern):  # @handler without a type hands the function over
        raise HandlerSetupError("@handler needs an event type, as in @handler('flight.departed')")

    def declare(function: F) -> F:
        label = name or f"{function.__module__}.{function.__qualname__}"
        try:
            inspect.signature(function).bind(None, None)
        except TypeError:
            raise HandlerSetupError(f"handler {label} must take two arguments: event and context") from None
        registry.add(Handler(name=label, pattern=pattern, function=function, at_least_once=at_least_once))
        return function

    return declare


def _is_type(pattern: object) -> bool:
    return isinstance(pattern, str) and bool(pattern)


def load_handlers(modules: Sequence[str]) -> None:
    """Import the modules that declare handlers; those of the working folder too, which Celery takes off the path again.

    Raises:
        HandlerSetupError: one of them does not import; the sentence names it and the error. Or a plain and an ``async def``
            transactional handler may meet in one event, where they could not commit together.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for module in modules:
        try:
            importlib.import_module(module)
        except DedupError:
            raise
        except Exception as error:  # a user's module may raise anything at import: this is the edge
            raise HandlerSetupError(
                f"handler module {module!r} (DEDUP_HANDLERS) does not import: {type(error).__name__}: {error}"
            ) from error
    inside = [h for h in registry if not h.at_least_once]
    for plain in (h for h in inside if not h.is_async):
        for other in (h for h in inside if h.is_async):
            if overlap(plain.pattern, other.pattern):
                raise HandlerSetupError(
                    f"handlers {plain.name} and {other.name} may meet in one event and cannot share a transaction: "
                    "make both of them async def, or one of them at_least_once=True"
                )


def check_times(handlers: Iterable[Handler], policies: Policies, *, lifetime_s: float) -> None:
    """Refuse transactional handlers that may take longer than MongoDB lets a transaction live; others may take as long as their policy says.

    Args:
        handlers: declared ones.
        policies: say how long a handler of a type may take.
        lifetime_s: MongoDB's ``transactionLifetimeLimitSeconds``.

    Raises:
        HandlerSetupError: one sentence with handler, policy and remedy.
    """
    for handler in handlers:
        for policy in () if handler.at_least_once else policies.that_may_hold(handler.pattern):
            if policy.max_handler_s >= lifetime_s:
                raise HandlerSetupError(
                    f"max_handler_s of {policy.pattern or 'all other types'} is {policy.max_handler_s:g}, and {handler.name} is transactional: it must be "
                    f"less than {lifetime_s:g}, MongoDB's transaction lifetime (DEDUP_TRANSACTION_LIFETIME_S), or the handler at_least_once=True"
                )


def checked_result(results: Sequence[Any]) -> Any:
    """What the ledger keeps of the values that an event's handlers returned: None, the one value, or the list of them.

    Raises:
        ResultRefused: not JSON, more than 64 KiB of it, or something in it that MongoDB cannot hold.
    """
    kept = [value for value in results if value is not None]
    if not kept:
        return None
    result = kept[0] if len(kept) == 1 else kept
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultRefused(f"the handler's result is not JSON: {error}") from error
    if len(text) > MAX_RESULT_BYTES:
        raise ResultRefused(f"the handler's result is too large: {len(text)} bytes of JSON, at most {MAX_RESULT_BYTES}")
    kept_value = json.loads(text)
    if (fault := find_fault(kept_value)) is not None:
        raise ResultRefused(f"MongoDB cannot hold the handler's result: result{fault.path} {fault.reason}")
    return kept_value
