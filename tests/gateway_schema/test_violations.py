from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gateway_schema.entities import Consumer, Entity, Plugin, Reference, Route, Service
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, parse


def faults(model: type[Entity], body: Any) -> list[str]:
    with pytest.raises(SchemaViolation) as caught:
        parse(model, body)
    return [str(violation) for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (Service, {}, "host: required field missing"),
        (Service, {"host": "a", "retires": 3}, "retires: unknown field (did you mean 'retries'?)"),
        (Service, {"host": "a", "port": "80"}, "port: expected an integer"),
        (Service, {"host": "a", "port": 70000}, "port: value should be between 0 and 65535"),
        (Service, {"host": "a:80"}, "host: must not have a port"),
        (Service, {"host": "a", "path": "x"}, "path: should start with: /"),
        (Service, {"host": "a", "path": "/a//b"}, "path: must not have empty segments"),
        (Service, {"host": "a", "enabled": "yes"}, "enabled: expected a boolean"),
        (Service, {"host": "a", "tags": ["a,b"]}, "tags: invalid tag 'a,b': expected printable ascii"),
        (Service, {"host": "a", "id": "x"}, "id: expected a valid UUID"),
        (Service, {"host": "a", "tls_verify": True}, "tls_verify: value must be null"),
        (Route, {"paths": ["/a"], "protocols": ["htp"]}, "protocols[0]: expected one of: http, https"),
        (Route, {"paths": ["/a"], "protocols": ["http", "tcp"]}, "protocols: these sets are mutually exclusive"),
        (Route, {"name": "r"}, "must set one of 'methods', 'hosts', 'headers', 'paths' when 'protocols' is 'http'"),
        (Route, {"paths": ["a"]}, "paths[0]: should start with: / (fixed path) or ~/ (regex path)"),
        (Route, {"paths": ["~/("]}, "paths[0]: not a valid regex"),
        (Route, {"methods": ["get"]}, "methods[0]: invalid value: get"),
        (Route, {"paths": ["/a"], "headers": {"Host": ["a"]}}, "headers: must not contain 'host'"),
        (Route, {"hosts": ["*.a.*"]}, "hosts[0]: invalid value: *.a.*"),
        (Consumer, {}, "at least one of these fields must be non-empty: 'custom_id', 'username'"),
        (Plugin, {"name": "x", "ordering": {"befor": {}}}, "ordering.befor: unknown field (did you mean 'before'?)"),
    ],
)
def test_a_fault_is_named_with_its_field_and_what_would_be_right(
    model: type[Entity], body: dict[str, Any], expected: str
) -> None:
    assert any(fault.startswith(expected) for fault in faults(model, body)), faults(model, body)


def test_all_faults_are_told_at_once() -> None:
    found = faults(Service, {"port": "x", "retries": -1, "nam": "a"})
    assert [fault.partition(":")[0] for fault in found] == ["host", "port", "retries", "nam"]


def test_the_summary_counts_like_kong() -> None:
    with pytest.raises(SchemaViolation, match=r"^2 schema violations \(host: .*; port: .*\)$"):
        parse(Service, {"port": "x"})


def test_an_entity_that_is_no_record_is_said_to_be_none() -> None:
    assert faults(Service, [1]) == ["expected a record"]


CONFIGS = [config for row in ENTITY_TYPES.values() for config in row.configs.values()]
RECORDS = sorted({*(row.model for row in ENTITY_TYPES.values()), *CONFIGS}, key=lambda model: model.__name__)


def words(schema: Any) -> Iterator[str]:
    """Every word of a JSON schema: names of fields and classes, and the values that there is a choice of."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        yield from schema.get("$defs", {})
        yield from (value for value in schema.get("enum", ()) if isinstance(value, str))
        for each in schema.values():
            yield from words(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from words(each)


@pytest.mark.parametrize("model", RECORDS, ids=lambda model: model.__name__)
def test_an_unknown_field_is_named_whichever_word_of_the_schema_it_is(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    unknown = {*words(schema), model.__name__, "function-x", "str", "int"} - schema["properties"].keys()
    with pytest.raises(SchemaViolation) as caught:
        parse(model, dict.fromkeys(unknown, "x"))
    told = {violation.path: violation.message for violation in caught.value.violations}
    assert {name for name in unknown if told.get((name,), "").startswith("unknown field")} == unknown


def test_inside_a_record_too_and_without_a_wrong_hint() -> None:
    target = {"route_type": "llm/v1/chat", "model": {"provider": "openai", "openai": 1}}
    with pytest.raises(SchemaViolation) as caught:
        parse(ENTITY_TYPES["plugins"].configs["ai-proxy-advanced"], {"targets": [target]})
    [violation] = caught.value.violations
    assert violation.path == ("targets", 0, "model", "openai")
    assert "did you mean" not in violation.message


@pytest.mark.parametrize("model", [*RECORDS, Reference], ids=lambda model: model.__name__)
def test_what_pydantic_says_quotes_no_value(model: type[BaseModel]) -> None:
    first = next(iter(model.model_fields))
    with pytest.raises(ValidationError) as caught:
        model.model_validate({first: {"a": "sk-secret"}})
    assert "sk-secret" not in str(caught.value)


def test_a_refusal_carries_nothing_that_knows_the_values() -> None:
    with pytest.raises(SchemaViolation) as caught:
        parse(Service, {"host": 1})
    assert caught.value.__context__ is None
