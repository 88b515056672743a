"""The schemas that clients download: Kong's own dialect for plugins and entities, JSON Schema for entities.

decK fills what a file leaves out from these and compares the result with what the API answers, so a default here that
differs from the stored one is an update that never ends. Everything is therefore drawn from the models that check and
fill what is stored; nothing is written down twice. What decK reads and why it matters: `flattenJSONSchema` takes an
object without `additionalProperties` for a record and sends an empty one, so references and maps always have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from control_plane.errors import NotFound, SchemaFault
from control_plane.fields import Field, Value, fields_of, own_defaults
from control_plane.partials import check_links, places_of
from gateway_schema import content
from gateway_schema.base import REFERENCEABLE
from gateway_schema.plugins import PLUGINS
from gateway_schema.plugins.base import PluginConfig
from gateway_schema.registry import ENTITY_TYPES, EntityType
from gateway_schema.violations import SchemaViolation

VALID = {"message": "schema validation successful"}

_SCOPES = ("service", "route", "consumer", "consumer_group")
_AUTO = frozenset({"id", "created_at", "updated_at"})
_SETS = frozenset({"tags"})
_FREE = {"type": "json", "keys": {"type": "string"}, "values": {"type": "json"}}
"""Any JSON. decK replaces a map by null unless its field has `keys` and `values`."""


# -- by name, as the paths ask for them


@cache
def plugin_schema(name: str) -> dict[str, Any]:
    """`schemas/plugins/{name}`. Raises NotFound."""
    config_class = PLUGINS.get(name)
    if config_class is None:
        raise NotFound(f"No plugin named '{name}'")
    scopes = [{scope: _scope(scope, config_class)} for scope in _SCOPES]
    config = {"type": "record", "required": True, "fields": _lua_fields(config_class), "entity_checks": []}
    shown: dict[str, Any] = {
        "fields": [{"protocols": _protocols(config_class)}, *scopes, {"config": config}],
        "entity_checks": [],
    }
    places = places_of(config_class)
    return shown | {"supported_partials": {kind: list(paths) for kind, paths in places.items()}} if places else shown


@cache
def partial_schema(kind: str) -> dict[str, Any]:
    """`schemas/partials/{type}`. Raises NotFound."""
    return _config_schema("partials", kind)


@cache
def vault_schema(name: str) -> dict[str, Any]:
    """`schemas/vaults/{name}`. Raises NotFound."""
    return _config_schema("vaults", name)


@cache
def entity_schema(name: str) -> dict[str, Any]:
    """`schemas/{entity}`, by the plural name of the registry. Raises NotFound."""
    row = _row(name)
    return {"fields": _lua_fields(row.model, row=row), "entity_checks": []}


@cache
def json_schema(name: str) -> dict[str, Any]:
    """`v1/schemas/json/{entity}`, by the singular of the entity's path (`service`, `key-set`). Raises NotFound."""
    for row in ENTITY_TYPES.values():
        if row.path is not None and row.path.removesuffix("s") == name:
            shown = {"$id": name, "title": name, **_json_record((row.model,))}
            return shown | {"allOf": _json_configs(row)} if row.configs and row.name != "plugins" else shown
    raise NotFound(f"No entity named '{name}'")


def validate(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """`schemas/{entity}/validate`: fields only. Whether names are free and references lead anywhere is not asked,
    because clients check the entities of a file before they write any. Raises NotFound or SchemaFault."""
    row = _row(name)
    try:
        written = content.generate(row, content.written_form(row, body))
        content.complete(row, content.admitted(row, written, None))
        check_links(row, written, lambda _: None)
    except SchemaViolation as error:
        raise SchemaFault(error.violations) from None
    return VALID


def _row(name: str) -> EntityType:
    row = ENTITY_TYPES.get(name)
    if row is None:
        raise NotFound(f"No entity named '{name}'")
    return row


def _config_schema(name: str, kind: str) -> dict[str, Any]:
    config_class = _row(name).configs.get(kind)
    if config_class is None:
        raise NotFound(f"No {name.removesuffix('s')} named '{kind}'")
    config = {"type": "record", "required": True, "fields": _lua_fields(config_class)}
    return {"name": kind, "fields": [{"config": config}]}


# -- Kong's dialect: lists of one-key objects


def _protocols(config_class: type[PluginConfig]) -> dict[str, Any]:
    protocols = list(config_class.protocols)
    return {
        "type": "set",
        "required": True,
        "default": protocols,
        "elements": {"type": "string", "one_of": protocols},
    }


def _scope(scope: str, config_class: type[PluginConfig]) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "foreign", "reference": f"{scope}s"}
    if scope in config_class.forbidden_scopes:
        shown["eq"] = None
    return shown


def _lua_fields(*models: type[BaseModel], row: EntityType | None = None) -> list[dict[str, Any]]:
    return [{item.name: _lua_field(item, row)} for item in fields_of(*models)]


def _lua_field(item: Field, row: EntityType | None) -> dict[str, Any]:
    shown = _lua_value(item.value)
    if item.required or not item.value.nullable:
        shown["required"] = True
    if item.description:
        shown["description"] = item.description
    if row is not None:
        _mark_entity_field(item, row, shown)
    if item.value.kind != "record" or item.value.nullable:
        if item.default is not None:
            shown["default"] = item.default
    elif not item.required and item.default != own_defaults(*item.value.records):
        shown["default"] = item.default
    return shown


def _mark_entity_field(item: Field, row: EntityType, shown: dict[str, Any]) -> None:
    if shown["type"] == "foreign":
        parent = row.parents.get(item.name)
        shown["reference"] = parent.type if parent else f"{item.name}s"
    if item.name in _AUTO:
        shown["auto"] = True
    if item.name in _SETS or item.name in content.UNORDERED.get(row.name, ()):
        shown["type"] = "set"
    if (item.name,) in row.unique:
        shown["unique"] = True


def _lua_value(value: Value) -> dict[str, Any]:
    if value.kind == "any":
        return {**_FREE, "fields": _lua_fields(*value.records)} if value.records else dict(_FREE)
    shown: dict[str, Any] = {"type": value.kind}
    if value.element is not None:
        element = _lua_value(value.element)
        shown.update({"keys": {"type": "string"}, "values": element} if value.kind == "map" else {"elements": element})
    if value.kind == "record":
        shown["fields"] = _lua_fields(*value.records)
    if value.choices:
        shown["one_of"] = list(value.choices)
    if value.marks.get(REFERENCEABLE):
        shown["referenceable"] = True
    return shown | _lua_bounds(value.bounds)


def _lua_bounds(bounds: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        shown["between"] = [low, high]
    elif low is not None:
        shown["gte"] = low
    elif high is not None:
        shown["lte"] = high
    names = {"gt": "gt", "lt": "lt", "min_length": "len_min", "max_length": "len_max", "pattern": "match"}
    return shown | {names[key]: bounds[key] for key in names if key in bounds}


# -- JSON Schema


def _json_record(models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    items = list(fields_of(*models))
    shown = _closed({item.name: _json_field(item) for item in items})
    if required := [item.name for item in items if item.required]:
        shown["required"] = required
    return shown


def _json_configs(row: EntityType) -> list[dict[str, Any]]:
    """What `config` holds, by the field that decides it."""
    return [
        {
            "if": {"required": [row.config_key], "properties": {row.config_key: {"const": kind}}},
            "then": {"properties": {"config": _closed({kind: _json_record((model,))})}},
        }
        for kind, model in row.configs.items()
    ]


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _json_field(item: Field) -> dict[str, Any]:
    shown = _json_value(item.value)
    if item.description:
        shown["description"] = item.description
    if item.default is not None:
        shown["default"] = _without_nulls(item.default)
    return shown


def _without_nulls(default: Any) -> Any:
    """decK drops nulls from what it reads before it looks whether that is the default."""
    if not isinstance(default, dict):
        return default
    return {name: _without_nulls(value) for name, value in default.items() if value is not None}


def _json_value(value: Value) -> dict[str, Any]:
    if value.kind == "any":
        return {}
    if value.kind == "record":
        return _json_record(value.records)
    if value.kind == "foreign":
        return _closed({"id": {"type": "string"}})
    if value.element is not None:
        element = _json_value(value.element)
        if value.kind == "map":
            return {"type": "object", "additionalProperties": element}
        return {"type": "array", "items": element, **_json_bounds(value.bounds, "Items")}
    shown: dict[str, Any] = {"type": value.kind, **_json_bounds(value.bounds, "Length"), **value.marks}
    if value.choices:
        shown["enum"] = list(value.choices)
    return shown


def _json_bounds(bounds: Mapping[str, Any], unit: str) -> dict[str, Any]:
    names = {
        "ge": "minimum",
        "le": "maximum",
        "gt": "exclusiveMinimum",
        "lt": "exclusiveMaximum",
        "min_length": f"min{unit}",
        "max_length": f"max{unit}",
        "pattern": "pattern",
    }
    return {names[key]: limit for key, limit in bounds.items()}
