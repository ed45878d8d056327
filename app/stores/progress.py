"""What is finished, decided the one way that counts: by majority read of ``failures``, then of the ledger.

An event is *finished* when its (key, digest) is in the ledger (as digest, superseded or rejected) or in ``failures`` with its
body. The order of the two reads is the order in which an event moves, so that one which moves between them is seen.
"""

from collections.abc import Iterable

from app.stores.failures import Failures
from app.stores.ledger import Ledger

Pair = tuple[str, str]
"""(key, digest)"""


def finished(pairs: Iterable[Pair], *, ledger: Ledger, failures: Failures) -> set[Pair]:
    """The finished ones among ``pairs``.

    Raises:
        StoreUnavailable: MongoDB is away.
    """
    wanted = set(pairs)
    keys = [key for key, _ in wanted]
    failed = failures.of_keys(keys)
    committed = ledger.find(keys)
    return {
        (key, digest)
        for key, digest in wanted
        if (key in committed and digest in committed[key].digests) or any(f.digest == digest for f in failed.get(key, ()))
    }
