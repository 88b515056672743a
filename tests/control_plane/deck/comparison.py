"""decK's judgement, in our words: does what is answered equal what was sent, once defaults are filled in?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from control_plane import schemas
from tests.control_plane.filling import config_of, entity_defaults, filled

_REFERENCES = frozenset({"service", "route", "consumer", "consumer_group", "upstream", "certificate", "set"})
_FILLED = {"services": "service", "routes": "route", "upstreams": "upstream", "targets": "target"}
"""Collections whose entities decK fills by their JSON Schema."""
_TIMES = ("created_at", "updated_at")
_NOT_COMPARED = frozenset({*_TIMES, "password", "cert_digest", "snis"})
_UNORDERED = frozenset({"tags", "ca_certificates"})


def differences(collection: str, sent: Mapping[str, Any], answered: Mapping[str, Any]) -> Iterator[str]:
    """One line for each field that decK would update for ever."""
    expected = _expected(collection, sent)
    for name in sorted(expected.keys() | answered.keys()):
        if name in _NOT_COMPARED:
            continue
        wanted, found = expected.get(name), answered.get(name)
        if name != "config":
            wanted, found = _typed(wanted), _typed(found)
        if name in _UNORDERED or (collection == "plugins" and name == "protocols"):
            wanted, found = sorted(wanted or []), sorted(found or [])
        if name == "partials":
            wanted, found = _links(wanted), _links(found)
        if wanted is None and name not in sent and collection not in _FILLED and collection != "plugins":
            if found in ([], {}):
                yield f"{name}: {found} where nothing was sent"
        elif wanted != found:
            yield f"{name}: sent {wanted!r}, answered {found!r}"
    yield from _wrong_times(collection, answered)


def _links(links: Any) -> list[tuple[str, Any]]:
    """Partials count by id and place; a name beside the id says nothing."""
    return [(link["id"], link.get("path")) for link in links or []]


def _expected(collection: str, sent: Mapping[str, Any]) -> dict[str, Any]:
    expected = {name: {"id": value["id"]} if name in _REFERENCES and value else value for name, value in sent.items()}
    if collection in _FILLED:
        return _merged(_settled(entity_defaults(schemas.json_schema(_FILLED[collection])), sent), expected)
    if collection == "plugins":
        schema = schemas.plugin_schema(sent["name"])
        [protocols] = [field["protocols"]["default"] for field in schema["fields"] if "protocols" in field]
        expected["config"] = filled(config_of(schema), sent.get("config") or {})
        return {"protocols": protocols, "enabled": True, **expected}
    if collection == "partials":
        return {**expected, "config": filled(config_of(schemas.partial_schema(sent["type"])), sent.get("config") or {})}
    return expected


def _settled(defaults: dict[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """A route with an expression has none of these defaults: decK strips them."""
    if sent.get("expression") is None:
        return defaults
    return {**defaults, "path_handling": None, "regex_priority": None, "priority": 0}


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(defaults)
    for name, value in given.items():
        before = result.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = _merged(before, value) if both else before if value is None else value
    return result


def _typed(value: Any) -> Any:
    """Records of the entity itself, not of a configuration, are structures in decK: null and absent are the same."""
    if not isinstance(value, Mapping):
        return value
    return {name: _typed(inner) for name, inner in value.items() if inner is not None}


def _wrong_times(collection: str, answered: Mapping[str, Any]) -> Iterator[str]:
    for name in _TIMES:
        value = answered.get(name)
        if value is not None and not isinstance(value, int) and collection != "targets":
            yield f"{name}: {value!r} is no integer"
