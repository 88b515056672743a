"""The two forms of an entity: what was said is put into its normal form before it is checked and kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from gateway_schema import content
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.shapes import normal, shape_of
from gateway_schema.violations import SchemaViolation

CLASSES = [row.model for row in ENTITY_TYPES.values()]
CONFIGS = [config for row in ENTITY_TYPES.values() for config in row.configs.values()]
MODELS = sorted({*CLASSES, *CONFIGS}, key=lambda model: model.__name__)


def integers(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[Any]:
    """For every integer that a JSON schema knows, a value of its shape with a whole float in that place."""
    if "$ref" in schema:
        yield from integers(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if not any(other.get("type") == "number" for other in schema.get("anyOf", ())):
            yield from integers(option, definitions)
    if schema.get("type") == "integer":
        yield 7.0
    for name, child in schema.get("properties", {}).items():
        yield from ({name: inner} for inner in integers(child, definitions))
    if "items" in schema:
        yield from ([inner] for inner in integers(schema["items"], definitions))


def leaf(value: Any) -> Any:
    while isinstance(value, dict | list):
        [value] = value.values() if isinstance(value, dict) else value
    return value


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_whole_number_is_an_integer_wherever_one_belongs(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    for written in integers(schema, schema.get("$defs", {})):
        assert repr(leaf(normal(shape_of(model), written))) == "7", written


def test_the_walk_above_finds_the_integers_of_all_depths() -> None:
    schema = ENTITY_TYPES["upstreams"].model.model_json_schema()
    found = list(integers(schema, schema["$defs"]))
    assert {"healthchecks": {"active": {"healthy": {"http_statuses": [7.0]}}}} in found
    assert {"healthchecks": {"threshold": 7.0}} not in found


def complete(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    row = ENTITY_TYPES[kind]
    return content.complete(row, content.written_form(row, body))


def test_whole_numbers_are_kept_and_shown_as_integers() -> None:
    row = ENTITY_TYPES["services"]
    body = {"name": "s", "host": "h.test", "port": 8000.0, "retries": 5.0, "read_timeout": 1e3}
    written = content.written_form(row, body)
    shown = content.complete(row, written)
    for form in (written, shown):
        assert [repr(form[name]) for name in ("port", "retries", "read_timeout")] == ["8000", "5", "1000"]
    route = complete("routes", {"paths": ["/a"], "https_redirect_status_code": 301.0})
    assert repr(route["https_redirect_status_code"]) == "301"
    vault = complete("vaults", {"prefix": "my-hcv", "name": "hcv", "config": {"port": 8200.0, "host": None}})
    assert vault["config"] == {"port": 8200, "host": None}
    assert repr(vault["config"]["port"]) == "8200"


@pytest.mark.parametrize("value", [5.5, math.inf, -math.inf, math.nan, 1e300, True, "5", [5.0]])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(SchemaViolation, match=r"retries: (expected an integer|must not)"):
        complete("services", {"host": "h.test", "retries": value})


def deep(in_list: bool) -> Any:
    value: Any = "x"
    for _ in range(1000):
        value = [value] if in_list else {"a": value}
    return value


@pytest.mark.parametrize("in_list", [True, False])
@pytest.mark.parametrize("kind", ENTITY_TYPES)
def test_a_value_that_is_nested_too_deep_is_refused_by_name_in_every_field(kind: str, in_list: bool) -> None:
    row = ENTITY_TYPES[kind]
    for name in row.model.model_fields.keys() - content.OWN_FIELDS - row.computed:
        written = content.written_form(row, {name: deep(in_list)})
        with pytest.raises(SchemaViolation, match=f"{name}: must not be nested deeper than 64 levels"):
            content.complete(row, written)
        if row.model.overrides("admit"):
            with pytest.raises(SchemaViolation, match=f"{name}: must not be nested deeper than 64 levels"):
                content.admitted(row, written, None)


@pytest.mark.parametrize("in_list", [True, False])
@pytest.mark.parametrize(
    ("kind", "decider"), [(row.name, name) for row in ENTITY_TYPES.values() for name in row.configs]
)
def test_and_in_every_field_of_a_configuration(kind: str, decider: str, in_list: bool) -> None:
    row = ENTITY_TYPES[kind]
    for name in row.configs[decider].model_fields:
        with pytest.raises(SchemaViolation, match="config: must not be nested deeper than 64 levels"):
            complete(kind, {str(row.config_key): decider, "config": {name: deep(in_list)}})
