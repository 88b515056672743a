"""Datakit's node classes beside Kong's published schema: same fields, types, limits, defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway_schema.plugins.datakit import DatakitConfig
from gateway_schema.plugins.datakit_ports import INPUTS, UNAVAILABLE_KINDS
from gateway_schema.violations import SchemaViolation, parse

KONG = json.loads((Path(__file__).parent / "kong_schemas" / "Datakit.json").read_text())
NODES = KONG["properties"]["config"]["properties"]["nodes"]
KINDS: dict[str, dict[str, Any]] = {kind["title"]: kind for kind in NODES["items"]["oneOf"]}

OURS = DatakitConfig.model_json_schema()
DEFINITIONS = OURS["$defs"]


def _ours(kind: str) -> dict[str, Any]:
    return next(
        definition
        for definition in DEFINITIONS.values()
        if definition.get("properties", {}).get("type", {}).get("const") == kind
    )


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        (schema,) = [option for option in schema["anyOf"] if option.get("type") != "null"]
    return DEFINITIONS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _facts(schema: dict[str, Any]) -> dict[str, Any]:
    kept = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
    facts = {name: _resolved(schema)[name] for name in kept if name in _resolved(schema)}
    if facts.get("type") == "string" and "enum" not in facts:
        facts.setdefault("minLength", 1)  # Kong's own default, which its schemas do not say
    if facts.get("type") == "array":  # Kong writes an array's limits as if it were a string
        facts = {name.replace("Items", "Length"): value for name, value in facts.items()}
    return facts


def _fields(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in _resolved(schema).get("properties", {}).items() if name != "type"}


def test_every_kind_of_kongs_runs_or_is_known_as_unavailable() -> None:
    assert set(KINDS) == set(INPUTS) | UNAVAILABLE_KINDS


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_a_kind_has_kongs_fields_with_kongs_limits(kind: str) -> None:
    ours, kongs = _fields(_ours(kind)), _fields(KINDS[kind])

    assert set(ours) == set(kongs)
    for name, field in kongs.items():
        assert _facts(ours[name]) == _facts(field), name
        assert set(_fields(ours[name])) == set(_fields(field)), name
        for inner, member in _fields(field).items():
            assert _facts(_fields(ours[name])[inner]) == _facts(member), (name, inner)


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_a_kind_has_kongs_defaults_and_required_fields(kind: str) -> None:
    ours, kongs = _ours(kind), KINDS[kind]
    defaults = {name: field["default"] for name, field in kongs["properties"].items() if "default" in field}

    assert {name: ours["properties"][name]["default"] for name in defaults} == defaults
    assert set(ours["required"]) == set(kongs.get("required", ())) | {"name", "type"}


def test_a_list_has_between_one_and_sixty_four_nodes() -> None:
    node = {"type": "static", "values": {}}
    nodes = [{**node, "name": f"N{number}"} for number in range(NODES["maxLength"] + 1)]

    assert len(parse(DatakitConfig, {"nodes": nodes[:-1]}).nodes) == NODES["maxLength"]
    for wrong in ([], nodes):
        with pytest.raises(SchemaViolation, match=r"nodes: length must be"):
            parse(DatakitConfig, {"nodes": wrong})


def test_protocols_and_priority_are_kongs() -> None:
    assert sorted(DatakitConfig.protocols) == sorted(KONG["properties"]["protocols"]["default"])
    assert DatakitConfig.priority == 810


def test_a_dump_is_read_again() -> None:
    nodes = [
        {"name": "B", "type": "branch", "input": "J", "then": ["S"], "else": ["C"], "outputs": {"else": "J2.x"}},
        {"name": "J", "type": "jq", "jq": ".a", "inputs": {"a": "request.body", "b": None}},
        {"name": "J2", "type": "jq", "jq": "."},
        {"name": "S", "type": "static", "values": {"k": [1, {"x": None}]}},
        {"name": "C", "type": "call", "url": "https://example.com/", "inputs": {"body": "J", "headers": None}},
    ]
    config = parse(DatakitConfig, {"nodes": nodes, "debug": True})

    again = parse(DatakitConfig, config.model_dump(by_alias=True))

    assert again == config
    assert again.plan.nodes == config.plan.nodes


def test_a_program_never_shows_in_a_repr() -> None:
    config = parse(DatakitConfig, {"nodes": [{"name": "A", "type": "jq", "jq": '{apikey: "internal-router-key"}'}]})

    assert "internal-router-key" not in repr(config) + repr(config.plan)
