"""A policy: what holds for the events of one type, and how their keys and digests are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.errors import InvalidEvent
from app.events.digests import digest_of
from app.events.expressions import Expression, compile_expression
from app.events.keys import hash_key, id_key, rule_key
from app.events.values import find_fault

CONTENT_HASH = "content-hash"


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
            raise InvalidEvent("the event has no id, and the policy file has no key rule for its type", field="id")
        return id_key(event["source"], event["id"]), digest

    @property
    def ignores_conflicts(self) -> bool:
        """Whether other content of a committed key is dropped, not quarantined."""
        return self.on_conflict == "ignore"

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
