"""The claim store: mutual exclusion and quick skipping, for speed alone.

Contract, for every method:
* One round trip for any number of keys (scripts in this folder; their keyspace table is in ``claim.lua``).
* A claim is held by its *claim id*, never by its owner's name: nobody can renew, complete or release another's claim.
* Every method may be repeated with the same arguments: a reply that was lost does no harm.
* Losing everything that is stored here at any moment loses no event and commits none twice. MongoDB decides that; what is
  lost is time.

Not guaranteed: that a claim is held by one claim id only. After a loss, or when a lease runs out under a living owner,
there are two winners, and the ledger lets one commit stand.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, Literal, cast

import msgspec
from redis.commands.core import Script

from app.claims.marks import SHORT, digests_in, heads_of, is_short, long_head_of, marks_of, owner_in
from app.redis_client import Client, translated
from app.settings import Settings

Outcome = Literal["won", "busy", "done", "conflict"]


class Answer(msgspec.Struct, frozen=True):
    """What a claim found.

    Attributes:
        outcome: ``won``, ``busy`` (somebody's lease runs), ``done``, or ``conflict`` (held with another digest).
        token: won: the fencing token, growing with every winner of the key.
        owner: the listener that has it; won by takeover: the one that had it before.
        session: won by takeover: hex of the previous owner's MongoDB session, to end its open transaction with.
        digest: conflict: the digest that holds the key.
    """

    outcome: Outcome
    token: int = 0
    owner: str = ""
    session: str = ""
    digest: str = ""

    @property
    def taken_over(self) -> bool:
        """Whether it was won from an owner whose lease had run out."""
        return self.outcome == "won" and bool(self.owner)


class Held(msgspec.Struct, frozen=True):
    """A claim as its holder knows it: all that is needed to renew it, and to make it again when Redis forgot it."""

    key: str
    digest: str
    claim_id: str
    token: int
    lease_ms: int
    owner: str
    session: str = ""
    previous_owner: str = ""


class Found(msgspec.Struct, frozen=True):
    """A claim as seen from outside: ``state`` is ``processing`` or ``done``; ``live`` while a lease runs."""

    state: Literal["processing", "done"]
    digest: str
    owner: str
    claim_id: str = ""
    token: int = 0
    deadline_ms: int = 0
    live: bool = False
    session: str = ""
    previous_owner: str = ""


def new_claim_id() -> str:
    """A claim id: 16 random URL-safe characters (96 bits), one per task execution."""
    return secrets.token_urlsafe(12)


class ClaimStore:
    """Claims of one deployment. Thread-safe; not to be carried over a fork.

    Args:
        client: from :func:`app.redis_client.connect`.
        deployment: the deployment's id, from MongoDB.
        px_ms: life of a claim's key; far longer than any lease, so that takeovers are seen.
        done_ttl_ms: how long a finished key is remembered.
        memory_fraction: above this share of ``maxmemory``, finished keys are deleted instead of remembered.
    """

    def __init__(self, client: Client, deployment: str, *, px_ms: int, done_ttl_ms: int, memory_fraction: float = 0.75) -> None:
        self._client = client
        self.deployment = deployment
        self._prefix = f"dedup:{{{deployment}}}:"
        self._px_ms = px_ms
        self._done_ttl_ms = done_ttl_ms
        self._memory_fraction = memory_fraction
        self._memory_checked_at = float("-inf")
        self._memory_short = False
        self._claim, self._renew, self._complete, self._release, self._forget, self._forget_lapsed = (
            _script(client, name) for name in ("claim", "renew", "complete", "release", "forget", "forget_lapsed")
        )

    @classmethod
    def of(cls, settings: Settings, client: Client, deployment: str) -> "ClaimStore":
        """The store that the settings describe."""
        return cls(
            client,
            deployment,
            px_ms=settings.claim_px_ms,
            done_ttl_ms=settings.done_ttl_s * 1000,
            memory_fraction=settings.done_memory_fraction,
        )

    def claim(
        self, keys: Sequence[str], digests: Sequence[str], *, claim_id: str, owner: str, lease_ms: int, sessions: Sequence[str] = ()
    ) -> list[Answer]:
        """Try to win each key; the seed's SETNX and EXPIRE, made one.

        Args:
            keys: the events' keys, each once, 1 to some thousands.
            digests: their digests, in the same order.
            claim_id: from :func:`new_claim_id`; the same one again is answered as before.
            owner: the listener's name.
            lease_ms: how long the claim holds without renewal; longer than 0.
            sessions: for each key the hex id of the MongoDB session that its work will use, or an empty string; or nothing at all.

        Returns:
            An answer per key, in order.

        Raises:
            RedisUnavailable: Redis is away; some keys may be claimed, and a repeated call answers them ``won``.
        """
        reply = self._run(self._claim, keys, [claim_id, owner, lease_ms, self._px_ms, *digests, *sessions])
        meanings: dict[int | bytes, Answer] = {}
        marked = False
        for element in set(reply):
            if type(element) is int:
                meanings[element] = Answer("won", token=element)
            elif element.startswith(SHORT):
                marked = True
            else:
                meanings[element] = _answer(element.decode("utf-8", "replace"))
        if marked:
            marks = [(element, digest) for element, digest in zip(reply, digests, strict=True) if element not in meanings]
            compared = iter(_compared(marks))
            return [meanings.get(element) or next(compared) for element in reply]
        return [meanings[element] for element in reply]

    def renew(self, claims: Sequence[Held]) -> list[bool]:
        """Start the leases of ``claims`` anew from now; one that Redis forgot is made again.

        Returns:
            For each, whether it is held. False means that another claim id holds the key or that it is done: stop working.

        Raises:
            RedisUnavailable: Redis is away; whether the leases run on is unknown.
        """
        if not claims:
            return []
        args: list[Any] = [self._px_ms]
        for c in claims:
            args += (c.claim_id, c.digest, c.token, c.lease_ms, c.owner, c.session, c.previous_owner)
        return [held == 1 for held in self._run(self._renew, [c.key for c in claims], args)]

    def complete(self, keys: Sequence[str], digests: Sequence[str], *, claim_id: str, owner: str) -> int:
        """Mark keys done, so that later copies are skipped at once.

        Only after an own majority commit, or after a majority read found the (key, digest) in the ledger.

        Returns:
            How many keys were ours (or nobody's); the others stay as they are.
        """
        if not keys:
            return 0
        ttl_ms = 0 if self.memory_is_short() else self._done_ttl_ms
        return cast(int, self._run(self._complete, keys, [claim_id, ttl_ms, *marks_of(digests, owner)]))

    def release(self, keys: Sequence[str], *, claim_id: str) -> int:
        """Give keys back unfinished, for anybody to claim. Returns how many were ours."""
        return cast(int, self._run(self._release, keys, [claim_id])) if keys else 0

    def forget_done(self, keys: Sequence[str], digests: Sequence[str]) -> int:
        """Delete marks of done that a majority read of MongoDB refutes; returns how many there were."""
        heads = [head for short, digest in zip(heads_of(digests), digests, strict=True) for head in (short, long_head_of(digest))]
        return cast(int, self._run(self._forget, keys, heads)) if keys else 0

    def forget_lapsed(self, keys: Sequence[str], digests: Sequence[str]) -> int:
        """Delete claims for these very digests whose leases are over; returns how many there were.

        For content that is kept out by a claim for other content which nobody holds any more.
        """
        return cast(int, self._run(self._forget_lapsed, keys, list(digests))) if keys else 0

    def inspect(self, keys: Sequence[str]) -> list[Found | None]:
        """What is stored for each key now; reads only."""
        if not keys:
            return []
        with translated():
            pipe = self._client.pipeline(transaction=False)
            pipe.time()
            pipe.mget([self._prefix + key for key in keys])
            (seconds, micros), values = pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        return [None if value is None else _found(value, now_ms) for value in values]

    def memory_is_short(self) -> bool:
        """Whether Redis is above the memory mark; asked at most every 5 seconds."""
        if time.monotonic() - self._memory_checked_at > 5:
            with translated():
                info = self._client.info("memory")
            limit = int(info.get("maxmemory", 0))
            self._memory_short = bool(limit) and int(info["used_memory"]) > limit * self._memory_fraction
            self._memory_checked_at = time.monotonic()
        return self._memory_short

    def _run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        with translated():
            return script(keys=[self._prefix + key for key in keys], args=args)


def _script(client: Client, name: str) -> Script:
    return client.register_script(files(__package__).joinpath(f"{name}.lua").read_text())


def _answer(text: str) -> Answer:
    kind, _, rest = text.partition("|")
    if kind == "B":
        return Answer("busy", owner=rest)
    if kind == "D":
        return Answer("done", owner=rest)
    if kind == "C":
        digest, _, owner = rest.partition("|")
        return Answer("conflict", owner=owner, digest=digest)
    token, owner, session = rest.split("|")
    return Answer("won", token=int(token), owner=owner, session=session)


def _compared(marks: Sequence[tuple[bytes, str]]) -> Iterator[Answer]:
    """What stored marks mean for keys with these digests."""
    done: dict[str, Answer] = {}
    for (mark, digest), held in zip(marks, digests_in([mark for mark, _ in marks]), strict=True):
        owner = owner_in(mark)
        if held != digest:
            yield Answer("conflict", owner=owner, digest=held)
        else:
            yield done.get(owner) or done.setdefault(owner, Answer("done", owner=owner))


def _found(value: bytes, now_ms: int) -> Found | None:
    if is_short(value):
        return Found("done", digest=digests_in([value])[0], owner=owner_in(value))
    parts = value.decode("utf-8", "replace").split("|")
    if parts[0] == "D" and len(parts) == 3:
        return Found("done", digest=parts[1], owner=parts[2])
    if parts[0] != "P" or len(parts) != 10 or not all(part.isdecimal() for part in parts[3:6]):
        return None
    deadline, lease = int(parts[4]), int(parts[5])
    return Found(
        "processing",
        digest=parts[1],
        claim_id=parts[2],
        token=int(parts[3]),
        deadline_ms=deadline,
        owner=parts[6],
        session=parts[7],
        previous_owner=parts[8],
        live=now_ms <= deadline <= now_ms + lease,
    )
