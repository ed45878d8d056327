"""``dedup publish``: the events of a file to the broadcaster."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Annotated, Self

import typer

from app.cli.edge import console, counted, environment, home_folder, put, put_json, say
from app.errors import PermanentError
from app.feeds import BadLine, Row, csv_rows, json_lines, refuse
from app.settings import MAX_BATCH_EVENTS, PREFIX

if TYPE_CHECKING:
    from app.publisher import Publisher

MAX_BATCH_BYTES = 4 * 1024 * 1024

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

Numbered = tuple[int, bytes]
"""A line's number, and the event in it."""


class Format(StrEnum):
    """Formats of a file."""

    jsonl = "jsonl"
    csv = "csv"


def publish(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")],
    format: Annotated[Format | None, typer.Option(help="Of the file [default: by its suffix; jsonl for standard input].")] = None,
    type: Annotated[str | None, typer.Option(help="CSV: the type of the events.")] = None,
    source: Annotated[str | None, typer.Option(help="CSV: their source [default: the file's name].")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="CSV: the column that holds the events' id.")] = None,
    time_column: Annotated[str | None, typer.Option("--time", help="CSV: the column that holds their time.")] = None,
    text: Annotated[bool, typer.Option("--text", help="CSV: leave all values strings; else numbers become numbers, '' null.")] = False,
    url: Annotated[str | None, typer.Option(help="The broadcaster's [default: the one started here, or DEDUP_BROADCASTER_URL].")] = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH_EVENTS, help="Events per request.")] = MAX_BATCH_EVENTS,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to repeat a request that the broadcaster does not take.")] = 60.0,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Report bad lines and send the others.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Send the events of a file: JSON lines (one object {type, data, id, source, time} or CloudEvent per line) or CSV.

    The first bad line ends it: what was sent before is accepted, the request with the bad line is not. Mend the line and send the
    whole file again: what is known already is processed no second time. Exit code 1 when a line was bad or the broadcaster did
    not take the events.
    """
    from app.publisher import NotTaken, Publisher

    row = _row_rule(file, format, type=type, source=source, id_column=id_column, time_column=time_column, text=text)
    with ExitStack() as closing:
        stream = closing.enter_context(_opened(file))
        progress = closing.enter_context(_Progress(stream))
        address = url or broadcaster_url()
        publisher = closing.enter_context(
            Publisher(
                address,
                token=environment().get(PREFIX + "TOKEN", ""),
                patience_s=patience,
                on_wait=_Waits(address, patience, progress.note),
            )
        )
        sending = Sending(publisher, keep_going=keep_going, note=progress.note)
        on_bad = sending.bad_line if keep_going else refuse
        lines = csv_rows(progress.reading(), row, on_bad) if row else json_lines(progress.reading(), on_bad)
        ended = False
        try:
            for group in batches(lines, batch):
                sending.send(group)
                progress.show(sending.sent)
            ended = True
        except NotTaken as error:
            if error.answered:
                raise
            raise NotTaken(
                f"nothing answers at {address}: start a broadcaster with 'dedup up', or name one with --url or "
                f"{PREFIX}BROADCASTER_URL; then send the file again",
                answered=False,
            ) from error
        finally:
            progress.end()
            if ended or sending.sent or as_json:
                _sum_up(sending, publisher.url, as_json=as_json)
    if sending.bad:
        raise typer.Exit(1)


class _Waits:
    """Says why it waits, once for each reason in a row."""

    def __init__(self, address: str, patience_s: float, note: Callable[[str], None]) -> None:
        self._address = address
        self._patience_s = patience_s
        self._note = note
        self._said = ""

    def __call__(self, why: str, _pause_s: float) -> None:
        if why != self._said:
            self._said = why
            self._note(f"waiting for {self._address}, for up to {self._patience_s:g} s: {why}")


class Sending:
    """Sends groups of lines, and keeps count.

    Attributes:
        sent: events that were accepted; equal ones of one request count once.
        bad: lines that were refused.
        started: when, by the monotonic clock.
    """

    def __init__(self, publisher: "Publisher", *, keep_going: bool, note: Callable[[str], None]) -> None:
        self._publisher = publisher
        self._keep_going = keep_going
        self._note = note
        self.sent = 0
        self.bad = 0
        self.started = time.monotonic()

    def send(self, group: list[Numbered]) -> None:
        """Send a group as one request; in smaller ones when it is too large.

        Raises:
            BadLine: the broadcaster refuses one of its lines, and bad lines are not passed over.
            Refused: the broadcaster refuses for another reason.
            NotTaken: the broadcaster is away or full.
        """
        from app.publisher import Refused

        while group:
            try:
                self.sent += len(self._publisher.send([event for _, event in group]))
            except Refused as refused:
                index = 0 if len(group) == 1 else refused.index
                if index is None and refused.status == 413:
                    self.send(group[: len(group) // 2])
                    group = group[len(group) // 2 :]
                    continue
                if index is None or refused.status in (401, 403, 404, 405):
                    raise
                bad = BadLine(group[index][0], str(refused) + (f" ({refused.field})" if refused.field else ""))
                if not self._keep_going:
                    raise bad from refused
                self.bad_line(bad)
                group = group[:index] + group[index + 1 :]
            else:
                return

    def bad_line(self, error: BadLine) -> None:
        """Count and say a bad line."""
        self.bad += 1
        self._note(str(error))


def batches(lines: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Group lines into requests of at most ``size`` events and about 4 MiB."""
    group: list[Numbered] = []
    weight = 0
    for number, event in lines:
        if group and (len(group) == size or weight + len(event) > MAX_BATCH_BYTES):
            yield group
            group, weight = [], 0
        group.append((number, event))
        weight += len(event)
    if group:
        yield group


def broadcaster_url() -> str:
    """The broadcaster that this folder's processes use: the one set, or the one started here, or the default port's."""
    env = environment()
    if named := env.get(PREFIX + "BROADCASTER_URL", "").split(",")[0].strip():
        return named
    from app.embedded.serverinfo import running_servers

    info = running_servers(home_folder())
    if info and info.broadcaster_url:
        return info.broadcaster_url
    return f"http://127.0.0.1:{env.get(PREFIX + 'PORT', '4000')}"


def _row_rule(
    file: str, format: Format | None, *, type: str | None, source: str | None, id_column: str | None, time_column: str | None, text: bool
) -> Row | None:
    """How rows become events, or None for JSON lines."""
    suffix = Path(file).suffix.lower()
    known = format or (Format.csv if suffix == ".csv" else Format.jsonl if file == "-" or suffix in _JSON_SUFFIXES else None)
    if known is None:
        raise typer.BadParameter(f"what {file} holds does not show in its name: say --format jsonl or --format csv", param_hint="--format")
    if known is Format.csv:
        if not type:
            raise typer.BadParameter("rows of CSV need a type, as in --type flight.departed", param_hint="--type")
        name = "stdin" if file == "-" else Path(file).name
        return Row(type=type, source=source or name, id_column=id_column, time_column=time_column, text=text)
    given = {"--type": type, "--source": source, "--id": id_column, "--time": time_column, "--text": text}
    for option, value in given.items():
        if value:
            raise typer.BadParameter("this is for CSV; JSON lines say it themselves", param_hint=option)
    return None


def _opened(file: str) -> AbstractContextManager[IO[bytes]]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise PermanentError(f"{file} cannot be read: {error.strerror or error}") from error


class _Progress:
    """A bar on standard error where that is a terminal; nothing but notes where it is none."""

    def __init__(self, stream: IO[bytes]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._stream = stream
        self._read = 0
        self._bar = Progress(
            TextColumn("{task.completed:,} of {task.total:,} bytes" if (total := _size(stream)) else "{task.completed:,} bytes"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[sent]:,} events"),
            TimeRemainingColumn(),
            console=console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total, sent=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def reading(self) -> Iterator[bytes]:
        """The stream's lines, counted."""
        try:
            for line in self._stream:
                self._read += len(line)
                yield line
        except OSError as error:
            raise PermanentError(f"the input cannot be read: {error.strerror or error}") from error

    def show(self, sent: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=self._read, sent=sent)

    def note(self, text: str) -> None:
        """Say something beside the bar."""
        if self._bar.live.is_started:
            self._bar.console.print(text, markup=False, soft_wrap=True)
        else:
            say(text)

    def end(self) -> None:
        """Take the bar away; harmless when repeated."""
        self._bar.stop()


def _size(stream: IO[bytes]) -> int | None:
    import os
    import stat

    try:
        found = os.fstat(stream.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _sum_up(sending: Sending, url: str, *, as_json: bool) -> None:
    seconds = time.monotonic() - sending.started
    if as_json:
        put_json({"accepted": sending.sent, "refused": sending.bad, "seconds": round(seconds, 3)})
    else:
        rate = f", {sending.sent / seconds:,.0f} a second" if sending.sent and seconds > 1 else ""
        refused = f", {counted(sending.bad, 'line', 'lines')} refused" if sending.bad else ""
        put(f"{counted(sending.sent, 'event', 'events')} accepted by {url}{rate}{refused}")
