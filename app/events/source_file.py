"""The tables ``[feeds.NAME]`` of the policy file, and the same from a command line: checked strictly, in one sentence.

The fields are those of :class:`app.events.sources.Source`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.errors import PolicyError
from app.events.sources import RESERVED, Source

_TEXTS = ("url", "event", "namespace", "transport", "type", "source", "time", "data")
_FIELDS = (*_TEXTS, "auth", "key")
_SCHEMES = ("http", "https", "ws", "wss")
_ENV = "env:"


def sources_in(path: Path, feeds: Any) -> dict[str, Source]:
    """The feeds of a policy file, by name.

    Raises:
        PolicyError: one sentence with file, feed and field.
    """
    if not isinstance(feeds, dict):
        raise PolicyError(f"{path}: feeds must be a table of tables, as in [feeds.airport]")
    return {name: source_from(f"{path}: feeds.{name}", name, table) for name, table in feeds.items()}


def source_from(place: str, name: str, given: Any) -> Source:
    """A feed from its fields.

    Args:
        place: where they stand, for the message.
        name: of the feed.
        given: the fields; ``auth`` may be text or an object, ``key`` text or a list of texts.

    Raises:
        PolicyError: one sentence.
    """
    if not isinstance(given, dict):
        raise PolicyError(f"{place} must be a table with url and event")
    for field, value in given.items():
        if field not in _FIELDS:
            raise PolicyError(f"{place}: {field} is no field of a feed (there are {', '.join(_FIELDS)})")
        if field in _TEXTS and (not isinstance(value, str) or not value):
            raise PolicyError(f"{place}: {field} must be text, not {value!r}")
    for field in ("url", "event"):
        if field not in given:
            raise PolicyError(f"{place} has no {field}")
    if not name or not name.isprintable() or len(name) > 128:
        raise PolicyError(f"{place}: a feed's name must be printable text of at most 128 characters")
    _check_place(place, given)
    if not isinstance(given.get("auth", ""), str | dict):
        raise PolicyError(f"{place}: auth must be a token or a table, not {given['auth']!r}")
    try:
        return Source(name=name, **{**given, "key": _key(place, given.get("key", ()))})
    except ValueError as error:
        raise PolicyError(f"{place}: {error}") from error


def name_of(url: str) -> str:
    """What a feed is called that was given no name: the server's host, and its port where one is named."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or url}:{parts.port}" if parts.port else (parts.hostname or url)
    except ValueError:
        return url


def auth_from(text: str | None) -> Any:
    """``auth`` as a command line gives it: a JSON object, or a token."""
    if text is not None and text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise PolicyError(f"--auth is no JSON object: {error}") from error
    return text


def _check_place(place: str, given: Mapping[str, Any]) -> None:
    try:
        parts = urlsplit(given["url"])
        reachable = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        reachable = False
    if not reachable:
        raise PolicyError(f"{place}: url must be like https://feed.example, not {given['url']!r}")
    if not given.get("namespace", "/").startswith("/"):
        raise PolicyError(f"{place}: namespace must begin with /, as in /flights")
    if given["event"] in RESERVED:
        raise PolicyError(f"{place}: event must be one that the server emits, not {given['event']!r}")
    if given.get("transport", "websocket") not in ("websocket", "polling"):
        raise PolicyError(f"{place}: transport must be websocket or polling, not {given['transport']!r}")


def _key(place: str, given: Any) -> tuple[str, ...]:
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part for part in parts):
        raise PolicyError(f"{place}: key must be a JMESPath expression or a list of them, not {given!r}")
    return tuple(parts)


def secret(source: Source, variables: Mapping[str, str]) -> Any:
    """A feed's ``auth`` with what ``env:NAME`` stands for; read by the process that connects, so that others need not know it.

    Args:
        source: the feed.
        variables: the environment over ``.env`` (:func:`app.settings.variables`).

    Raises:
        PolicyError: such a variable is not set, or empty.
    """
    return _filled(source, source.auth, variables)


def _filled(source: Source, given: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(given, dict):
        return {name: _filled(source, value, variables) for name, value in given.items()}
    if isinstance(given, str) and given.startswith(_ENV):
        name = given.removeprefix(_ENV)
        if not (found := variables.get(name, "").strip()):
            raise PolicyError(f"the feed {source.name} names the variable {name} in its auth, which is not set")
        return found
    return given
