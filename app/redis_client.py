"""Redis or Valkey, for claims, heartbeats, leases and totals: a client as they need it, and its errors as ours.

Guaranteed: no call waits longer than a few times ``redis_timeout_ms``, and whatever the driver raises inside :func:`translated` is
:class:`app.errors.RedisUnavailable`. Not guaranteed: that a call whose reply was late is made once; what is called here bears to be repeated.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.errors import RedisUnavailable
from app.settings import Settings

Client = redis.Redis
"""A client that returns bytes (``decode_responses`` off)."""


def connect(settings: Settings) -> Client:
    """A client for everything but the broker; lazily connected, bytes in and out.

    It repeats a call whose reply was late, twice; every script here bears that.
    """
    timeout_s = settings.redis_timeout_ms / 1000
    return redis.Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        health_check_interval=15,
    )


def ping(client: Client) -> bool:
    """Whether Redis answers.

    Raises:
        RedisUnavailable: it does not.
    """
    with translated():
        return bool(client.ping())


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        RedisUnavailable: Redis is away, loading, read-only, out of memory, or refuses.
    """
    try:
        yield
    except RedisError as error:
        raise RedisUnavailable(f"Redis did not serve: {str(error)[:200]}") from error
