"""Handlers whose errors quote the event that they got: what logs must keep to themselves."""

from collections.abc import Callable
from typing import Any, NoReturn

from app.events.event import Event
from workers.handlers import Context, PermanentFailure, RetryLater, handler


def _raise(error: BaseException) -> NoReturn:
    raise error


def _cause(text: str) -> None:
    try:
        _raise(KeyError(text))
    except KeyError as error:
        raise RuntimeError(f"because of {text}") from error


def _later(event: Event, context: Context, text: str) -> None:
    seen = context.db.client.get_database(context.db.name)["later"]
    if not seen.find_one({"_id": event.key}):
        raise RetryLater(3600, text)


WAYS: dict[str, Callable[[Event, Context, str], Any]] = {
    "raise": lambda _event, _context, text: _raise(ValueError(text)),
    "cause": lambda _event, _context, text: _cause(text),
    "group": lambda _event, _context, text: _raise(ExceptionGroup(text, [ValueError(text), KeyError(text)])),
    "dead": lambda _event, _context, text: _raise(PermanentFailure(text)),
    "later": _later,
    "twin": lambda _event, context, text: context.db["twins"].insert_one({"_id": text}) and None,
    "unstorable": lambda event, context, text: context.db["odd"].insert_one({"_id": event.key, text: object()}),
    "refused": lambda event, context, text: context.db["odd"].update_one({"_id": event.key}, {"$" + text: 1}, upsert=True),
    "exit": lambda _event, _context, text: _raise(SystemExit(text)),
    "result": lambda event, _context, _text: {"data": event.data},
    "no-result": lambda _event, _context, text: {"data": {1, 2}, "text": text},
}
"""By what follows ``tell.`` in the type; the text is the event's data."""


@handler("tell.*")
def tells(event: Event, context: Context) -> Any:
    """Fail, or go through, as the type says."""
    return WAYS[event.type.removeprefix("tell.")](event, context, str(event.data))


@handler("tell-async.*")
async def tells_async(event: Event, context: Context) -> None:
    """Fail on the event loop."""
    raise ValueError(str(event.data))


@handler("tell-once.*", at_least_once=True)
def tells_outside(event: Event, context: Context) -> None:
    """Fail outside the transaction."""
    raise ValueError(str(event.data))
