"""What all commands share at the edge to the terminal: words on standard error, data on standard output, signals.

Guaranteed: data goes to standard output, everything else to standard error; a terminal or pipe that has gone away stops nobody
from cleaning up.
"""

import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from app.settings import DEFAULT_HOME, PREFIX, SERVER_URLS, variables

if TYPE_CHECKING:
    from rich.console import Console

_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, C1 too, those that turn the direction of writing, and surrogates, which cannot be written."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


def say(text: str) -> None:
    """A line for a person, on standard error."""
    with suppress(OSError, ValueError):  # the terminal is closed
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def put(text: str) -> None:
    """A line of data, on standard output.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def put_json(value: Any) -> None:
    """One JSON value on one line of standard output; instants as RFC 3339 text, bytes as text."""
    put(json_text(value))


def json_text(value: Any) -> str:
    """A value as JSON on one line, with every character escaped that a terminal could take for a command."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, default=_plain, ensure_ascii=False))


def plain(text: str) -> str:
    """Somebody else's text without the characters that a terminal could take for a command; line ends and tabs stay."""
    return _COMMANDS.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", text)


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun, as in ``1 event`` and ``1,000 events``."""
    return f"{number:,} {one if number == 1 else many}"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def console(*, stderr: bool = False) -> "Console":
    """A console that colours nothing by itself; it heeds ``NO_COLOR``, and the terminal's width."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def text_width() -> int | None:
    """Columns to break lines at: the terminal's, or ``COLUMNS``; None into a pipe or a file, whose reader wants whole lines."""
    return console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def hanging(label: str, text: str, *, indent: int, width: int | None) -> Iterator[str]:
    """The lines of a text with a label before its first one, the others indented; one line where ``width`` is None."""
    lines = textwrap.wrap(text, max(20, width - indent)) if width else [text]
    for number, line in enumerate(lines or [""]):
        yield f"{'' if number else label:<{indent}}{line}".rstrip()


def environment(folder: Path | None = None) -> dict[str, str]:
    """The ``DEDUP_`` variables of this process: ``.env`` in the folder, and the environment over it."""
    return {name: value for name, value in variables(folder).items() if name.startswith(PREFIX) and value}


def home_folder() -> Path:
    """Folder of the embedded servers' data, as the environment or the default has it."""
    return Path(environment().get(PREFIX + "HOME", DEFAULT_HOME))


def names_servers(env: dict[str, str]) -> bool:
    """Whether the environment names any server, so that none is to be embedded."""
    return any(PREFIX + name.upper() in env for name in SERVER_URLS)


class Interrupted(BaseException):
    """A signal asks this process to end.

    Attributes:
        signum: which one.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """How a command that has children meets SIGINT, SIGTERM and SIGHUP (a closed terminal).

    The first one raises :class:`Interrupted` wherever the main thread is. From then on, and after :meth:`ending`, each one calls
    ``hurry`` instead, so that a stop under way is cut short but never broken off. A hang-up that the starter of this process has
    ignored (``nohup``) stays ignored; SIGINT does not, for a shell ignores it for everything that it starts with ``&``.

    Attributes:
        hurry: called by the second signal; must not raise.
    """

    def __init__(self) -> None:
        self.hurry: Callable[[], None] = lambda: None
        self._ending = False

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Meet the signals in this way until the block ends."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN or number == signal.SIGINT:
                    signal.signal(number, self._on_signal)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ending(self) -> None:
        """The work is over and the stop begins: a signal shall not break it off."""
        self._ending = True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._ending:
            self.hurry()
            return
        self._ending = True
        raise Interrupted(number)
