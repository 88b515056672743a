"""The schema documents: what decK fills in by them must be what is stored, or its differences never end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from control_plane import schemas
from control_plane.errors import NotFound, SchemaFault
from control_plane.fields import fields_of
from gateway_schema import content
from gateway_schema.plugins import PLUGINS
from gateway_schema.registry import ENTITY_TYPES
from tests.control_plane.client import Client
from tests.control_plane.filling import config_of, entity_defaults, filled

TARGET = {"route_type": "llm/v1/chat", "model": {"provider": "openai"}}

WRITTEN: dict[str, list[dict[str, Any]]] = {
    "key-auth": [
        {},
        {"key_names": ["x-key"], "hide_credentials": False},
        {"identity_realms": [{"id": None}, {"scope": "realm", "id": "5d2b7cf8-4b2e-4fd8-b8a1-53ff1b7e6d0c"}]},
        {"principals": {"directory": "staff"}},
    ],
    "ai-prompt-decorator": [
        {},
        {"prompts": {"prepend": [{"content": "Be brief."}, {"role": "user", "content": "Hello"}]}},
    ],
    "ai-proxy-advanced": [
        {"targets": [TARGET]},
        {
            "targets": [
                {**TARGET, "weight": 5, "metadata": {"a": {"b": [1, None]}}, "logging": {"log_statistics": True}},
                {
                    **TARGET,
                    "auth": {"header_name": "Authorization", "header_value": "Bearer x"},
                    "model": {"provider": "bedrock", "options": {"bedrock": {"aws_region": "us-east-1"}}},
                },
            ],
            "balancer": {"algorithm": "semantic", "retries": 1},
            "vectordb": {
                "strategy": "redis",
                "dimensions": 3,
                "distance_metric": "cosine",
                "redis": {"host": "redis.test", "sentinel_nodes": [{"host": "a"}]},
            },
            "embeddings": {"model": {"provider": "openai", "name": "small", "options": {"azure": {}}}},
        },
    ],
    "datakit": [
        {
            "nodes": [
                {"name": "ASK", "type": "call", "url": "http://a.test/", "inputs": {"body": "request.body"}},
                {"name": "PICK", "type": "jq", "jq": ".a", "input": "ASK.body"},
                {"name": "KNOWN", "type": "static", "values": {"list": [True, False], "none": None}},
            ]
        },
        {"nodes": [{"name": "DONE", "type": "exit", "status": 204}], "debug": True, "resources": {}},
    ],
}

PARTIALS: dict[str, dict[str, Any]] = {
    "redis-ce": {"host": "redis.test"},
    "redis-ee": {"cluster_nodes": [{"ip": "10.0.0.1"}], "cloud_authentication": {"auth_provider": "aws"}},
    "vectordb": {"strategy": "pgvector", "dimensions": 3, "distance_metric": "cosine", "pgvector": {"port": 1}},
    "embeddings": {"model": {"provider": "openai", "name": "small"}},
    "model": TARGET,
}

CASES = [(name, written) for name, cases in WRITTEN.items() for written in cases]


def test_every_plugin_has_its_cases() -> None:
    assert set(WRITTEN) == set(PLUGINS)


@pytest.mark.parametrize(("name", "written"), CASES)
def test_a_configuration_filled_by_the_schema_is_the_stored_one(name: str, written: dict[str, Any]) -> None:
    row = ENTITY_TYPES["plugins"]
    stored = content.complete(row, content.written_form(row, {"name": name, "config": written}))
    assert filled(config_of(schemas.plugin_schema(name)), written) == stored["config"]


@pytest.mark.parametrize("kind", ENTITY_TYPES["partials"].configs)
def test_a_partial_filled_by_the_schema_is_the_stored_one(kind: str) -> None:
    row = ENTITY_TYPES["partials"]
    written = content.written_form(row, {"name": "p", "type": kind, "config": PARTIALS[kind]})
    stored = content.complete(row, written)
    assert filled(config_of(schemas.partial_schema(kind)), PARTIALS[kind]) == stored["config"]


def test_a_vault_is_stored_as_it_was_written() -> None:
    """decK fills nothing in a vault, so nothing may be added here."""
    row = ENTITY_TYPES["vaults"]
    body = {"name": "env", "prefix": "my-env", "config": {"prefix": "A_", "ttl": 60}}
    assert content.complete(row, content.written_form(row, body))["config"] == body["config"]
    assert dict(fields(schemas.vault_schema("env")["fields"][0]["config"]))["prefix"]["type"] == "string"
    [env] = [one for one in schemas.json_schema("vault")["allOf"] if one["if"]["properties"]["name"]["const"] == "env"]
    assert "ttl" in env["then"]["properties"]["config"]["properties"]["env"]["properties"]


def test_a_plugin_names_the_partials_that_it_takes_and_where() -> None:
    assert schemas.plugin_schema("ai-proxy-advanced")["supported_partials"] == {
        "embeddings": ["config.embeddings"],
        "model": ["config.targets[]"],
        "vectordb": ["config.vectordb"],
    }
    assert "supported_partials" not in schemas.plugin_schema("key-auth")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_without_protocols_gets_those_of_its_schema(name: str) -> None:
    row = ENTITY_TYPES["plugins"]
    stored = content.complete(row, {"name": name, "config": WRITTEN[name][0]})
    [protocols] = [field["protocols"] for field in schemas.plugin_schema(name)["fields"] if "protocols" in field]
    assert protocols["default"] == stored["protocols"]


def records(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model in seen:
        return
    seen.add(model)
    yield model
    for item in fields_of(model):
        values = [item.value, item.value.element]
        for record in [record for value in values if value is not None for record in value.records]:
            yield from records(record, seen)


MODELS = sorted(
    {
        record
        for model in [*PLUGINS.values(), *(row.model for row in ENTITY_TYPES.values())]
        for record in records(model, set())
    },
    key=lambda model: model.__qualname__,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__qualname__)
def test_a_record_that_is_left_out_holds_what_an_empty_one_would(model: type[BaseModel]) -> None:
    """Kong's dialect has the defaults of a record's members only; a default of the whole would have to agree."""
    for item in fields_of(model):
        if item.value.kind == "record" and isinstance(item.default, dict) and not item.value.nullable:
            assert item.default == {inner.name: inner.default for inner in fields_of(*item.value.records)}


SINGULAR = {name: row.path.removesuffix("s") for name, row in ENTITY_TYPES.items() if row.path is not None}


def without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}


@pytest.mark.parametrize("name", SINGULAR)
def test_the_defaults_of_both_dialects_are_those_of_the_model(name: str) -> None:
    expected = {item.name: item.default for item in fields_of(ENTITY_TYPES[name].model) if item.default is not None}
    by_json = entity_defaults(schemas.json_schema(SINGULAR[name]))
    assert without_nulls(by_json) == without_nulls(expected)
    lua = filled({"fields": schemas.entity_schema(name)["fields"]}, {})
    assert {field: value for field, value in lua.items() if value is not None and field in expected} == expected


@pytest.mark.parametrize("name", SINGULAR)
def test_a_json_schema_names_every_field_that_is_answered(name: str) -> None:
    schema = schemas.json_schema(SINGULAR[name])
    assert schema["type"] == "object"
    assert {"id", "tags", "created_at"} <= schema["properties"].keys()


def bare_objects(schema: Any, path: str = "") -> Iterator[str]:
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") in (None, True):
            yield path
        for key, value in schema.items():
            yield from bare_objects(value, f"{path}.{key}")


@pytest.mark.parametrize("name", SINGULAR)
def test_no_reference_and_no_map_is_a_bare_object(name: str) -> None:
    """decK would send an empty object in its place with every entity."""
    assert list(bare_objects(schemas.json_schema(SINGULAR[name]))) == []


def fields(schema: Any) -> Iterator[tuple[str, Any]]:
    for entry in schema.get("fields", ()):
        [(name, field)] = entry.items()
        yield name, field
        yield from fields(field)
        yield from fields(field.get("elements", {}))


@pytest.mark.parametrize("name", PLUGINS)
def test_every_value_that_may_be_an_object_has_fields_or_keys_and_values(name: str) -> None:
    """decK replaces an object by null when its field says neither."""
    for field_name, field in fields(config_of(schemas.plugin_schema(name))):
        if field["type"] in {"map", "json"}:
            assert {"keys", "values"} <= field.keys(), field_name
        elif field["type"] == "record":
            assert field["fields"], field_name


def test_forbidden_scopes_must_be_null() -> None:
    scopes = {name: field for name, field in fields(schemas.plugin_schema("key-auth")) if field["type"] == "foreign"}
    assert scopes["consumer"] == {"type": "foreign", "reference": "consumers", "eq": None}
    assert scopes["route"] == {"type": "foreign", "reference": "routes"}


def test_bounds_and_choices_are_kongs() -> None:
    found = dict(fields(config_of(schemas.plugin_schema("ai-proxy-advanced"))))
    assert found["weight"]["between"] == [1, 65_535]
    assert found["response_streaming"]["one_of"] == ["allow", "always", "deny"]
    assert found["targets"]["len_min"] == 1
    assert found["header_value"]["referenceable"] is True
    assert found["connect_timeout"]["type"] == "integer"
    assert found["temperature"]["type"] == "number"


def test_unknown_names_are_not_found() -> None:
    with pytest.raises(NotFound, match="No plugin named 'nothing'"):
        schemas.plugin_schema("nothing")
    with pytest.raises(NotFound, match="No entity named 'service'"):
        schemas.entity_schema("service")
    with pytest.raises(NotFound, match="No entity named 'services'"):
        schemas.json_schema("services")
    with pytest.raises(NotFound, match="No entity named 'plugin'"):
        schemas.validate("plugin", {})
    with pytest.raises(NotFound, match="No partial named 'nothing'"):
        schemas.partial_schema("nothing")
    with pytest.raises(NotFound, match="No vault named 'nothing'"):
        schemas.vault_schema("nothing")


# -- validate


def test_references_that_lead_nowhere_are_valid_and_may_say_more() -> None:
    somewhere = "6f2f6f0e-6f0e-4c7e-8a49-06cb1e0e4d2b"
    body = {"id": somewhere, "paths": ["/a"], "service": {"id": somewhere, "name": "x"}}
    assert schemas.validate("routes", body) == {"message": "schema validation successful"}
    body = {"key": "k", "consumer": {"id": somewhere, "username": "bob"}}
    assert schemas.validate("keyauth_credentials", body)


def test_a_broken_entity_is_refused_with_its_field() -> None:
    with pytest.raises(SchemaFault) as caught:
        schemas.validate("plugins", {"name": "key-auth", "config": {"key_names": "apikey"}})
    assert caught.value.message == "schema violation (config.key_names: expected an array)"


# -- over HTTP


@pytest.mark.parametrize(
    "path",
    [
        "schemas/plugins/key-auth",
        "schemas/services",
        "v1/schemas/json/service",
        "v1/schemas/json/route",
    ],
)
async def test_documents_are_served_below_core_entities(client: Client, path: str) -> None:
    assert await client.get(path)


async def test_validation_neither_writes_nor_looks_for_taken_names(client: Client) -> None:
    await client.call("POST", "services", {"name": "taken", "host": "a.test"}, 201)
    answer = await client.call("POST", "schemas/services/validate", {"name": "taken", "host": "b.test"})
    assert answer == {"message": "schema validation successful"}
    assert len((await client.get("services"))["data"]) == 1


async def test_a_violation_is_answered_with_a_message(client: Client) -> None:
    answer = await client.call("POST", "schemas/services/validate", {"port": 0.5}, 400)
    assert answer["message"] == "2 schema violations (host: required field missing; port: expected an integer)"
    assert (await client.get("schemas/plugins/nothing", expect=404))["message"] == "No plugin named 'nothing'"
