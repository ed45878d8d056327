"""The command line of programs that take no arguments: help is one paragraph, and anything else is refused in one sentence.

The broadcaster and the bridge are set by variables. An option that they passed over would leave somebody believing in it.
"""

import sys
import textwrap
from collections.abc import Sequence

WRONG_USAGE = 2


def take_none(program: str, paragraph: str, arguments: Sequence[str]) -> None:
    """Go on where no arguments are given; else end this process.

    Args:
        program: how it is started, as ``python -m broadcaster``.
        paragraph: what ``--help`` says.
        arguments: of this process, without its name.
    """
    if not arguments:
        return
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(f"Usage: {program}\n\n{textwrap.fill(paragraph, 78)}\n")
        sys.exit(0)
    sys.stderr.write(f"dedup: {program} takes no arguments, and {arguments[0]!r} is one: see --help\n")
    sys.exit(WRONG_USAGE)
