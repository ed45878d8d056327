"""Events out of files: JSON lines and CSV, one at a time, each with the number of its line.

Guaranteed: what is yielded is one JSON object as bytes; a line that is none is a :class:`BadLine` with its number. Whether it is a
good event is for the broadcaster to say. Files are read line by line; nothing is held.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from app.errors import PermanentError

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})\Z")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,15})\.[0-9]{1,15}\Z")

_WANTED = "a file of JSON lines has one event, a JSON object, on each line"


class BadLine(PermanentError):
    """A line that is no event.

    Attributes:
        number: of the line, from 1.
        detail: what is wrong with it.
    """

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(f"line {number}: {detail}")
        self.number = number
        self.detail = detail


OnBad = Callable[[BadLine], None]
"""Told of a bad line; the reading goes on if it returns."""


def refuse(bad: BadLine) -> None:
    """The usual answer to a bad line: raise it."""
    raise bad


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How a row of CSV becomes an event.

    Attributes:
        type: its type.
        source: its source.
        id_column: column that becomes the event's id; it stays in the data too.
        time_column: the same for its time.
        text: leave every value a string; by default those that are numbers become numbers, and empty ones null.
    """

    type: str
    source: str
    id_column: str | None = None
    time_column: str | None = None
    text: bool = False


def json_lines(lines: Iterable[bytes], on_bad: OnBad = refuse) -> Iterator[tuple[int, bytes]]:
    """Events of a file with one JSON object per line; empty lines and a byte order mark are passed over.

    A line that is not JSON, or no object, goes to ``on_bad``.
    """
    decoder = msgspec.json.Decoder()
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if not text:
            continue
        try:
            is_object = isinstance(decoder.decode(text), dict)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            on_bad(BadLine(number, f"not JSON ({error}); {_WANTED}"))
        except RecursionError:
            on_bad(BadLine(number, "nested too deeply"))
        else:
            if is_object:
                yield number, text
            else:
                on_bad(BadLine(number, f"not a JSON object; {_WANTED}"))


def csv_rows(lines: Iterable[bytes], row: Row, on_bad: OnBad = refuse) -> Iterator[tuple[int, bytes]]:
    """Events of a CSV file in UTF-8 whose first row names the columns.

    A row of another length goes to ``on_bad``.

    Raises:
        BadLine: no header, a column that is named twice or missing, quotes that do not close, not UTF-8.
    """
    reader = csv.reader((line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(lines)), strict=True)
    try:
        names = next(reader, [])
        _check_header(names, row)
        for values in reader:
            if len(values) == len(names):
                yield reader.line_num, _event_of(names, values, row)
            elif values:
                on_bad(BadLine(reader.line_num, f"{len(values)} values for {len(names)} columns"))
    except csv.Error as error:
        raise BadLine(reader.line_num, f"not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise BadLine(reader.line_num + 1, f"not UTF-8: {error.reason}") from error


def _check_header(names: list[str], row: Row) -> None:
    if not names:
        raise BadLine(1, "there is no header that names the columns")
    if len(set(names)) < len(names) or "" in names:
        raise BadLine(1, "every column needs a name of its own")
    for column in (row.id_column, row.time_column):
        if column is not None and column not in names:
            raise BadLine(1, f"there is no column {column!r}, only {', '.join(names)}")


def _event_of(names: list[str], values: list[str], row: Row) -> bytes:
    texts = dict(zip(names, values, strict=True))
    event: dict[str, Any] = {"type": row.type, "source": row.source}
    if row.id_column is not None:
        event["id"] = texts[row.id_column]
    if row.time_column is not None:
        event["time"] = texts[row.time_column]
    event["data"] = texts if row.text else {name: _value(text) for name, text in texts.items()}
    return msgspec.json.encode(event)


def _value(text: str) -> str | int | float | None:
    """The number that a text is, if writing the number gives back the text; null for an empty text; else the text."""
    if not text:
        return None
    if _WHOLE.match(text):
        return int(text) if text != "-0" else text
    if _DECIMAL.match(text):
        number = float(text)
        return number if repr(number) == text else text
    return text
