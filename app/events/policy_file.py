"""Reads the policy file and checks it strictly: a typing error must not become a rule that nobody meant.

Guaranteed: what is returned keeps every law, or ``PolicyError`` names file, type and field in one sentence. The file:

    [defaults]                      optional; the same fields, for every type that does not set them itself
    [types."flight.departed"]       a type, or a pattern with * for any run of characters
    key = ["data.carrier", "data.flight"]
    [feeds.airport]                 a foreign Socket.IO server: app.events.source_file
    [hooks.github]                  a webhook: app.events.hook_file

The fields are those of ``Policy``.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.errors import PolicyError
from app.events.expressions import compile_expression
from app.events.hook_file import hooks_in
from app.events.hooks import Hook
from app.events.policy import CONTENT_HASH, Policy
from app.events.source_file import sources_in
from app.events.sources import Source
from app.settings import LIMITS, MAX_SECONDS, PREFIX, Settings

_TABLES = ("defaults", "types", "feeds", "hooks")

Check = Callable[[Any], Any]
"""Takes a value as TOML gives it; returns it for the policy, or raises ``ValueError`` with a predicate such as ``must be …``."""


def read_policies(path: Path | None, settings: Settings) -> tuple[Policy, dict[str, Policy]]:
    """The default policy and the declared ones by type or pattern.

    Raises:
        PolicyError: as in the module's docstring.
    """
    base: dict[str, Any] = {"key": None, "key_version": 1, "digest": None, "on_conflict": "quarantine"}
    base |= {name: getattr(settings, name) for name in _FROM_SETTINGS}
    of_settings = {name: PREFIX + name.upper() for name in _FROM_SETTINGS}
    if path is None:
        return _policy("the settings", "", base, {}, settings, of_settings), {}
    content = _toml(path)
    for name in content:
        if name not in _TABLES:
            raise PolicyError(f"{path}: {name!r} is no table of a policy file (there are {', '.join(_TABLES)})")
    sources_in(path, content.get("feeds", {}))
    hooks_in(path, content.get("hooks", {}))
    defaults = f"{path}: defaults"
    given_to_all = _fields(defaults, content.get("defaults", {}))
    base |= given_to_all
    places = of_settings | dict.fromkeys(given_to_all, defaults)
    declared: dict[str, Policy] = {}
    for name, table in _table(f"{path}: types", content.get("types", {})).items():
        place = f'{path}: types."{name}"'
        if not name or not name.isprintable() or name != name.strip():
            raise PolicyError(f"{place}: a type's name must be printable text without spaces around it")
        given = _fields(place, table)
        declared[name] = _policy(place, name, base | given, given, settings, places | dict.fromkeys(given, place))
    return _policy(defaults, "", base, {}, settings, places), declared


def read_sources(path: Path | None) -> dict[str, Source]:
    """The foreign feeds that the policy file declares, by name.

    Raises:
        PolicyError: as in the module's docstring.
    """
    return {} if path is None else sources_in(path, _toml(path).get("feeds", {}))


def read_hooks(path: Path | None) -> dict[str, Hook]:
    """The webhooks that the policy file declares, by name.

    Raises:
        PolicyError: as in the module's docstring.
    """
    return {} if path is None else hooks_in(path, _toml(path).get("hooks", {}))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"{path}: the policy file cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: the policy file is not UTF-8 (byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"{path}: the policy file is not valid TOML: {error}") from error


def _table(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolicyError(f"{place} must be a table")
    return value


def _fields(place: str, table: Any) -> dict[str, Any]:
    """The checked fields of one table, each right by itself."""
    checked: dict[str, Any] = {}
    for name, value in _table(place, table).items():
        if name not in _CHECKS:
            hint = "; a name with a dot needs quotes, as in [types.'flight.departed']" if isinstance(value, dict) else ""
            raise PolicyError(f"{place}: {name} is no field of a policy (there are {', '.join(_CHECKS)}){hint}")
        try:
            checked[name] = _CHECKS[name](value)
        except ValueError as error:
            raise PolicyError(f"{place}: {name} {error}") from error
    return checked


def _policy(
    place: str, pattern: str, values: Mapping[str, Any], given: Mapping[str, Any], settings: Settings, places: Mapping[str, str]
) -> Policy:
    """A policy that keeps the laws between its fields and with the settings; ``places`` says where each field was set."""
    policy = Policy(pattern=pattern, **values)
    if policy.key is None and policy.key_version != 1:
        raise PolicyError(f"{place}: key_version has no meaning without key: the default key, source and id, has no version")
    if policy.key == CONTENT_HASH and "on_conflict" in given:
        raise PolicyError(f'{place}: on_conflict has no meaning with key = "{CONTENT_HASH}": other content is another event there')
    horizon = settings.inbox_max_age_s + policy.retry_horizon_s
    for field, holds, law in (
        (
            "lease_ms",
            policy.lease_ms >= 3 * settings.renew_ms,
            f"must be at least {3 * settings.renew_ms}: a listener renews every {settings.renew_ms} ms, a third of DEDUP_LEASE_MS",
        ),
        (
            "lease_ms",
            policy.lease_ms < settings.delivered_again_ms,
            f"must be less than {settings.delivered_again_ms}, the visibility timeout: else every long task is delivered twice",
        ),
        ("backoff_ms", policy.backoff_ms <= policy.backoff_max_ms, f"must be at most backoff_max_ms, which is {policy.backoff_max_ms}"),
        (
            "retention_s",
            policy.retention_s == 0 or policy.retention_s >= horizon,
            f"must be 0 (for ever) or at least {math.ceil(horizon)}: the inbox's age limit and all retries, else an event outlives the memory of it",
        ),
    ):
        if not holds:
            raise PolicyError(f"{places.get(field, place)}: {field} {law}; it is {getattr(policy, field)}")
    return policy


def _whole(low: float, high: float) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return check


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= MAX_SECONDS:
        raise ValueError(f"must be a number of seconds greater than 0, not {value!r}")
    return float(value)


def _choice(value: Any) -> str:
    if value not in ("quarantine", "ignore"):
        raise ValueError(f'must be "quarantine" or "ignore", not {value!r}')
    return str(value)


def _expression(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a JMESPath expression, not {value!r}")  # noqa: TRY004 - every check raises ValueError
    try:
        compile_expression(value)
    except ValueError as error:
        raise ValueError(f"{value!r} {error}") from error
    return value


def _key_rule(value: Any) -> str | tuple[str, ...]:
    if value == CONTENT_HASH:
        return CONTENT_HASH
    if not isinstance(value, list) or not value:
        raise ValueError(f'must be a list of JMESPath expressions or "{CONTENT_HASH}", not {value!r}')
    return tuple(map(_expression, value))


_CHECKS: dict[str, Check] = {
    "key": _key_rule,
    "key_version": _whole(1, 1_000_000),
    "digest": _expression,
    "max_handler_s": _seconds,
    **{name: _whole(*LIMITS[name]) for name in ("lease_ms", "max_attempts", "backoff_ms", "backoff_max_ms", "retention_s")},
    "on_conflict": _choice,
}
_FROM_SETTINGS = ("lease_ms", "max_handler_s", "max_attempts", "backoff_ms", "backoff_max_ms", "retention_s")
