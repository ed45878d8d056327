"""Settings: one frozen object, built once at each process's edge and handed inward.

Read from the environment (prefix ``DEDUP_``) and from a ``.env`` file in the working folder; the environment wins. Without
the three server URLs, the servers that ``dedup up`` or ``dedup servers`` started are found through ``.dedup/servers.json``.
Laws between settings are checked here and name themselves.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from app.embedded.serverinfo import recorded_servers
from app.errors import SettingsError

PREFIX = "DEDUP_"
DEFAULT_HOME = ".dedup"
SERVER_URLS = ("redis_url", "broker_url", "mongo_url")

MAX_SECONDS = 100 * 366 * 86_400
"""A hundred years: the longest duration, so that no sum of it with a date overflows."""
MAX_MS = MAX_SECONDS * 1000
MAX_BATCH_EVENTS = 500
"""The claims of a batch go in one call."""
_MAX_COUNT = 2**53
_PORTS = (0, 65_535)

LIMITS: dict[str, tuple[float, float]] = {
    "port": _PORTS,
    "flower_port": _PORTS,
    "concurrency": (1, 1_000),
    "async_limit": (1, 100_000),
    "slice_target_ms": (1, MAX_MS),
    "lease_ms": (3, MAX_MS),  # a third of it is whole milliseconds
    "grace_ms": (1, MAX_MS),
    "sweep_ms": (1, MAX_MS),
    "done_ttl_s": (0, MAX_SECONDS),
    "done_memory_fraction": (0, 1),
    "heartbeat_ms": (1, MAX_MS),
    "listener_grace_s": (1, MAX_SECONDS),
    "listener_retire_s": (1, MAX_SECONDS),
    "visibility_timeout_s": (0, MAX_SECONDS),
    "queue_high_water": (1, _MAX_COUNT),
    "max_handler_s": (0.001, MAX_SECONDS),
    "transaction_lifetime_s": (0.001, MAX_SECONDS),
    "max_attempts": (1, 1_000),
    "backoff_ms": (0, MAX_MS),
    "backoff_max_ms": (0, MAX_MS),
    "retention_s": (0, MAX_SECONDS),
    "max_event_bytes": (1, _MAX_COUNT),
    "max_request_bytes": (1, _MAX_COUNT),
    "max_batch_events": (1, MAX_BATCH_EVENTS),
    "inbox_max_batches": (1, _MAX_COUNT),
    "inbox_max_bytes": (1, _MAX_COUNT),
    "inbox_max_age_s": (1, MAX_SECONDS),
    "failures_max": (1, _MAX_COUNT),
    "failures_max_bytes": (1, _MAX_COUNT),
    "client_events_per_s": (0, 1_000_000_000),
    "client_burst": (1, _MAX_COUNT),
    "mongo_timeout_ms": (1, MAX_MS),
    "redis_timeout_ms": (1, MAX_MS),
}
"""Least and greatest value of each number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. Durations end in ``_ms`` or ``_s``; every field is set by ``DEDUP_<FIELD>``."""

    redis_url: str
    """Redis or Valkey for claims and heartbeats."""
    broker_url: str
    """The Celery broker."""
    mongo_url: str
    """MongoDB, with the database's name in the path."""
    home: Path = Path(DEFAULT_HOME)
    """Folder of the embedded servers' data and of ``servers.json``."""

    host: str = "127.0.0.1"
    """Address that the broadcaster binds."""
    port: int = 4000
    """Port of the broadcaster; 0 takes a free one."""
    flower_port: int = 5555
    """Port of Flower."""
    broadcaster_url: str = ""
    """Where bridges find the broadcaster; by default ``http://127.0.0.1:<port>``. Several, by commas."""

    handlers: tuple[str, ...] = ()
    """Dotted modules that declare handlers, by commas."""
    policies: Path | None = None
    """TOML file of per-type policies; by default ``policies.toml`` in the working folder, where there is one."""
    concurrency: int = 1
    """Child processes of a listener; a batch is the unit of work, so one child already handles many events at a time."""
    async_limit: int = 64
    """How many ``async def`` handlers of a slice run at once."""
    slice_target_ms: int = 250
    """Slow handlers: a slice takes as many events as last about this long."""

    lease_ms: int = 10_000
    """How long a claim holds without renewal."""
    grace_ms: int = 2_000
    """How long the sweeper waits beyond what it can prove before it sends a batch again."""
    sweep_ms: int = 1_000
    """Time between two sweeps."""
    done_ttl_s: int = 3_600
    """How long Redis remembers a finished key. A cache: MongoDB decides."""
    done_memory_fraction: float = 0.75
    """Above this share of Redis' ``maxmemory``, finished keys are deleted instead of remembered."""
    heartbeat_ms: int = 2_000
    """Time between two heartbeats of a listener."""
    listener_grace_s: int = 10
    """A listener silent for longer gets no more copies."""
    listener_retire_s: int = 3_600
    """A listener silent for longer is retired and its queue removed."""
    visibility_timeout_s: int = 0
    """Redis transport: after this time an unacknowledged delivery is delivered again; 0: the broker keeps none, the inbox does."""
    queue_high_water: int = 200
    """A queue with this many deliveries gets no more until it has drained to half of it."""

    max_handler_s: float = 8.0
    """A handler may take this long by default; its claim is not renewed afterwards."""
    transaction_lifetime_s: float = 10.0
    """``transactionLifetimeLimitSeconds`` of the MongoDB in use."""
    max_attempts: int = 5
    """Attempts before an event is dead, where its type's policy says nothing."""
    backoff_ms: int = 500
    """First pause before a retry; doubles, with jitter."""
    backoff_max_ms: int = 300_000
    """Longest pause before a retry."""
    retention_s: int = 0
    """How long the ledger keeps a document, where its type's policy says nothing; 0 is for ever."""

    max_event_bytes: int = 256 * 1024
    """Largest event at a door, in bytes of JSON."""
    max_request_bytes: int = 8 * 1024 * 1024
    """Largest request body."""
    max_batch_events: int = MAX_BATCH_EVENTS
    """Most events of one request and of one inbox document."""
    inbox_max_batches: int = 100_000
    """Inbox limit: beyond it producers get 503 with Retry-After."""
    inbox_max_bytes: int = 4 * 1024**3
    """Inbox limit: the same by its size in bytes of BSON, before MongoDB compresses it."""
    inbox_max_age_s: int = 86_400
    """Inbox limit: while its oldest batch is older, producers get 503."""
    failures_max: int = 200_000
    """Failures limit: while so many failed events are kept, producers get 503; operators decide about them."""
    failures_max_bytes: int = 2 * 1024**3
    """Failures limit: the same by their size in bytes of BSON, before MongoDB compresses it."""
    client_events_per_s: float = 0.0
    """Rate limit of one client (by IP address) or one signed webhook, in events a second over all doors: 429 beyond it; 0 is off."""
    client_burst: int = 1_000
    """So many events a client may send at once before the rate counts."""
    mongo_timeout_ms: int = 5_000
    """How long one MongoDB operation may take before it counts as an outage."""
    redis_timeout_ms: int = 2_000
    """How long one Redis call may take before it counts as an outage."""

    result_backend: str = field(default="", repr=False)
    """Celery's result backend, as ``redis://127.0.0.1:6379/2``, for tests that call ``.get()``; without one, tasks' results are not kept."""

    token: str = field(default="", repr=False)
    """Bearer token of all doors; required outside loopback."""
    flower_auth: str = field(default="", repr=False)
    """``user:password`` of Flower; required outside loopback."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"at most {high:,}" if value > high else f"at least {low:g}"
                raise SettingsError(f"{PREFIX}{name.upper()} must be {limit}, not {value}")
        for name, left, right, why in (
            (
                "lease_ms < visibility_timeout_s",
                self.lease_ms,
                self.delivered_again_ms,
                "else every long task is delivered twice",
            ),
            (
                "max_handler_s < transaction_lifetime_s",
                self.max_handler_s,
                self.transaction_lifetime_s,
                "else MongoDB ends a handler's transaction first",
            ),
            ("heartbeat_ms × 2 < listener_grace_s", self.heartbeat_ms * 2, self.listener_grace_s * 1000, "else live listeners look dead"),
            (
                "listener_grace_s < listener_retire_s",
                self.listener_grace_s,
                self.listener_retire_s,
                "else queues vanish under live listeners",
            ),
        ):
            if not left < right:
                raise SettingsError(f"settings break the law {name} ({left:g} against {right:g}): {why}")
        _check_url("redis_url", self.redis_url, ("redis", "rediss", "unix"))
        _check_url("broker_url", self.broker_url)
        _check_url("mongo_url", self.mongo_url, ("mongodb", "mongodb+srv"))
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise SettingsError(f"{PREFIX}TOKEN must be printable ASCII without spaces: it travels in an HTTP header")
        if self.flower_auth and not all(self.flower_auth.partition(":")):
            raise SettingsError(f"{PREFIX}FLOWER_AUTH must be a user and a password, as in user:password")
        if not database_of(self.mongo_url):
            raise SettingsError(f"{PREFIX}MONGO_URL must name the database, as in mongodb://127.0.0.1:27017/dedup")

    @property
    def delivered_again_ms(self) -> float:
        """When the broker delivers again what is not acknowledged: the visibility timeout; without one, never."""
        return self.visibility_timeout_s * 1000 if self.visibility_timeout_s else math.inf

    @property
    def renew_ms(self) -> int:
        """Time between two renewals: a third of the lease, so that two may fail."""
        return self.lease_ms // 3

    @property
    def claim_px_ms(self) -> int:
        """Life of a claim's Redis key: far longer than the lease, so that takeovers are seen."""
        return max(60 * self.lease_ms, 600_000)

    @property
    def bridge_sources(self) -> tuple[str, ...]:
        """Broadcasters that a bridge listens to."""
        return tuple(u.strip() for u in self.broadcaster_url.split(",") if u.strip()) or (f"http://127.0.0.1:{self.port}",)

    @property
    def loopback(self) -> bool:
        """Whether the broadcaster is bound to this machine alone."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def _check_url(name: str, url: str, schemes: tuple[str, ...] = ()) -> None:
    """Refuse a URL of another scheme, or with a port that is none; its text may hold a password, and is not repeated."""
    scheme, separator, rest = url.partition("://")
    if not separator or (schemes and scheme not in schemes):
        raise SettingsError(
            f"{PREFIX}{name.upper()} must be a URL that begins with {' or '.join(f'{one}://' for one in schemes) or 'amqp://'}"
        )
    hosts = rest.partition("?")[0].partition("/")[0].rpartition("@")[2]
    for host in hosts.split(",") if scheme != "unix" else ():
        port = host.rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
        if port and not (port.isdecimal() and int(port) <= _PORTS[1]):
            raise SettingsError(f"{PREFIX}{name.upper()} has the port {port!r}, and a port is a number up to {_PORTS[1]}")


def without_user(url: str) -> str:
    """A URL without the name and the password in it, to be shown. It may name several hosts, as MongoDB's do, so the standard library's reader does not fit."""
    scheme, separator, rest = url.partition("://")
    place, mark, options = rest.partition("?")
    return scheme + separator + place.rpartition("@")[2] + mark + options


def database_of(mongo_url: str) -> str:
    """Name of the database in a MongoDB URL, or an empty string. Such a URL may name several hosts, so the standard library's reader does not fit."""
    return mongo_url.partition("://")[2].partition("?")[0].partition("/")[2]


def variables(folder: Path | None = None) -> dict[str, str]:
    """The environment over ``.env`` in a folder, by default the current one."""
    return {k: v for k, v in dotenv_values((folder or Path.cwd()) / ".env").items() if v is not None} | dict(os.environ)


def load_settings(env: Mapping[str, str] | None = None, *, folder: Path | None = None, **overrides: Any) -> Settings:
    """Build the settings of this process.

    Args:
        env: the environment; by default ``os.environ`` over ``.env`` in ``folder``.
        folder: the working folder; by default the current one.
        overrides: fields that win over everything.

    Raises:
        SettingsError: no servers are named or running, only some URLs are set, a value is malformed, or a law is broken.
    """
    folder = folder or Path.cwd()
    if env is None:
        env = variables(folder)
    values: dict[str, Any] = {}
    for spec in fields(Settings):
        raw = env.get(PREFIX + spec.name.upper())
        if raw:
            values[spec.name] = _parsed(spec.name, spec.type, raw)
    values.update(overrides)
    home = folder / values.get("home", DEFAULT_HOME)
    values["home"] = home
    if values.get("policies") is None and (folder / "policies.toml").is_file():
        values["policies"] = folder / "policies.toml"
    values.update(_server_urls(values, home))
    return Settings(**values)


def _server_urls(values: Mapping[str, Any], home: Path) -> dict[str, str]:
    given = [name for name in SERVER_URLS if values.get(name)]
    if len(given) == len(SERVER_URLS):
        return {}
    if given:
        missing = [PREFIX + name.upper() for name in SERVER_URLS if name not in given]
        verb = "is" if len(missing) == 1 else "are"
        raise SettingsError(f"{' and '.join(missing)} {verb} missing: set all three server URLs, or none to use the embedded servers")
    recorded = recorded_servers(home)
    if recorded is not None and any(process.alive for process in recorded.processes):
        return recorded.urls
    names = ", ".join(PREFIX + name.upper() for name in SERVER_URLS)
    raise SettingsError(f"no servers: start them with 'dedup up' (or 'dedup servers') in this folder, or set {names}")


def _parsed(name: str, kind: Any, raw: str) -> Any:
    text = raw.strip()
    try:
        if kind in (int, "int"):
            return int(text)
        if kind in (float, "float"):
            return float(text)
    except ValueError:
        number = "whole number" if kind in (int, "int") else "number"
        raise SettingsError(f"{PREFIX}{name.upper()} must be a {number}, not {raw!r}") from None
    if name == "handlers":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return Path(text) if name in ("home", "policies") else text
