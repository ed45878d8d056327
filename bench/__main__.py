"""``python -m bench [NAME …] [--quick | --full] [--runs N] [--json]``; without a name, all of them. ``python -m bench report`` writes the record.

Progress goes to standard error, tables (or JSON: one object for one name, else a list) to standard output. Exit code 1 when a benchmark has no result,
because its system lost an event, say; a target that is not met is a result.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from typing import Any

import msgspec

from bench import benchmarks
from bench.measures import Options
from bench.record import record, save
from bench.report import as_text, write_report
from bench.rig import BenchError


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    given = _arguments()
    if given.names == ["report"]:
        return _report()
    options = Options(mode="quick" if given.quick else "full" if given.full else "default", runs=given.runs, say=_say)
    found: list[dict[str, Any]] = []
    failed = False
    for name in given.names or benchmarks.NAMES:
        try:
            found.append(_run(name, options))
        except BenchError as error:
            failed = True
            _say(f"{name} has no result: {error}")
        except Exception:  # noqa: BLE001 - the edge of a long series, whose other benchmarks go on
            failed = True
            _say(f"{name} has no result:\n{traceback.format_exc()}")
        else:
            if not given.json:
                print(as_text(found[-1]), flush=True)
    if given.json:
        print(msgspec.json.encode(found[0] if len(given.names) == 1 and found else found).decode())
    return 1 if failed else 0


def _report() -> int:
    try:
        for line in write_report():
            _say(line)
    except BenchError as error:
        _say(f"there is no record: {error}")
        return 1
    return 0


def _run(name: str, options: Options) -> dict[str, Any]:
    began = time.monotonic()
    _say(f"{name}: begins")
    result = record(benchmarks.run(name, options), options, seconds=time.monotonic() - began)
    _say(f"{name}: done after {result['seconds']:.0f} s, written to {save(result)}")
    return result


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks; each on a system of its own.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(benchmarks.NAMES)}; or report; by default all of them")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="tiny numbers: shows that it works, says little")
    amount.add_argument("--full", action="store_true", help="the largest numbers; takes long")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each case, of which the median counts")
    parser.add_argument("--json", action="store_true", help="the results as JSON on standard output")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in (*benchmarks.NAMES, "report")]:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose from {', '.join(benchmarks.NAMES)}")
    return given


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that folders and processes are put away
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
