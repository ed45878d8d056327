"""JMESPath over events: checked when the policies are loaded, quick when an event is read.

Guaranteed: a compiled expression gives the same value whatever the order of an event's fields, and raises nothing but
``InvalidEvent``. A plain path such as ``data.carrier``, by far the most common, is walked here, at a tenth of the cost of
the library's interpreter; the answers are the same.

Source: https://jmespath.org/specification.html
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions

from app.errors import InvalidEvent
from app.events.values import shown

Expression = Callable[[Mapping[str, Any]], Any]
"""Takes an event as one object (type, source, id, time, subject, data, …; absent ones left out) and gives a value or None."""

_LITERAL = re.compile(r"'([^']*)'").fullmatch
_ORDERED_FUNCTIONS = frozenset({"keys", "values", "to_string"})
"""Functions whose answer follows the order of an object's fields."""

_RUNTIME_ERRORS = (JMESPathError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the interpreter raises on values that an expression does not fit; most are no JMESPathError."""


def compile_expression(text: str) -> Expression:
    """Compile a JMESPath expression.

    Raises:
        ValueError: it does not compile, calls a function that does not exist or with too few or many arguments, or does not
            look at the event at all; the text is a predicate that follows the expression.
    """
    try:
        with warnings.catch_warnings(action="error", category=PendingDeprecationWarning):
            compiled = jmespath.compile(text)
    except PendingDeprecationWarning:
        raise ValueError("has a literal that is not JSON: write text as 'text'") from None
    except JMESPathError as error:
        raise ValueError(f"is no JMESPath: {str(error).splitlines()[0].rstrip(':')}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JMESPath: {error}") from error
    nodes = list(_nodes(compiled.parsed))
    _check_functions(nodes)
    if not any(node["type"] in ("field", "current", "value_projection") for node in nodes):
        raise ValueError("is a constant, the same for every event; name a field, as in data.number")
    names = _plain_path(compiled.parsed)
    if names is not None:
        return _walker(names)
    ordered = any(
        node["type"] == "value_projection" or (node["type"] == "function_expression" and node["value"] in _ORDERED_FUNCTIONS)
        for node in nodes
    )

    def search(event: Mapping[str, Any]) -> Any:
        try:
            return compiled.search(_sorted(event) if ordered else event)
        except _RUNTIME_ERRORS as error:
            raise InvalidEvent(f"the expression {text} does not fit this event: {shown(str(error), 200)}", field=text) from error

    return search


def compile_reader(name: str, text: str) -> Callable[[Any], Any]:
    """Compile an expression over something that is to become an event; a text in quotes, ``'github'``, stands for itself.

    Args:
        name: of the field that the expression is for.
        text: the expression.

    Raises:
        ValueError: as :func:`compile_expression`; the text begins with the field's name.
    """
    if literal := _LITERAL(text):
        constant = literal[1]
        return lambda _: constant
    try:
        return compile_expression(text)
    except ValueError as error:
        raise ValueError(f"{name}: {text!r} {error}") from error


def _walker(names: tuple[str, ...]) -> Expression:
    def walk(event: Mapping[str, Any]) -> Any:
        value: Any = event
        for name in names:
            if type(value) is not dict:
                return None
            value = value.get(name)
        return value

    return walk


def _plain_path(node: Mapping[str, Any]) -> tuple[str, ...] | None:
    if node["type"] == "field":
        return (node["value"],)
    if node["type"] != "subexpression":
        return None
    parts = [_plain_path(child) for child in node["children"]]
    return tuple(name for part in parts if part is not None for name in part) if None not in parts else None


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node["children"]:
        if isinstance(child, dict):  # a slice has numbers for children
            yield from _nodes(child)


def _check_functions(nodes: list[Mapping[str, Any]]) -> None:
    for node in nodes:
        if node["type"] != "function_expression":
            continue
        name, given = node["value"], len(node["children"])
        if name not in Functions.FUNCTION_TABLE:
            raise ValueError(f"calls {name}(), which JMESPath does not have")
        signature = Functions.FUNCTION_TABLE[name]["signature"]
        variadic = bool(signature) and signature[-1].get("variadic", False)
        if given < len(signature) or (given > len(signature) and not variadic):
            raise ValueError(f"calls {name}() with {given} arguments, and it takes {len(signature)}{' or more' if variadic else ''}")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
