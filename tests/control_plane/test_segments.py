"""A name with a slash in it is one segment of a path: it leads to what has that name, and to nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from control_plane.app import create_app
from tests.control_plane.client import Client
from tests.control_plane.deck.served import served

NAMES = ["team/alice", "50%", "%2F", "a%2Fb", "a/b c", "/", "ä/ö", "a;b?c#d", "..", "..//.", "a+b"]


@pytest.fixture(params=["konnect", "admin"])
def base(request: pytest.FixtureRequest, client: Client) -> str:
    """The address of one face."""
    return {"konnect": f"/v2/control-planes/{client.id}/core-entities", "admin": f"/admin/{client.id}"}[request.param]


def segment(name: str) -> str:
    """Dots too: clients resolve `..` before they send it."""
    return quote(name, safe="").replace(".", "%2E")


async def members(client: Client, group: str) -> list[str]:
    return [one["username"] for one in (await client.get(f"consumer_groups/{group}/consumers"))["data"]]


async def test_a_request_reaches_what_it_names_and_not_what_is_below_another(client: Client, base: str) -> None:
    for name in ("alice", "alice/consumer_groups", "alice/plugins"):
        await client.call("POST", "consumers", {"username": name}, 201)
    await client.call("POST", "consumer_groups", {"name": "g"}, 201)
    await client.call("POST", "consumer_groups/g/consumers", {"consumer": "alice"}, 201)
    for name in ("alice/consumer_groups", "alice/plugins"):
        await client.call("DELETE", f"{base}/consumers/{segment(name)}", expect=204)
    assert await members(client, "g") == ["alice"]
    assert [one["username"] for one in (await client.get("consumers"))["data"]] == ["alice"]


@pytest.mark.parametrize("name", NAMES)
async def test_an_entity_is_read_changed_and_deleted_by_its_name(client: Client, base: str, name: str) -> None:
    path = f"{base}/consumers/{segment(name)}"
    async with served(client) as port, httpx.AsyncClient(headers=client.http.headers) as http:
        address = httpx.URL(f"http://127.0.0.1:{port}").copy_with(raw_path=path.encode())
        assert (await http.put(address, json={})).json()["username"] == name
        found = (await http.get(address)).json()
        changed = (await http.patch(address, json={"custom_id": "c"})).json()
        assert (found["username"], changed["id"], changed["custom_id"]) == (name, found["id"], "c")
        assert (await http.delete(address)).status_code == 204
    assert (await client.get("consumers"))["data"] == []


async def test_parents_members_and_credentials_are_named_in_the_same_way(client: Client, base: str) -> None:
    for username in ("team/alice", "team"):
        await client.call("POST", "consumers", {"username": username}, 201)
    await client.call("POST", "consumer_groups", {"name": "g"}, 201)
    await client.call("POST", f"{base}/consumers/team%2Falice/key-auth", {"key": "ab/cd=="}, 201)
    found = await client.call("GET", f"{base}/consumers/team%2Falice/key-auth/ab%2Fcd%3D%3D")
    assert found["key"] == "ab/cd=="
    await client.call("POST", f"{base}/consumer_groups/g/consumers", {"consumer": "team/alice"}, 201)
    shown = await client.call("GET", f"{base}/consumers/team%2Falice/consumer_groups/g")
    assert shown["name"] == "g"
    await client.call("DELETE", f"{base}/consumer_groups/g/consumers/team%2Falice", expect=204)
    assert await members(client, "g") == []


async def test_a_control_plane_is_reached_by_a_name_with_a_slash(client: Client) -> None:
    other = await client.another("a/b c")
    await client.call("POST", "/admin/a%2Fb%20c/services/", {"name": "s", "host": "h.test"}, 201)
    assert [one["name"] for one in (await other.get("services"))["data"]] == ["s"]
    assert (await client.call("GET", "/admin/a%2Fb%20c"))["node_id"] == other.id
    await client.call("GET", "/admin/a/b%20c/services", expect=404)


async def test_a_tag_with_a_slash_is_one_tag(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "h.test", "tags": ["x", "50%"]}, 201)
    for tag in ("x", "50%25"):
        assert len((await client.call("GET", f"/admin/first/tags/{tag}"))["data"]) == 1
    assert (await client.call("GET", "/admin/first/tags/x%2Fy"))["data"] == []


async def test_the_next_page_is_found_under_the_link_to_it(client: Client, base: str) -> None:
    await client.call("POST", "consumers", {"username": "ä/b 50%"}, 201)
    below = f"{base}/consumers/{segment('ä/b 50%')}"
    for key in ("one", "two"):
        await client.call("POST", f"{below}/key-auth", {"key": key}, 201)
    first = await client.call("GET", f"{below}/key-auth?size=1")
    second = await client.call("GET", first["next"])
    assert {one["key"] for one in first["data"] + second["data"]} == {"one", "two"}
    assert second["next"] is None


@pytest.mark.parametrize(("path", "status"), [("a%FFb", 400), ("%C0%AF", 400), ("%00", 404), ("a%00b", 404)])
async def test_what_no_name_can_be_is_refused_in_the_faces_own_shape(
    client: Client, base: str, path: str, status: int
) -> None:
    response = await client.http.get(f"{base}/consumers/{path}")
    assert response.status_code == status
    kind = "application/json" if base.startswith("/admin") else "application/problem+json"
    assert response.headers["content-type"] == kind
    assert response.json()["message"]


async def test_an_encoded_letter_is_that_letter(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "h.test"}, 201)
    for face in (f"/v2/control-planes/{client.id}/core%2Dentities", "/%61dmin/%66irst"):
        assert (await client.call("GET", f"{face}/%73ervices/%73"))["name"] == "s"
    await client.call("GET", f"/v2%2Fcontrol-planes/{client.id}", expect=404)


def parameters(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every operation that has parameters in its path."""
    for path, operations in document["paths"].items():
        if "{" in path:
            yield from ((method.upper(), path) for method in operations)


async def test_no_parameter_of_any_operation_reaches_beyond_its_segment(client: Client) -> None:
    """`{name}%2Fsecond` leads to the operation that it is written for, or to none; so say the routes themselves."""
    app = create_app(client.plane)
    for method, path in parameters(app.openapi()):
        for filled in (re.sub(r"{\w+}", "x", path), re.sub(r"{\w+}", "x%2Fy", path)):
            response = await client.http.request(method, filled)
            assert response.status_code < 500
            assert "there is nothing at" not in response.text, f"{method} {filled}: {response.text}"
            assert response.status_code != 405, f"{method} {filled}"
