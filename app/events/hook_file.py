"""The tables ``[hooks.NAME]`` of the policy file: checked strictly, in one sentence.

The fields are those of :class:`app.events.hooks.Hook`. A secret never stands in the file; its variable is read by the broadcaster alone.
"""

import re
from pathlib import Path
from typing import Any

from app.errors import PolicyError
from app.events.hooks import GITHUB, STANDARD, Hook, Signature

_EXPRESSIONS = ("type", "source", "id", "time", "data")
_FIELDS = (*_EXPRESSIONS, "signature", "secret_env")
_NAMED = {"github": GITHUB, "standard-webhooks": STANDARD}
_CHOICES = {"algorithm": ("sha1", "sha256", "sha512"), "encoding": ("hex", "base64")}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}").fullmatch
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}").fullmatch
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch


def hooks_in(path: Path, hooks: Any) -> dict[str, Hook]:
    """The webhooks of a policy file, by name.

    Raises:
        PolicyError: one sentence with file, hook and field.
    """
    if not isinstance(hooks, dict):
        raise PolicyError(f"{path}: hooks must be a table of tables, as in [hooks.github]")
    return {name: _hook(f"{path}: hooks.{name}", name, table) for name, table in hooks.items()}


def _hook(place: str, name: str, given: Any) -> Hook:
    if not _NAME(name):
        raise PolicyError(f"{place}: a hook's name stands in its URL: lower-case letters, digits, - and _, at most 64")
    if not isinstance(given, dict):
        raise PolicyError(f"{place} must be a table with a type")
    for field, value in given.items():
        if field not in _FIELDS:
            raise PolicyError(f"{place}: {field} is no field of a hook (there are {', '.join(_FIELDS)})")
        if field in _EXPRESSIONS and (not isinstance(value, str) or not value):
            raise PolicyError(f"{place}: {field} must be a JMESPath expression, not {value!r}")
    if "type" not in given:
        raise PolicyError(f"{place} has no type")
    signature = _signature(place, given["signature"]) if "signature" in given else None
    secrets = _secrets(place, given["secret_env"]) if "secret_env" in given else ()
    if bool(signature) != bool(secrets):
        there, missing = ("signature", "secret_env") if signature else ("secret_env", "signature")
        raise PolicyError(f"{place} has a {there} and no {missing}: they go together")
    try:
        return Hook(name=name, **{**given, "signature": signature, "secret_env": secrets})
    except ValueError as error:
        raise PolicyError(f"{place}: {error}") from error


def _signature(place: str, given: Any) -> Signature:
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]
    if not isinstance(given, dict):
        raise PolicyError(f"{place}: signature must be {', '.join(map(repr, _NAMED))} or a table with a header, not {given!r}")
    for field, value in given.items():
        if field not in ("header", "prefix", *_CHOICES):
            raise PolicyError(f"{place}: {field} is no field of a signature (there are header, {', '.join(_CHOICES)}, prefix)")
        if field in _CHOICES and value not in _CHOICES[field]:
            raise PolicyError(f"{place}: signature's {field} must be one of {', '.join(_CHOICES[field])}, not {value!r}")
    header, prefix = given.get("header"), given.get("prefix", "")
    if not isinstance(header, str) or not _HEADER(header):
        raise PolicyError(f"{place}: signature needs the name of a header, as in header = 'X-Signature', not {header!r}")
    if not isinstance(prefix, str) or not prefix.isascii():
        raise PolicyError(f"{place}: signature's prefix must be ASCII text, not {prefix!r}")
    return Signature(**{**given, "header": header.lower()})


def _secrets(place: str, given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and _VARIABLE(name) for name in names):
        raise PolicyError(
            f"{place}: secret_env must be the name of an environment variable, or a list of names; the secret itself stays out"
        )
    return tuple(names)
