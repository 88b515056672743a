"""NUL, which PostgreSQL keeps in no text: whatever comes with one is refused or found nowhere, on both databases."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from control_plane.models import metadata
from tests.control_plane.client import Client
from tests.control_plane.everything import everything
from tests.pems import certificate_pem

CORE = "/v2/control-planes/{control_plane_id}/core-entities/"
NUL = "a\0b"
Path = tuple[str | int, ...]


async def described(client: Client) -> dict[str, Any]:
    document: dict[str, Any] = (await client.http.get("/openapi.json")).json()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in document["paths"].items():
        yield from ((method.upper(), path, operation) for method, operation in found.items())


async def assert_nothing_holds_one(client: Client) -> None:
    async with client.plane.database.reading() as session:
        for table in metadata.sorted_tables:
            for row in (await session.execute(select(table))).mappings():
                texts = orjson.dumps({str(key): value for key, value in row.items() if not isinstance(value, bytes)})
                assert b"\\u0000" not in texts, f"{table.name}: {texts!r}"


async def test_no_parameter_of_a_path_with_one_is_a_fault_of_ours(client: Client) -> None:
    document = await described(client)
    found = [(method, path) for method, path, _ in operations(document) if "{" in path]
    assert found
    for method, path in found:
        for name in re.findall(r"{(\w+)}", path):
            filled = re.sub(r"{(\w+)}", lambda match, name=name: "%00" if match[1] == name else client.id, path)
            response = await client.http.request(method, filled)
            assert response.status_code == 404, f"{method} {filled}: {response.text}"
            assert response.headers["content-type"] == "application/problem+json"
            assert "%00" in response.json()["message"]


async def test_no_path_of_the_other_face_with_one_is_a_fault_of_ours(client: Client) -> None:
    paths = (await client.call("GET", "/admin/first/endpoints"))["data"]
    for path in [path for path in paths if "{" in path] + ["/admin/%00/services"]:
        filled = path if path.startswith("/admin") else "/admin/first" + re.sub(r"{\w+}", "%00", path)
        response = await client.http.get(filled)
        assert (response.status_code, response.headers["content-type"]) == (404, "application/json"), filled


# -- bodies


def properties(schema: Any, components: dict[str, Any], depth: int = 0) -> Iterator[Path]:
    """Where a body may have a string, two levels down."""
    if not isinstance(schema, dict) or depth > 2:
        return
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "string" or "string" in (schema.get("type") or ()):
        yield ()
    for branch in ("anyOf", "oneOf", "allOf"):
        for member in schema.get(branch, ()):
            yield from properties(member, components, depth)
    for rest in properties(schema.get("items"), components, depth + 1):
        yield (0, *rest)
    for rest in properties(schema.get("additionalProperties"), components, depth + 1):
        yield (NUL, *rest)
    for name, below in schema.get("properties", {}).items():
        yield from ((name, *rest) for rest in properties(below, components, depth + 1))


def body_with_one(path: Path) -> Any:
    if not path:
        return NUL
    below = body_with_one(path[1:])
    return [below] if path[0] == 0 else {path[0]: below}


async def test_no_string_that_an_operation_describes_is_a_fault_of_ours(client: Client) -> None:
    document = await described(client)
    sent = 0
    for method, path, operation in operations(document):
        if method not in ("POST", "PUT", "PATCH"):
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        filled = re.sub(r"{\w+}", client.id, path)
        for place in sorted(set(properties(schema, document["components"]["schemas"])), key=str):
            response = await client.http.request(method, filled, json=body_with_one(place))
            assert response.status_code < 500, f"{method} {path} {place}: {response.text}"
            sent += 1
    assert sent > 300
    await assert_nothing_holds_one(client)


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where an entity has a string, or a record that could name another entity."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        if set(value) == {"id"}:
            yield path
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from leaves(below, (*path, index))


def spoiled(entity: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """The entity with a NUL at one place; a reference by each of the fields that may name what it means."""
    for name in ("name", "username", "custom_id", "id"):
        body = copy.deepcopy(entity)
        at: Any = body
        for part in path[:-1]:
            at = at[part]
        is_text = isinstance(at[path[-1]], str)
        at[path[-1]] = f"{at[path[-1]]}\0" if is_text else {name: NUL}
        yield body
        if is_text:
            return


async def test_an_entity_with_one_anywhere_is_refused(client: Client) -> None:
    await client.apply(everything())
    document = await described(client)
    base = CORE.format(control_plane_id=client.id)
    kinds = [path.removeprefix(CORE) for path in document["paths"] if re.fullmatch(CORE + "[a-z_-]+", path)]
    taken = set()
    for kind in kinds:
        for entity in [] if kind == "workspaces" else (await client.get(kind))["data"][:2]:
            stripped = {key: value for key, value in entity.items() if value is not None and key != "id"}
            for path, body in ((place, body) for place in leaves(stripped) for body in spoiled(stripped, place)):
                response = await client.http.put(f"{base}{kind}/{entity['id']}", json=body)
                assert response.status_code in (200, 400), f"{kind} {path}: {response.text}"
                taken |= {(kind, path)} if response.status_code == 200 else set()
    assert taken == {("ca_certificates", ("cert_digest",))}  # which is reckoned, whatever is sent
    await assert_nothing_holds_one(client)


async def test_a_member_of_a_group_and_an_sni_are_found_by_no_such_name(client: Client) -> None:
    for path, body in (("consumers", {"username": "alice"}), ("consumer_groups", {"name": "g"})):
        await client.call("POST", path, body, 201)
    for base in (f"/v2/control-planes/{client.id}/core-entities", "/admin/first"):
        await client.call("POST", f"{base}/consumer_groups/g/consumers", {"consumer": NUL}, 404)
        await client.call("POST", f"{base}/consumers/alice/consumer_groups", {"group": [NUL]}, 404)
    site = everything()["certificates"][0]
    refused = await client.call("POST", "certificates", {**site, "snis": [NUL]}, 400)
    assert list(refused["fields"]) == ["snis"]


OWN: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "/v2/control-planes", {"name": NUL}, "name"),
    ("POST", "/v2/control-planes", {"name": "ok", "description": NUL}, "description"),
    ("POST", "/v2/control-planes", {"name": "ok", "labels": {NUL: "x"}}, "labels"),
    ("POST", "/v2/control-planes", {"name": "ok", "labels": {"x": NUL}}, "labels"),
    (
        "POST",
        "/v2/control-planes",
        {"name": "ok", "proxy_urls": [{"host": NUL, "port": 1, "protocol": "http"}]},
        "proxy_urls.0.host",
    ),
    (
        "POST",
        "/v2/control-planes",
        {"name": "ok", "proxy_urls": [{"host": "h", "port": 1, "protocol": NUL}]},
        "proxy_urls.0.protocol",
    ),
    ("PATCH", "{base}", {"name": NUL}, "name"),
    ("PATCH", "{base}", {"description": NUL}, "description"),
    ("PATCH", "{base}", {"labels": {NUL: "x"}}, "labels"),
    ("POST", "{base}/dp-client-certificates", {"cert": certificate_pem("node"), "title": NUL}, "title"),
    ("POST", "{base}/config-stores", {"name": NUL}, "name"),
    ("POST", "/v2/tokens", {"name": NUL}, "name"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), OWN, ids=range(len(OWN)))
async def test_texts_of_the_control_planes_own_resources_have_none(
    client: Client, method: str, path: str, body: dict[str, Any], field: str
) -> None:
    path = path.format(base=f"/v2/control-planes/{client.id}")
    refused = await client.call(method, path, body, 400)
    assert [item["field"] for item in refused["invalid_parameters"]] == [field]
    await assert_nothing_holds_one(client)


async def test_tags_under_which_something_is_applied_have_none(client: Client) -> None:
    base = f"/v2/control-planes/{client.id}"
    document = {"_format_version": "3.0", "services": [{"name": "s", "host": "h.test", "tags": [NUL]}]}
    for path in ("apply", "plans"):
        for given in (document, {"_format_version": "3.0"}):
            response = await client.http.post(f"{base}/{path}", json={"document": given, "select_tags": [NUL]})
            assert response.status_code < 500, response.text
    await assert_nothing_holds_one(client)
