"""``python -m app.health ROLE``: whether the process of that role on this host is of use now. For health checks of containers.

| role | healthy when |
|---|---|
| ``broadcaster`` | it accepts events (``/health/ready``) |
| ``bridge`` | some bridge of the deployment has swept lately: one acts, the others stand by |
| ``listener`` | a worker of this host was heard within ``DEDUP_LISTENER_GRACE_S``; so it takes deliveries |
| ``flower`` | it answers |

Exit code 0, or 1 and one sentence. While a store is away, nothing that needs it is healthy, and all of it recovers by itself:
whoever restarts what is unhealthy should ask ``/health/live`` of the broadcaster, and the others' processes, instead. Not
guaranteed: that a bridge which stands by would act; its lease shows that only when it has to.
"""

import http.client
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from app.errors import DedupError, SettingsError
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.presence import Presence

TIMEOUT_S = 5.0
SWEPT_WITHIN_MS = 15_000
"""A sweep takes at most a few seconds, even of a large backlog."""


def broadcaster(settings: Settings) -> str | None:
    """Why events are not accepted, or None."""
    return _answer(settings.port, "/health/ready")


def flower(settings: Settings) -> str | None:
    """Why Flower does not answer, or None."""
    return _answer(settings.flower_port, "/healthcheck")


def bridge(settings: Settings) -> str | None:
    """Why no bridge seems to act, or None.

    Raises:
        TransientError: a store is away.
    """
    with _presence(settings) as presence:
        before_ms = presence.swept_before_ms()
    if before_ms is None:
        return "no sweep has succeeded yet"
    return f"the last sweep succeeded {before_ms / 1000:.0f} s ago" if before_ms > SWEPT_WITHIN_MS else None


def listener(settings: Settings) -> str | None:
    """Why no listener of this host is heard, or None.

    Raises:
        TransientError: a store is away.
    """
    host = socket.gethostname()
    with _presence(settings) as presence:
        heard = presence.listeners(within_ms=settings.listener_grace_s * 1000)
    here = any(node.node.partition("@")[2] == host for found in heard for node in found.nodes)
    return None if here else f"no listener of {host} was heard within {settings.listener_grace_s} s"


ROLES: dict[str, Callable[[Settings], str | None]] = {
    "broadcaster": broadcaster,
    "bridge": bridge,
    "listener": listener,
    "flower": flower,
}


def main(arguments: Sequence[str]) -> int:
    """Check one role; the exit code."""
    role = ROLES.get(arguments[0]) if len(arguments) == 1 else None
    if role is None:
        sys.stderr.write(f"usage: python -m app.health {'|'.join(ROLES)}\n")
        return 2
    try:
        reason = role(load_settings())
    except (DedupError, OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, SettingsError):
            reason = f"dedup: {reason}"
    if reason:
        sys.stderr.write(f"{reason}\n")
    return 1 if reason else 0


def _answer(port: int, path: str) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(500).decode(errors="replace")
    finally:
        connection.close()
    return None if answer.status == 200 else f"{path} answers {answer.status}: {said}"


@contextmanager
def _presence(settings: Settings) -> Iterator["Presence"]:
    from app import redis_client
    from app.presence import Presence
    from app.stores import mongo
    from app.stores.meta import deployment_id

    db = mongo.connect(settings, role="health")
    with closing(db.client), closing(redis_client.connect(settings)) as redis:
        yield Presence(redis, deployment_id(db))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
