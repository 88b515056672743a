"""Templates in a target's configuration, such as `$(headers.x-model)`, filled from the request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from data_plane.errors import LlmError
from data_plane.exchange import Exchange

_EXPRESSION: Final = re.compile(r"\$\(([^)]*)\)")
_UNFIT_FOR_NAMES: Final = re.compile(r"[\x00-\x20\x7f]|\.\.")
"""Control characters, blanks and climbing paths have no business in the name of a model, which may become a path."""


def has_template(value: Any) -> bool:
    """Whether a string, or any string inside a record, is a template."""
    if isinstance(value, str):
        return "$(" in value
    if isinstance(value, Mapping):
        return any(has_template(member) for member in value.values())
    return isinstance(value, list) and any(has_template(member) for member in value)


def expand(value: Any, exchange: Exchange) -> Any:
    """The same value with every template filled. Raises LlmError(400) for one that cannot be."""
    if isinstance(value, str):
        return _EXPRESSION.sub(lambda found: _look_up(found[1], value, exchange), value) if "$(" in value else value
    if isinstance(value, Mapping):
        return {name: expand(member, exchange) for name, member in value.items()}
    if isinstance(value, list):
        return [expand(member, exchange) for member in value]
    return value


def expand_name(name: str, exchange: Exchange) -> str:
    """A model's name, filled and fit to stand in a path."""
    expanded: str = expand(name, exchange)
    if not expanded or _UNFIT_FOR_NAMES.search(expanded):
        raise LlmError(400, f"the request does not give a valid model name for '{name}'")
    return expanded


def _look_up(expression: str, whole: str, exchange: Exchange) -> str:
    source, dot, name = expression.partition(".")
    if not dot or not name or "." in name:
        raise LlmError(400, f"cannot parse expression for field '{whole}'")
    look_up = _SOURCES.get(source)
    if look_up is None:
        raise LlmError(400, f"source '{source}' is not supported")
    value = look_up(name, exchange)
    if value is None:
        raise LlmError(400, f"{source} key {name} was not provided")
    return value


def _header(name: str, exchange: Exchange) -> str | None:
    return exchange.request.headers.get(name)


def _capture(name: str, exchange: Exchange) -> str | None:
    return exchange.match.named_captures.get(name) if exchange.match is not None else None


def _query_parameter(name: str, exchange: Exchange) -> str | None:
    values = parse_qs(exchange.request.query, keep_blank_values=True).get(name)
    if values is not None and len(values) > 1:
        raise LlmError(400, f"query_params key {name} was provided more than once")
    return values[0] if values else None


_SOURCES: Final[Mapping[str, Callable[[str, Exchange], str | None]]] = {
    "headers": _header,
    "query_params": _query_parameter,
    "uri_captures": _capture,
}
