"""Policies: which policy holds for the events of a type.

Guaranteed: a ``Policies`` object that was loaded is whole. Every policy in it keeps the laws below, so that nothing has to be
checked again while events flow. Which policy holds for a type: the one with exactly its name, else the ``*`` pattern with the
most characters that matches, else the defaults. One policy holds, never a mixture of patterns; fields that it leaves out come
from ``[defaults]``, then from the settings.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from app.events.patterns import matches, overlap
from app.events.policy import Policy
from app.events.policy_file import read_policies
from app.settings import Settings

_CACHED_TYPES = 4096
"""So many types are remembered with their policy; producers choose types, so the memory must be bounded."""


class Policies:
    """All policies of a deployment. Immutable but for a cache; safe to share between threads."""

    def __init__(self, default: Policy, declared: Mapping[str, Policy]) -> None:
        self.default = default
        """Holds for every type that no entry of the file holds for."""
        self._exact = {name: policy for name, policy in declared.items() if "*" not in name}
        patterns = sorted((name for name in declared if "*" in name), key=lambda name: (-len(name), name))
        self._patterns = [(name, declared[name]) for name in patterns]
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

    def that_may_hold(self, pattern: str) -> list[Policy]:
        """The policies that may hold for types that fit a pattern; for a type without ``*`` that is one."""
        if "*" not in pattern:
            return [self.of(pattern)]
        return [policy for policy in self if policy is self.default or overlap(policy.pattern, pattern)]

    def __iter__(self) -> Iterator[Policy]:
        """The policies that the file declares, and the default one last."""
        yield from self._exact.values()
        for _, policy in self._patterns:
            yield policy
        yield self.default

    def _found(self, type: str) -> Policy:
        if type in self._exact:
            return self._exact[type]
        return next((policy for pattern, policy in self._patterns if matches(pattern, type)), self.default)
