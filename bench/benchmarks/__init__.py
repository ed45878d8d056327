"""The benchmarks, each a module with ``run(options) -> Result``; its docstring says what is measured, and how."""

from importlib import import_module

from bench.measures import Options, Result

NAMES = (
    "throughput",
    "latency",
    "slow",
    "memory",
    "growth",
    "payload",
    "duplicates",
    "listeners",
    "handlers",
    "recovery",
    "backlog",
    "costs",
)
"""In the order in which all of them run."""


def run(name: str, options: Options) -> Result:
    """Run a benchmark by its name.

    Raises:
        BenchError: it has no result.
    """
    found: Result = import_module(f"bench.benchmarks.{name}").run(options)
    return found
