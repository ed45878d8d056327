"""Leases: of several processes with one role, one acts and the others stand by.

An optimisation, no safety: when Redis forgets, or a holder is paused past its lease, two act at a time, and everything that
leases are used for here bears that. Redis away: nobody learns anything new, and who acted goes on acting.

| key | type | lifetime | meaning |
|---|---|---|---|
| ``dedup:{deployment}:=lease:<role>`` | string | the lease | who acts in this role |

(No event key begins with ``=``.)
"""

from importlib.resources import files

from app.redis_client import Client, translated


class Lease:
    """One role of one deployment, as one process sees it. Thread-safe.

    Args:
        client: returns bytes.
        deployment: the deployment's id.
        role: what is done by one at a time.
        owner: names this process, and no other.
        life_ms: how long the lease holds without renewal; renew it at a third of this or oftener.
    """

    def __init__(self, client: Client, deployment: str, role: str, *, owner: str, life_ms: int) -> None:
        self._key = f"dedup:{{{deployment}}}:=lease:{role}"
        self._owner = owner
        self._life_ms = life_ms
        self._client = client
        self._hold, self._release = (
            client.register_script(files(__package__).joinpath(f"{name}.lua").read_text()) for name in ("hold", "release")
        )

    def hold(self) -> bool:
        """Take the lease where nobody has it, renew it where this process has it.

        Returns:
            Whether this process has it now.

        Raises:
            RedisUnavailable: Redis is away; who has it is unknown.
        """
        with translated():
            return bool(self._hold(keys=[self._key], args=[self._owner, self._life_ms]))

    def release(self) -> bool:
        """Give the lease back, so that another process need not wait for its end. Returns whether this process had it.

        Raises:
            RedisUnavailable: Redis is away; the lease ends by itself.
        """
        with translated():
            return bool(self._release(keys=[self._key], args=[self._owner]))

    def holder(self) -> str | None:
        """Who has it now, or None.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with translated():
            found = self._client.get(self._key)
        return found.decode() if isinstance(found, bytes) else None
