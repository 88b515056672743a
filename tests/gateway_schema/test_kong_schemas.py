"""Our plugin classes beside the schemas that Kong publishes: same fields, types, defaults, choices, limits, secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway_schema.partials import PARTIAL_CONFIGS
from gateway_schema.plugins import PLUGINS
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, parse

SCHEMAS = Path(__file__).parent / "kong_schemas"

CASES = {
    "ai-prompt-decorator": "AiPromptDecorator",
    "ai-proxy-advanced": "AiProxyAdvanced",
    "key-auth": "KeyAuth",
}

STRICTER = {
    # Kong enforces these too; its published schema does not say them.
    ("ai-proxy-advanced", "targets"): {"minimum_length": 1},
    ("ai-proxy-advanced", "max_request_body_size"): {"minimum": 0},
    ("ai-prompt-decorator", "max_request_body_size"): {"minimum": 0},
}
"""Where we differ on purpose, each with its reason above it."""


def _flatten(
    schema: dict[str, Any], definitions: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a JSON schema with what it says, whichever of the two dialects it is written in."""
    schema = _resolved(schema, definitions)
    if path:
        yield path, _facts(schema)
    required = set(schema.get("required", ()))
    for name, child in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        for inner_path, facts in _flatten(child, definitions, here):
            yield inner_path, {**facts, "required": name in required} if inner_path == here else facts
    if isinstance(schema.get("items"), dict):
        yield from _flatten(schema["items"], definitions, f"{path}[]")


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema or "anyOf" in schema:
        rest = {key: value for key, value in schema.items() if key not in {"$ref", "anyOf"}}
        if "$ref" in schema:
            schema = {**definitions[schema["$ref"].rpartition("/")[2]], **rest}
        else:
            (only,) = [option for option in schema["anyOf"] if option.get("type") != "null"]
            schema = {**only, **rest}
    return schema


def _facts(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema["type"]
    # Kong's text is never empty unless it says otherwise, which the published schema leaves unsaid.
    unsaid = 1 if kind == "string" and "enum" not in schema else None
    length = schema.get("minItems", schema.get("minLength", unsaid))
    facts = {
        "type": kind,
        "default": schema.get("default"),
        "choices": sorted(schema["enum"]) if "enum" in schema else None,
        "minimum": schema.get("minimum"),
        "maximum": schema.get("maximum"),
        "minimum_length": length,
        "maximum_length": schema.get("maxItems", schema.get("maxLength")),
        "encrypted": schema.get("x-encrypted"),
        "referenceable": schema.get("x-referenceable"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _ours(name: str) -> dict[str, dict[str, Any]]:
    schema = PLUGINS[name].model_json_schema()
    return dict(_flatten(schema, schema.get("$defs", {})))


def _kongs(name: str) -> dict[str, dict[str, Any]]:
    document = json.loads((SCHEMAS / f"{CASES[name]}.json").read_text())
    return dict(_flatten(document["properties"]["config"], {}))


@pytest.mark.parametrize("name", CASES)
def test_has_the_fields_that_kong_has_and_no_others(name: str) -> None:
    assert sorted(_ours(name)) == sorted(_kongs(name))


@pytest.mark.parametrize("name", CASES)
def test_every_field_says_what_kong_says_of_it(name: str) -> None:
    ours, kongs = _ours(name), _kongs(name)
    for path, facts in kongs.items():
        expected = {**facts, **STRICTER.get((name, path), {})}
        found = {key: value for key, value in ours[path].items() if key != "default" or ours[path]["type"] != "object"}
        assert {**found, "required": bool(found.get("required"))} == {
            **expected,
            "required": bool(expected.get("required")),
        }, path


def _loose_texts(schema: Any, path: str) -> Iterator[str]:
    """Where a JSON schema takes any text, the empty one too."""
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from _loose_texts(item, f"{path}.{index}")
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and not ({"enum", "const"} & schema.keys() or schema.get("minLength")):
            yield path
        for name, item in schema.items():
            yield from _loose_texts(item, f"{path}.{name}")


CONFIGS = {kind: config for row in ENTITY_TYPES.values() for kind, config in row.configs.items()}
NEVER_VALID = {"datakit.$defs.UnknownNode.properties.type"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_text_of_a_configuration_may_be_empty(kind: str) -> None:
    """Kong's default for every string."""
    assert set(_loose_texts(CONFIGS[kind].model_json_schema(), kind)) <= NEVER_VALID


def test_what_kong_marks_referenceable_may_stand_in_a_vault() -> None:
    """Also a choice and a number; any other text is judged as before."""
    written = {"port": "{vault://env/port}", "cloud_authentication": {"auth_provider": "{vault://env/provider}"}}
    redis = PARTIAL_CONFIGS["redis-ee"].model_validate(written).model_dump(mode="json")
    assert redis["port"] == written["port"]
    assert redis["cloud_authentication"]["auth_provider"] == "{vault://env/provider}"
    wrong = {"port": "{vault:", "cloud_authentication": {"auth_provider": "{vault://env/provider} "}}
    with pytest.raises(SchemaViolation) as refused:
        parse(PARTIAL_CONFIGS["redis-ee"], wrong)
    assert [str(violation) for violation in refused.value.violations] == [
        "port: expected an integer",
        "cloud_authentication.auth_provider: expected one of: aws, azure, gcp",
    ]


@pytest.mark.parametrize("name", CASES)
def test_takes_the_protocols_that_kong_takes(name: str) -> None:
    document = json.loads((SCHEMAS / f"{CASES[name]}.json").read_text())

    assert sorted(PLUGINS[name].protocols) == sorted(document["properties"]["protocols"]["default"])


def test_records_are_filled_where_kong_fills_them() -> None:
    config = PLUGINS["ai-proxy-advanced"].model_validate(
        {"targets": [{"route_type": "llm/v1/chat", "model": {"provider": "openai"}}]}
    )
    filled = config.model_dump()

    assert filled["balancer"]["algorithm"] == "round-robin"
    assert filled["targets"][0]["logging"] == {"log_statistics": False, "log_payloads": False}
    assert filled["targets"][0]["auth"] is None
    assert filled["targets"][0]["model"]["options"] is None
    assert filled["acls"] is filled["vectordb"] is filled["embeddings"] is None
