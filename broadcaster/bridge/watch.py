"""What a bridge knows of the others: which listeners live, and whether this bridge is the active one.

Redis is asked a few times a second, by one thread; others read what it said last. Redis away: everything stays as it was, and
listeners are forgotten as their time runs out.
"""

import time
from dataclasses import dataclass
from typing import Any

import structlog

from app.leases import Lease
from app.naming import MESSAGE_VERSION
from app.presence import Presence
from app.redis_client import Client
from app.settings import Settings
from broadcaster.roster import Heard, Roster

log: Any = structlog.get_logger()

ROLE = "bridge"
"""Name of the lease: its holder forwards and sweeps."""


@dataclass(frozen=True, slots=True)
class _Deployment:
    id: str
    presence: Presence
    lease: Lease


class Watch:
    """One bridge's view. :meth:`look` belongs to one thread, the rest to any.

    Args:
        settings: of this process.
        redis: returns bytes.
        owner: names this process, and no other.
    """

    def __init__(self, settings: Settings, redis: Client, *, owner: str) -> None:
        self._settings = settings
        self._redis = redis
        self._owner = owner
        self._roster = Roster(grace_s=settings.listener_grace_s, missing_s=2 * settings.heartbeat_ms / 1000)
        self._of: _Deployment | None = None
        self._listeners: tuple[Heard, ...] = ()
        self._active: bool | None = None

    @property
    def life_ms(self) -> int:
        """How long a bridge that has died stays the active one: a few seconds, less where the leases are short."""
        return max(500, min(3_000, self._settings.lease_ms))

    @property
    def pause_s(self) -> float:
        """Time between two looks."""
        return min(0.5, self.life_ms / 4000)

    @property
    def active(self) -> bool:
        """Whether this bridge forwards and sweeps."""
        return bool(self._active)

    @property
    def deployment(self) -> str | None:
        """The deployment's id, or None before MongoDB was asked."""
        return self._of.id if self._of else None

    def listeners(self) -> list[Heard]:
        """The listeners that live."""
        now = time.monotonic()
        return [heard for heard in self._listeners if now - heard.heard_at <= self._settings.listener_grace_s]

    def use(self, deployment: str) -> None:
        """Watch this deployment from now on: another one once the database was dropped."""
        if self._of is None or self._of.id != deployment:
            if self._of is not None:
                log.warning("bridge.deployment_changed", before=self._of.id, now=deployment)
            lease = Lease(self._redis, deployment, ROLE, owner=self._owner, life_ms=self.life_ms)
            self._of = _Deployment(deployment, Presence(self._redis, deployment), lease)

    def look(self) -> None:
        """Ask Redis once: take or renew the lease, hear who lives.

        Raises:
            RedisUnavailable: Redis is away.
        """
        of = self._of
        if of is None:
            return
        active = of.lease.hold()
        now = time.monotonic()
        refused = self._roster.refused
        self._roster.update(of.presence.listeners(within_ms=self._settings.listener_grace_s * 1000), now)
        for name in sorted(self._roster.refused - refused):
            log.error("listener.refused", listener=name, reason=f"it reads no messages of version {MESSAGE_VERSION}: upgrade this bridge")
        self._listeners = tuple(self._roster.live(now))
        if active != self._active:
            self._active = active
            log.info("bridge.active" if active else "bridge.standby", owner=self._owner, deployment=of.id)

    def leave(self) -> None:
        """Give the lease back, where this bridge has it.

        Raises:
            RedisUnavailable: Redis is away; the lease ends by itself.
        """
        self._active = False
        if self._of is not None:
            self._of.lease.release()
