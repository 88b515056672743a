"""What `recipe validate` says of a file, beside what a control plane says when the file is applied."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cli.declarative import check
from cli.files import parse_text
from gateway_schema.registry import ENTITY_TYPES
from tests.control_plane.client import Client
from tests.control_plane.everything import everything


def nulled(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """With every field that may be left out said to be null."""
    row = ENTITY_TYPES[kind]
    fields = row.model.model_fields.keys() - row.parents.keys() - row.computed
    return {**dict.fromkeys(fields), **body}


TARGET = {"route_type": "llm/v1/chat", "model": {"provider": "openai", "options": {"max_tokens": 1e3}}}
CACHE = {"type": "redis-ce", "config": {"host": None, "port": 6379.0}}

ACCEPTED: dict[str, dict[str, Any]] = {
    "every kind": everything(),
    "nulls": {
        "services": [nulled("services", {"name": "s", "host": "h.test"})],
        "routes": [nulled("routes", {"name": "r", "paths": ["/a"]})],
        "upstreams": [nulled("upstreams", {"name": "u", "targets": [nulled("targets", {"target": "a.test"})]})],
        "consumers": [nulled("consumers", {"username": "c"})],
        "plugins": [nulled("plugins", {"name": "key-auth", "config": {"hide_credentials": None}})],
        "vaults": [nulled("vaults", {"prefix": "my-env", "name": "env"})],
        "partials": [nulled("partials", {"name": "p", **CACHE})],
    },
    "whole numbers": {
        "services": [{"name": "s", "host": "h.test", "retries": 5.0, "port": 8e3}],
        "plugins": [{"name": "ai-proxy-advanced", "config": {"targets": [TARGET]}}],
        "vaults": [{"prefix": "my-hcv", "name": "hcv", "config": {"port": 8200.0}}],
    },
    "a digest for a password": {
        "_info": {"skip_hash_for_basic_auth": True},
        "consumers": [{"username": "c", "basicauth_credentials": [{"username": "u", "password": "5ebe2294"}]}],
    },
}

REFUSED: dict[str, dict[str, Any]] = {
    "config.prefx: unknown field": {"vaults": [{"prefix": "my-env", "name": "env", "config": {"prefx": "A_"}}]},
    "config.port: expected an integer": {"vaults": [{"prefix": "my-hcv", "name": "hcv", "config": {"port": "x"}}]},
    "config.ost: unknown field": {"partials": [{"name": "p", "type": "redis-ce", "config": {"ost": "h"}}]},
    "config.ssl: expected a boolean": {"partials": [{"name": "p", "type": "redis-ee", "config": {"ssl": "x"}}]},
    "consumer: value must be null": {"consumers": [{"username": "c", "plugins": [{"name": "key-auth"}]}]},
    "protocols[0]: expected one of: ": {"plugins": [{"name": "key-auth", "protocols": ["tcp"]}]},
    "name: length must be at most 512": {"services": [{"name": "s" * 513, "host": "h.test"}]},
    "tags[0]: length must be at most 512": {"services": [{"name": "s", "host": "h.test", "tags": ["t" * 513]}]},
    "config: must not be nested deeper": {"plugins": [{"name": "key-auth", "config": {"realm": [[[]]]}}]},
    "key: required field missing": {"consumers": [{"username": "c", "keyauth_credentials": [{"tags": ["t"]}]}]},
    "password: length must be at least 1": {
        "consumers": [{"username": "c", "basicauth_credentials": [{"username": "u", "password": ""}]}]
    },
    "password: holds the mask of a secret": {
        "consumers": [{"username": "c", "basicauth_credentials": [{"username": "u", "password": "[masked]"}]}]
    },
    "retries: expected an integer": {"services": [{"name": "s", "host": "h.test", "retries": 5.5}]},
    "give it a name or an id": {"services": [{"host": "h.test"}]},
    "id: expected a valid UUID": {"services": [{"id": "x", "name": "s", "host": "h.test"}]},
}
realm: Any = REFUSED["config: must not be nested deeper"]["plugins"][0]["config"]
for _ in range(80):
    realm["realm"] = [realm["realm"]]


def validated(document: dict[str, Any]) -> list[str]:
    """What the CLI says, without the place in the file and the name of the entity."""
    return [fault.split(": ", 2)[2] for fault in check(parse_text(yaml.safe_dump(document), "kong.yaml", {}))]


@pytest.mark.parametrize("case", ACCEPTED)
async def test_what_a_control_plane_takes_is_valid(client: Client, case: str) -> None:
    document = {"_format_version": "3.0", **ACCEPTED[case]}
    await client.apply(document)
    assert validated(document) == []


@pytest.mark.parametrize("said", REFUSED)
async def test_what_a_control_plane_refuses_is_invalid_in_the_same_words(client: Client, said: str) -> None:
    document = {"_format_version": "3.0", **REFUSED[said]}
    refused = await client.apply(document, 400)
    told = [fault["message"] for fault in refused["errors"]]
    assert any(fault.startswith(said) for fault in told)
    assert validated(document) == told
