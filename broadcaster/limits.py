"""How much one client may send: a token bucket for each.

A client is an IP address (of IPv6 the network of 64 bits, which one machine has for itself), or a webhook whose signature was right.
Behind a proxy all clients are the proxy. Guarantees: over any time ``t`` a client gets at most ``burst + rate × t`` events through, and
one request more; what is remembered is bounded: of very many clients at a time those that were heard least recently begin anew. Not
guaranteed: the same over several broadcasters; each counts for itself.
"""

import ipaddress
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from app.errors import RateLimited
from app.settings import Settings

MAX_CLIENTS = 10_000
UNKNOWN = "unknown"
_LONGEST_WAIT_S = 86_400


def client_of(scope: Mapping[str, Any]) -> str:
    """The client of an ASGI scope."""
    peer = scope.get("client")
    return network_of(peer[0]) if peer else UNKNOWN


def network_of(address: str) -> str:
    """An address as buckets know it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address or UNKNOWN
    if found.version == 4:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


class RateLimits:
    """One bucket per client. Belongs to one event loop.

    A bucket may go into debt by one request, so that a request larger than what is left is not refused for ever: the next one waits
    until the debt is paid.

    Args:
        settings: ``client_events_per_s`` (0: nothing is limited) and ``client_burst``.
        clock: seconds of a clock that never runs backwards.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = settings.client_events_per_s
        self._burst = float(settings.client_burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """By client: what was left, and when."""

    def check(self, client: str) -> None:
        """Refuse a client that has nothing left.

        Raises:
            RateLimited: it has nothing left.
        """
        if self._rate and (left := self._left(client)) < 1:
            wait_s = min(max(1, math.ceil((1 - left) / self._rate)), _LONGEST_WAIT_S)
            raise RateLimited(f"this client sends more than {self._rate:g} events a second: wait {wait_s} s", retry_after_s=wait_s)

    def enter(self, client: str) -> None:
        """A request begins. It costs one event even if it turns out to hold none, so that rubbish is limited too.

        Raises:
            RateLimited: as :meth:`check`.
        """
        self.check(client)
        if self._rate:
            self._put(client, self._left(client) - 1)

    def spend(self, client: str, events: int) -> None:
        """A request that entered holds so many events; it goes through."""
        if self._rate and events > 1:
            self._put(client, self._left(client) - (events - 1))

    def _left(self, client: str) -> float:
        left, at = self._buckets.get(client, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._rate)

    def _put(self, client: str, left: float) -> None:
        self._buckets.pop(client, None)
        if len(self._buckets) >= MAX_CLIENTS:
            for oldest in list(itertools.islice(self._buckets, MAX_CLIENTS // 10)):
                del self._buckets[oldest]
        self._buckets[client] = (left, self._clock())
