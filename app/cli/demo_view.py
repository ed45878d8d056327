"""What the demo shows while it runs: a live table on a terminal, a line every two seconds elsewhere."""

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from app.cli.edge import say

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerCounts:
    """What a listener has said of itself: events won, skipped, failed."""

    name: str
    won: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the demo at one moment.

    Attributes:
        events: how many there will be.
        accepted: answered 202.
        processed: in the ledger.
        failures: in ``failures``.
        listeners: by name.
    """

    events: int
    accepted: int = 0
    processed: int = 0
    failures: int = 0
    listeners: tuple[ListenerCounts, ...] = ()

    @property
    def finished(self) -> int:
        """Events that need nothing more."""
        return self.processed + self.failures

    @property
    def lag(self) -> int:
        """Events accepted and not yet finished."""
        return max(0, self.accepted - self.finished)


class View:
    """Shows snapshots and notes. Also a context manager that takes the live table away."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._plain = not stream.isatty()
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._said_at = float("-inf")
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def note(self, text: str) -> None:
        """A line of its own, above the table."""
        try:
            self._console.print(text, markup=False, soft_wrap=True)
        except OSError:  # the terminal is closed; a signal says so, too
            say(text)

    def show(self, now: Snapshot) -> None:
        """Show the present state."""
        if self._plain:
            self._line(now)
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(_table(now), refresh=True)

    def end(self, last: Snapshot | None = None) -> None:
        """Leave the last state standing; harmless when repeated."""
        if last is not None:
            self._said_at = float("-inf")
            self.show(last)
        self._live.stop()

    def _line(self, now: Snapshot) -> None:
        if time.monotonic() - self._said_at < _LINE_EVERY_S:
            return
        each = " · ".join(f"{entry.name} won {entry.won:,} skipped {entry.skipped:,}" for entry in now.listeners)
        failures = f" · failures {now.failures:,}" if now.failures else ""
        line = f"accepted {now.accepted:,} · processed {now.processed:,} · lag {now.lag:,}{failures} · {each}"
        if line != self._said:
            self.note(line)
            self._said, self._said_at = line, time.monotonic()


def _table(now: Snapshot) -> "RenderableType":
    from rich import box
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("listener")
    for title in ("won", "skipped", "failed"):
        table.add_column(title, justify="right", min_width=9)
    for entry in now.listeners:
        table.add_row(entry.name, f"{entry.won:,}", f"{entry.skipped:,}", f"{entry.failed:,}")
    counts = f"accepted {now.accepted:,}   processed {now.processed:,}   lag {now.lag:,}"
    if now.failures:
        counts += f"   failures {now.failures:,}"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(1, now.events), completed=now.finished, width=40), f"{now.finished * 100 // max(1, now.events)} %")
    return Group(table, counts, bar)


def stream_for(*, as_json: bool) -> IO[str]:
    """Where the demo shows itself: not where its JSON goes."""
    return sys.stderr if as_json else sys.stdout
