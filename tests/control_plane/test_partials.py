"""Partials stand only where the plugin's schema says, whichever way the link comes in; and how they are shown inlined.

What the schema says is read from the schema that is served, so that the two cannot part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from control_plane.partials import faults_at
from gateway_schema.base import MASK
from tests.control_plane.callers import caller
from tests.control_plane.client import Client

TARGET = {"route_type": "llm/v1/chat", "model": {"provider": "openai", "name": "m"}}
VECTORS = {"strategy": "pgvector", "dimensions": 3, "distance_metric": "cosine", "pgvector": {"password": "p"}}
PARTIALS: list[dict[str, Any]] = [
    {"name": "cache", "type": "redis-ce"},
    {"name": "vectors", "type": "vectordb", "config": VECTORS},
    {"name": "chat", "type": "model", "config": {**TARGET, "weight": 7}},
]
PROXY: dict[str, Any] = {"name": "ai-proxy-advanced", "config": {"targets": [TARGET]}}
PLACES = "config.embeddings, config.targets[], config.vectordb"

WRONG = [
    (
        {"name": "key-auth", "partials": [{"name": "cache", "path": "config.whatever"}]},
        "partials",
        "plugin 'key-auth' takes no partials: leave the field out",
    ),
    (
        {**PROXY, "partials": [{"name": "vectors"}, {"name": "vectors", "path": "config.nope"}]},
        "partials[1].path",
        "expected one of: config.vectordb",
    ),
    (
        {**PROXY, "partials": [{"name": "cache"}]},
        "partials[0]",
        "expected a partial of one of these types: embeddings, model, vectordb; this one is of type redis-ce",
    ),
]


async def _collection(client: Client, plugin: dict[str, Any]) -> Any:
    return await client.call("POST", "plugins", plugin, 400)


async def _admin_face(client: Client, plugin: dict[str, Any]) -> Any:
    return await client.call("POST", "/admin/first/plugins", plugin, 400)


async def _put(client: Client, plugin: dict[str, Any]) -> Any:
    return await client.call("PUT", "plugins/3b6f0f0e-6f0e-4c7e-8a49-06cb1e0e4d2b", plugin, 400)


async def _patch(client: Client, plugin: dict[str, Any]) -> Any:
    made = await client.call("POST", "plugins", {**plugin, "partials": None}, 201)
    return await client.call("PATCH", f"plugins/{made['id']}", {"partials": plugin["partials"]}, 400)


@pytest.mark.parametrize("write", [_collection, _admin_face, _put, _patch])
@pytest.mark.parametrize(("plugin", "field", "message"), WRONG)
async def test_a_link_that_the_plugin_does_not_take_is_refused(
    client: Client, write: Callable[..., Awaitable[Any]], plugin: dict[str, Any], field: str, message: str
) -> None:
    for partial in PARTIALS:
        await client.call("POST", "partials", partial, 201)
    assert f"({field}: {message})" in (await write(client, plugin))["message"]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("plugin", "field", "message"), WRONG)
async def test_a_document_with_such_a_link_is_refused_at_its_place(
    client: Client, stored: bool, plugin: dict[str, Any], field: str, message: str
) -> None:
    partials = {"_format_version": "3.0", "partials": PARTIALS}
    if stored:
        await client.apply(partials)
    document = {"_format_version": "3.0", "plugins": [plugin]} | ({} if stored else partials)
    [fault] = (await client.apply(document, 400, mode="apply"))["errors"]
    assert (fault["path"][:3], fault["field"]) == (["plugins", 0, "partials"], field)
    assert fault["message"] == f"{field}: {message}"


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (WRONG[0][0], f"({WRONG[0][1]}: {WRONG[0][2]})"),
        ({**PROXY, "partials": [{"name": "any", "path": "config.nope"}]}, f"path: expected one of: {PLACES})"),
    ],
)
@pytest.mark.parametrize("face", ["schemas", "/admin/first/schemas"])
async def test_validation_checks_places_without_looking_for_the_partial(
    client: Client, face: str, plugin: dict[str, Any], said: str
) -> None:
    assert said in (await client.call("POST", f"{face}/plugins/validate", plugin, 400))["message"]
    for places in (await client.get("schemas/plugins/ai-proxy-advanced"))["supported_partials"].values():
        for place in places:
            await client.call("POST", f"{face}/plugins/validate", {**PROXY, "partials": [{"name": "x", "path": place}]})


def test_where_a_type_has_several_places_the_link_must_say_which() -> None:
    places = {"redis-ee": ("config.redis", "config.cache.redis")}
    [missing] = faults_at(places, "some-plugin", [{"id": "1"}], {"1": "redis-ee"}.get)
    assert str(missing) == "partials[0].path: required field missing, expected one of: config.redis, config.cache.redis"
    assert not faults_at(places, "some-plugin", [{"id": "1", "path": "config.cache.redis"}], {"1": "redis-ee"}.get)


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (
            {"name": "vectors", "type": "redis-ce"},
            "partials[0]: expected a partial of one of these types: embeddings, model, vectordb; this one is of type "
            "redis-ce",
        ),
        (
            {"name": "vectors", "type": "embeddings", "config": {"model": {"provider": "openai", "name": "small"}}},
            "partials[0].path: expected one of: config.embeddings",
        ),
    ],
)
async def test_a_partial_in_use_keeps_a_type_that_its_plugins_take(
    client: Client, other: dict[str, Any], fault: str
) -> None:
    vectors = await client.call("POST", "partials", PARTIALS[1], 201)
    linked = {**PROXY, "partials": [{"name": "vectors", "path": "config.vectordb"}]}
    made = await client.call("POST", "plugins", linked, 201)
    said = f"type: plugin 'ai-proxy-advanced' (id {made['id']}) lists this partial: {fault}"
    assert f"({said})" in (await client.call("PUT", f"partials/{vectors['id']}", other, 400))["message"]
    document: dict[str, Any] = {"_format_version": "3.0", "partials": [other]}
    for plugins in ([], [linked]):
        [refused] = (await client.apply({**document, "plugins": plugins}, 400, mode="apply"))["errors"]
        assert (refused["path"], refused["message"]) == (["partials", 0, "type"], said)
    await client.apply({**document, "plugins": [PROXY]}, mode="apply")
    assert (await client.get("partials/vectors"))["type"] == other["type"]


async def _inlined(client: Client, path: str) -> dict[str, Any]:
    found = await client.get(path, {"expand_partials": "true"})
    shown: dict[str, Any] = found["data"][0] if "data" in found else found
    return shown


@pytest.mark.parametrize(
    "path", ["plugins", "plugins/{id}", "services/billing/plugins", "services/billing/plugins/{id}"]
)
@pytest.mark.parametrize("face", ["", "/admin/first/"])
async def test_partials_are_inlined_for_who_asks(client: Client, face: str, path: str) -> None:
    held = {partial["name"]: await client.call("POST", "partials", partial, 201) for partial in PARTIALS}
    await client.call("POST", "services", {"name": "billing", "host": "billing.test"}, 201)
    links = [{"name": "vectors", "path": "config.vectordb"}, {"name": "chat"}]
    made = await client.call("POST", "services/billing/plugins", {**PROXY, "partials": links}, 201)
    where = face + path.format(id=made["id"])
    config = {
        **made["config"],
        "vectordb": held["vectors"]["config"],
        "targets": [*made["config"]["targets"], held["chat"]["config"]],
    }
    assert await _inlined(client, where) == {**made, "config": config}
    kept = await client.get(where)
    assert (kept["data"][0] if "data" in kept else kept) == made


async def test_secrets_of_an_inlined_partial_are_masked_for_who_may_not_see_them(client: Client) -> None:
    await client.call("POST", "partials", PARTIALS[1], 201)
    await client.call("POST", "plugins", {**PROXY, "partials": [{"name": "vectors"}]}, 201)
    async with caller(client, "read") as reader:
        shown = await _inlined(reader, "plugins")
    assert shown["config"]["vectordb"]["pgvector"]["password"] == MASK


async def test_a_page_of_inlined_partials_leads_to_another(client: Client) -> None:
    await client.call("POST", "partials", PARTIALS[1], 201)
    for scope in ("a", "b"):
        await client.call("POST", "services", {"name": scope, "host": "h.test"}, 201)
        await client.call("POST", f"services/{scope}/plugins", {**PROXY, "partials": [{"name": "vectors"}]}, 201)
    first = await client.get("plugins", {"expand_partials": "true", "size": "1"})
    second = await client.call("GET", first["next"])
    for page in (first, second):
        assert page["data"][0]["config"]["vectordb"]["strategy"] == VECTORS["strategy"]
