"""What the claims say about events that MongoDB shows to be unfinished."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from app.claims.store import ClaimStore
from app.stores.progress import Pair

Pairs = TypeVar("Pairs", bound=Collection[Pair])


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What claims hold of some (key, digest) pairs; a pair that is in none of these sets is claimed by nobody.

    Attributes:
        live: somebody's lease on the key runs, for whichever digest.
        lapsed: somebody's lease has run out: its holder died, or hangs.
        done: marked done with this very digest.
    """

    live: frozenset[Pair]
    lapsed: frozenset[Pair]
    done: frozenset[Pair]


def look(claims: ClaimStore, pairs: Sequence[Pair]) -> Claimed:
    """Read the claims of some pairs, in one round trip.

    Raises:
        RedisUnavailable: Redis is away.
    """
    live: set[Pair] = set()
    lapsed: set[Pair] = set()
    done: set[Pair] = set()
    for pair, found in zip(pairs, claims.inspect([key for key, _ in pairs]), strict=True):
        if found is None:
            continue
        if found.state == "processing":
            (live if found.live else lapsed).add(pair)
        elif found.digest == pair[1]:
            done.add(pair)
    return Claimed(live=frozenset(live), lapsed=frozenset(lapsed), done=frozenset(done))


def forget_refuted(claims: ClaimStore, marked: Sequence[Pair], finished: Callable[[Sequence[Pair]], Pairs]) -> tuple[Pairs, int]:
    """Delete marks of done that MongoDB refutes, so that the events can be won again.

    MongoDB is asked once more: an event may have been committed after it was asked first.

    Args:
        claims: the claims.
        marked: pairs that are marked done, and were unfinished when MongoDB was asked first.
        finished: asks MongoDB by majority read which of some pairs are finished.

    Returns:
        The pairs that are finished by now, and how many marks were deleted.
    """
    done = finished(marked)  # of none: none, without a round trip
    refuted = [pair for pair in marked if pair not in done]
    return done, claims.forget_done([key for key, _ in refuted], [digest for _, digest in refuted])


def in_no_hands(pairs: Sequence[Pair], claimed: Claimed) -> list[Pair]:
    """Which unfinished pairs of one delivery, of one batch or several, to send again.

    All of them when none is in a running lease; else those alone whose lease has run out: whoever holds the others is at work
    on this delivery and may come to the rest by itself, but not to what another one's death has locked.
    """
    if any(pair in claimed.live for pair in pairs):
        return [pair for pair in pairs if pair in claimed.lapsed]
    return list(pairs)
