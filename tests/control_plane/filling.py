"""What decK makes of our schemas before it compares: an own rendering of the rules, to test schemas without decK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def config_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` field of a plugin's or a partial's schema."""
    return next(field["config"] for field in schema["fields"] if "config" in field)


def filled(record: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with everything that the record's schema knows: defaults, and null where there are none."""
    result = dict(given)
    for entry in record["fields"]:
        [(name, field)] = entry.items()
        value = given.get(name)
        if name in given and _is_whole(field, value):
            continue
        if field["type"] == "record" and (value is not None or field.get("required")):
            result[name] = filled(field, value or {})
        elif isinstance(value, list) and value:
            result[name] = [filled(field["elements"], item) if isinstance(item, dict) else item for item in value]
        else:
            result[name] = record.get("default", {}).get(name, field.get("default"))
    return result


def _is_whole(field: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, dict):
        return "keys" in field and "values" in field
    if isinstance(value, list):
        return bool(field.get("elements", {}).get("type") != "record")
    return value is not None or field["type"] != "record"


def entity_defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What decK gives every service, route, upstream and target of a file, by their JSON Schema."""
    result = {}
    for name, field in schema["properties"].items():
        inside = field.get("additionalProperties")
        if field.get("type") == "object" and (inside is None or inside is True):
            result[name] = entity_defaults({"properties": field.get("properties", {})})
        else:
            result[name] = field.get("default")
    return result
