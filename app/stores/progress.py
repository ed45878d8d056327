"""What is finished, decided the one way that counts: by majority read of ``failures``, then of the ledger.

An event is *finished* when its (key, digest) is in the ledger (as digest, superseded or rejected) or in ``failures`` with its
body. So is other content of a committed key, where its type's policy says that it is to be ignored: nothing is kept of that, or a key that
many contents come for would grow without end. The order of the two reads is the order in which an event moves, so that one which moves between them is seen.

An event is *refused* when a record of its key was written by another version of this software: nobody here can tell whether it is
finished, so it is left where it is.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from app.stores.failures import Failures
from app.stores.ledger import Ledger

Pair = tuple[str, str]
"""(key, digest)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Which of some pairs are finished, and which are refused; the others are unfinished."""

    finished: set[Pair]
    refused: set[Pair]


def progress(pairs: Iterable[Pair], *, ledger: Ledger, failures: Failures, ignored: Collection[Pair] = ()) -> Progress:
    """What MongoDB says about ``pairs``.

    Args:
        pairs: the events.
        ledger: where to look last.
        failures: where to look first.
        ignored: those whose types ignore other content of a committed key (:attr:`app.events.policy.Policy.ignores_conflicts`).

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    wanted = set(pairs)
    keys = [key for key, _ in wanted]
    failed = failures.of_keys(keys)
    committed = ledger.find(keys)
    done: set[Pair] = set()
    refused: set[Pair] = set()
    for key, digest in wanted:
        if key in committed and digest in committed[key].digests:
            done.add((key, digest))
        elif (key in committed and not committed[key].known) or any(not f.known for f in failed.get(key, ())):
            refused.add((key, digest))
        elif any(f.digest == digest for f in failed.get(key, ())) or (
            (key, digest) in ignored and key in committed and not committed[key].discarded
        ):
            done.add((key, digest))
    return Progress(finished=done, refused=refused)


def finished(pairs: Iterable[Pair], *, ledger: Ledger, failures: Failures, ignored: Collection[Pair] = ()) -> set[Pair]:
    """The finished ones among ``pairs``; as :func:`progress`.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    return progress(pairs, ledger=ledger, failures=failures, ignored=ignored).finished
