"""Names that cross process borders: queues, tasks, task ids, listeners.

Pure functions of their arguments; nothing here talks to a server.
"""

import re
from typing import Literal, get_args
from urllib.parse import quote, unquote

PROCESS_TASK = "dedup.process"
"""Name of the one task that every listener runs."""

RECOVERY_QUEUE = "events.recovery"
"""The queue that every listener also consumes; the sweeper sends to it."""

MESSAGE_VERSION = 1
"""Version ``v`` of the task message and of every stored record."""

FailureState = Literal["retrying", "dead", "conflict", "malformed", "stale"]
FAILURE_STATES: tuple[FailureState, ...] = get_args(FailureState)
"""States of what is in ``failures``."""

_LISTENER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


def listener_of(nodename: str) -> str:
    """The listener's name in a Celery node name: ``listener-1@host`` gives ``listener-1``.

    Raises:
        ValueError: the part before ``@`` is not 1 to 64 of ``A-Z a-z 0-9 _ . -`` with a letter or digit first.
    """
    name = nodename.partition("@")[0]
    if not _LISTENER.match(name):
        raise ValueError(f"{name!r} is no listener name: use 1 to 64 letters, digits, '_', '.' or '-', as in listener-1@host")
    return name


def queue_of(listener: str) -> str:
    """The broker queue of a listener: ``events.listener-1``."""
    return f"events.{listener}"


def task_id(first_key: str, more: int, destination: str, attempt: int = 1) -> str:
    """A task id that shows the key in Flower: ``<key>/listener-1``, ``<first key>+249/listener-1``.

    Args:
        first_key: the dedup key of the first event of the delivery; percent-encoded here.
        more: how many events follow the first.
        destination: the listener's name, or ``recovery``.
        attempt: how often this batch has been forwarded, from 1; later ones get ``~2``, ``~3``, so that every delivery
            has its own id.
    """
    tail = f"+{more}" if more else ""
    again = f"~{attempt}" if attempt > 1 else ""
    return f"{quote(first_key, safe=':|,=@')}{tail}/{destination}{again}"


def key_in(text: str) -> str:
    """The key in a task id such as ``<key>+249/listener-1``; a key itself holds neither ``/`` nor ``+`` and is returned as it is."""
    key, slash, _ = text.partition("/")
    return unquote(key.partition("+")[0]) if slash else text
