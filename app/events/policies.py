"""Policies: what holds for the events of a type.

Guaranteed: a ``Policies`` object that was loaded is whole. Every policy in it keeps the laws below, so that nothing has to be
checked again while events flow. Which policy holds for a type: the one with exactly its name, else the ``*`` pattern with the
most characters that matches, else the defaults. One policy holds, never a mixture of patterns; fields that it leaves out come
from ``[defaults]``, then from the settings.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from app.errors import InvalidEvent
from app.events.digests import digest_of
from app.events.expressions import Expression, compile_expression
from app.events.keys import hash_key, id_key, rule_key
from app.events.values import find_fault
from app.settings import Settings

CONTENT_HASH = "content-hash"
_CACHED_TYPES = 4096
"""So many types are remembered with their policy; producers choose types, so the memory must be bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What holds for the events of one type, or of the types that match a pattern."""

    pattern: str
    """The type or pattern it was declared for; empty for the defaults."""
    key: tuple[str, ...] | Literal["content-hash"] | None
    """JMESPath expressions whose values make the key; or the content; or None: ``source`` and ``id``."""
    key_version: int
    """Part of the key. Raise it with every change of the rule, so that keys of the old and the new rule never meet."""
    digest: str | None
    """JMESPath expression of what is digested instead of ``data``."""
    lease_ms: int
    max_handler_s: float
    max_attempts: int
    backoff_ms: int
    backoff_max_ms: int
    retention_s: int
    """How long the ledger keeps the event; 0 is for ever."""
    on_conflict: Literal["quarantine", "ignore"]
    _key: tuple[tuple[str, Expression], ...] = field(init=False, repr=False, compare=False)
    _digest: Expression | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = self.key if isinstance(self.key, tuple) else ()
        object.__setattr__(self, "_key", tuple((text, compile_expression(text)) for text in parts))
        object.__setattr__(self, "_digest", compile_expression(self.digest) if self.digest else None)

    def identify(self, event: Mapping[str, Any]) -> tuple[str, str]:
        """Key and digest of an event.

        Args:
            event: the event as one object: type, source, and where given id, time, data (JSON or bytes), subject and the other
                attributes. Its type is one that this policy holds for.

        Raises:
            InvalidEvent: it has no id and no other rule says what its key is; a field that the key needs is missing, empty or
                of a wrong type; the key is too long; an expression does not fit. ``field`` says which.
        """
        type_ = event["type"]
        digest = digest_of(type_, event.get("data") if self._digest is None else self._digested(event))
        if self._key:
            return rule_key(type_, self.key_version, [(text, value(event)) for text, value in self._key]), digest
        if self.key == CONTENT_HASH:
            return hash_key(type_, self.key_version, digest), digest
        if "id" not in event:
            raise InvalidEvent("the event has no id, no Idempotency-Key came with it, and no key rule is set for its type", field="id")
        return id_key(event["source"], event["id"]), digest

    def longest_pause_ms(self, attempt: int) -> int:
        """The longest pause after a failed attempt, counted from 1: doubles up to ``backoff_max_ms``; jitter only shortens it."""
        return min(self.backoff_ms << min(attempt - 1, 62), self.backoff_max_ms)

    @property
    def retry_horizon_s(self) -> float:
        """How long all pauses of one event last together at most."""
        growing = min(self.max_attempts, 64)
        pauses = sum(self.longest_pause_ms(attempt) for attempt in range(1, growing))
        return (pauses + (self.max_attempts - growing) * self.longest_pause_ms(growing)) / 1000

    def _digested(self, event: Mapping[str, Any]) -> Any:
        assert self._digest is not None
        value = self._digest(event)
        if value is None:
            raise InvalidEvent(f"the digest needs {self.digest}, which is missing", field=self.digest)
        if type(value) is not bytes and (fault := find_fault(value)) is not None:
            raise InvalidEvent(f"the digest cannot be made of {self.digest}: its value {fault.reason}", field=self.digest)
        return value


class Policies:
    """All policies of a deployment. Immutable but for a cache; safe to share between threads."""

    def __init__(self, default: Policy, declared: Mapping[str, Policy]) -> None:
        self.default = default
        """Holds for every type that no entry of the file holds for."""
        self._exact = {name: policy for name, policy in declared.items() if "*" not in name}
        patterns = sorted((name for name in declared if "*" in name), key=lambda name: (-len(name), name))
        self._patterns = [(matcher_of(name), declared[name]) for name in patterns]
        self._cache: dict[str, Policy] = {}

    @classmethod
    def load(cls, path: Path | None, settings: Settings) -> Self:
        """Read and check the policy file.

        Args:
            path: the TOML file, or None: only the defaults out of the settings.
            settings: give the defaults, and the limits that policies must keep to.

        Raises:
            PolicyError: the file cannot be read, or says something that cannot hold; one sentence with file, type and field.
        """
        from app.events.policy_file import read_policies

        default, declared = read_policies(path, settings)
        return cls(default, declared)

    def of(self, type: str) -> Policy:
        """The policy that holds for a type. Quick: called for every event."""
        policy = self._cache.get(type)
        if policy is None:
            if len(self._cache) >= _CACHED_TYPES:
                self._cache.clear()
            policy = self._cache[type] = self._found(type)
        return policy

    def __iter__(self) -> Iterator[Policy]:
        """The policies that the file declares, and the default one last."""
        yield from self._exact.values()
        for _, policy in self._patterns:
            yield policy
        yield self.default

    def _found(self, type: str) -> Policy:
        if type in self._exact:
            return self._exact[type]
        return next((policy for matches, policy in self._patterns if matches(type)), self.default)


def matcher_of(pattern: str) -> Callable[[str], object]:
    """Whether a type matches; in linear time, because producers choose the types (atomic groups never go back)."""
    first, *middle, last = map(re.escape, pattern.split("*"))
    return re.compile(first + "".join(f"(?>.*?{piece})" for piece in middle) + ".*" + last, re.DOTALL).fullmatch
