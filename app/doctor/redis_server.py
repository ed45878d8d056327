"""Redis or Valkey: version, persistence, eviction, memory, role, clock, who may come in. By INFO where that tells it, for a user of
an access list often may not use CONFIG.
"""

import functools
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from app.doctor.findings import Findings, skew
from app.settings import Settings, without_user

OLDEST = {"Redis": (7, 0), "Valkey": (8, 0)}
SCAN_S = 3.0
FULL = 0.9
"""Above this share of ``maxmemory`` it is nearly full."""

Client = redis.Redis
Info = dict[str, Any]


def connect(url: str, settings: Settings) -> Client:
    """A client that tries once; bytes out."""
    timeout_s = settings.redis_timeout_ms / 1000
    return redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None)


def examine(findings: Findings, url: str, settings: Settings, *, role: str) -> bool:
    """Check one server.

    Args:
        findings: take what is found.
        url: of the server.
        settings: of this deployment.
        role: ``claims``, ``broker``, or both; names the checks' server in what is said.

    Returns:
        Whether it answers.
    """
    name = f"Redis ({role})"
    client = connect(url, settings)
    try:
        return _examine(findings, client, url, settings, name)
    except RedisError as error:
        findings.problem(
            "redis",
            f"{name} does not serve: {str(error)[:200]}",
            f"start it, or correct its URL ({without_user(url)}) and its user's rights",
        )
        return False
    finally:
        client.close()


def _examine(findings: Findings, client: Client, url: str, settings: Settings, name: str) -> bool:
    allowed(client.ping)
    info = allowed(lambda: client.info("everything"))
    if info is None:
        findings.hidden("redis.info", "INFO", f"{name}: its version, appendonly yes, maxmemory-policy noeviction")
    else:
        _version(findings, info, name)
        _role(findings, info, name)
        _persistence(findings, info, name)
        _memory(findings, info, name)
    before = time.time()
    clock: Any = allowed(client.time)
    after = time.time()
    if clock is None:
        findings.hidden("redis.clock", "TIME", f"{name}: its clock, and that the user may call TIME, which claims need")
    else:
        ahead_s = clock[0] + clock[1] / 1e6 - (before + after) / 2
        skew(findings, "redis.clock", f"the clock of {name}", ahead_s, uncertain_s=(after - before) / 2)
    _access(findings, client, url, settings, name)
    return True


def allowed(call: Callable[[], Any]) -> Any:
    """What a call returns; None when this user may not make it, or the server knows no such command (some rented ones)."""
    try:
        return call()
    except NoPermissionError:
        return None
    except ResponseError as error:
        if "unknown command" in str(error).lower() or "not allowed" in str(error).lower():
            return None
        raise


def scan(client: Client, pattern: str) -> tuple[list[bytes], bool] | None:
    """Keys that match, and whether all keys were looked at; for some seconds at most, since marks of done may be millions.

    None when this user may not look.
    """
    found: list[bytes] = []
    cursor, give_up_at = 0, time.monotonic() + SCAN_S
    while True:
        answer = allowed(functools.partial(client.scan, cursor, match=pattern, count=5_000))
        if answer is None:
            return None
        cursor, keys = answer
        found += keys
        if cursor == 0 or time.monotonic() > give_up_at:
            return found, cursor == 0


def _version(findings: Findings, info: Info, name: str) -> None:
    kind = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get("valkey_version") or info.get("redis_version") or "?")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    oldest = OLDEST[kind]
    if numbers >= oldest:
        findings.ok("redis.version", f"{name} is {kind} {text}")
    else:
        wanted = ".".join(map(str, oldest))
        findings.problem(
            "redis.version", f"{name} is {kind} {text}", f"upgrade it to {wanted} or newer: the claims' scripts use SET with NX and GET"
        )


def _role(findings: Findings, info: Info, name: str) -> None:
    if info.get("role") == "slave":
        findings.problem("redis.role", f"{name} is a replica and takes no writes", "name the primary in the URL")


def _persistence(findings: Findings, info: Info, name: str) -> None:
    failed = [
        what
        for what, key in (("append-only file", "aof_last_write_status"), ("snapshot", "rdb_last_bgsave_status"))
        if info.get(key) == "err"
    ]
    if failed:
        findings.problem(
            "redis.persistence",
            f"{name} could not write its {' and its '.join(failed)}: it refuses writes then",
            "make room on its disk; its log says more",
        )
    elif info.get("aof_enabled"):
        findings.ok("redis.persistence", f"{name} keeps an append-only file")
    else:
        findings.warn(
            "redis.persistence",
            f"{name} keeps no append-only file: a restart loses claims and deliveries",
            "set 'appendonly yes'. No event is lost without it, for MongoDB has them; what was in the queues is sent again, which takes time",
        )


def _memory(findings: Findings, info: Info, name: str) -> None:
    policy, limit, used = info.get("maxmemory_policy"), int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    remedy = "set 'maxmemory-policy noeviction': evicted claims and deliveries cost time, and queues may vanish"
    if policy is None:
        findings.hidden("redis.eviction", "maxmemory_policy in INFO", f"{name}: maxmemory-policy is noeviction")
    elif policy == "noeviction":
        findings.ok("redis.eviction", f"{name} evicts nothing")
    elif limit:
        findings.problem("redis.eviction", f"{name} evicts by {policy} beyond {limit:,} bytes", remedy)
    else:
        findings.warn("redis.eviction", f"{name} would evict by {policy}, once it has a limit (maxmemory is 0)", remedy)
    if limit and used > limit * FULL:
        findings.problem(
            "redis.memory",
            f"{name} uses {used / limit:.0%} of its {limit:,} bytes",
            "raise maxmemory, or see which queue grows ('dedup listeners list')",
        )
    else:
        share = f"{used / limit:.0%} of {limit:,}" if limit else f"{used:,}, without a limit of its own"
        findings.ok("redis.memory", f"{name} uses {share} bytes")


# ------------------------------------------------------------------------------------------------------------ who may come in


def is_loopback(host: str | None) -> bool:
    """Whether a host's name in a URL is this machine, reached from nowhere else."""
    return host is None or host in ("localhost", "::1", "") or host.startswith(("127.", "/"))


def _access(findings: Findings, client: Client, url: str, settings: Settings, name: str) -> None:
    open_to_all = _answers_anybody(url, settings)
    host = urlsplit(url).hostname
    remedy = "give it a password (requirepass, or users by ACL) and put it into the URL; let it listen where only these processes reach it"
    if not open_to_all:
        findings.ok("redis.access", f"{name} asks for a password")
    elif not is_loopback(host):
        findings.problem("redis.access", f"{name} at {host} answers anybody without a password", remedy)
    else:
        _bound(findings, client, name, remedy)


def _bound(findings: Findings, client: Client, name: str, remedy: str) -> None:
    """Without a password, and reached by a loopback address: is it bound elsewhere, too?"""
    config = allowed(lambda: {**client.config_get("bind"), **client.config_get("protected-mode")})
    if config is None:
        findings.hidden(
            "redis.access", "CONFIG GET", f"{name} has no password: 'bind' names loopback addresses alone, or 'protected-mode' is yes"
        )
        return
    values = {_text(key): _text(value) for key, value in config.items()}
    wide = [address for address in (values.get("bind") or "*").split() if not is_loopback(address.removeprefix("-"))]
    if wide and values.get("protected-mode") == "no":
        findings.problem("redis.access", f"{name} has no password and listens on {' '.join(wide)}", remedy)
    else:
        how = "listens on this machine alone" if not wide else "is in protected mode: only this machine is answered"
        findings.ok("redis.access", f"{name} has no password, and {how}")


def _answers_anybody(url: str, settings: Settings) -> bool:
    stranger = connect(without_user(url), settings)
    try:
        stranger.ping()
    except (AuthenticationError, NoPermissionError, ResponseError):
        return False
    finally:
        stranger.close()
    return True


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
