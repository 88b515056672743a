"""Control planes as resources, and the look-ups of Konnect's clients."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import pytest

from tests.control_plane.client import Client
from tests.pems import certificate_pem


async def listed(client: Client, query: dict[str, str]) -> list[str]:
    answer = await client.get("/v2/control-planes", query)
    return [entry["name"] for entry in answer["data"]]


async def test_a_control_plane_is_created_read_changed_and_deleted(client: Client) -> None:
    body = {
        "name": "prod",
        "description": "the real one",
        "labels": {"env": "prod", "KONGCTL-namespace": "team-a"},
        "proxy_urls": [{"host": "api.test", "port": 443, "protocol": "https"}],
    }
    created = await client.call("POST", "/v2/control-planes", body, 201)
    path = f"/v2/control-planes/{created['id']}"
    assert set(created) == {"id", "name", "description", "labels", "config", "created_at", "updated_at"}
    assert created["config"]["cluster_type"] == "CLUSTER_TYPE_CONTROL_PLANE"
    assert created["config"]["auth_type"] == "pinned_client_certs"
    assert created["config"]["proxy_urls"] == body["proxy_urls"]
    assert created["config"]["control_plane_endpoint"].startswith("https://127.0.0.1:")
    assert datetime.fromisoformat(created["created_at"])
    assert await client.get(path) == created
    changed = await client.call("PATCH", path, {"name": "prod-2", "labels": {"env": "x", "gone": None}})
    assert (changed["name"], changed["labels"], changed["description"]) == ("prod-2", {"env": "x"}, "the real one")
    await client.call("DELETE", path, expect=204)
    await client.get(path, expect=404)
    await client.call("DELETE", path, expect=404)


async def test_a_name_is_taken_once(client: Client) -> None:
    other = await client.another("second")
    refused = await client.call("POST", "/v2/control-planes", {"name": "first"}, 409)
    assert refused["detail"] == "Control Plane with provided name already exists."
    await client.call("PATCH", f"/v2/control-planes/{other.id}", {"name": "first"}, 409)
    await client.call("PATCH", f"/v2/control-planes/{other.id}", {"name": "second"})


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({}, "name", "required"),
        ({"name": "x"}, "name", "min_length"),
        ({"name": 5}, "name", "is_string"),
        ({"name": "ok", "nme": 1}, "nme", "unknown_property"),
        ({"name": "ok", "cluster_type": "CLUSTER"}, "cluster_type", "enum"),
        ({"name": "ok", "labels": {"kong-x": "1"}}, "labels", "invalid"),
        ({"name": "ok", "labels": {"x": ""}}, "labels", "invalid"),
        ({"name": "ok", "labels": {"x": 1}}, "labels.x", "is_string"),
        ({"name": "ok", "proxy_urls": [{"host": "h", "port": 0, "protocol": "p"}]}, "proxy_urls.0.port", "min"),
        ({"name": "ok", "proxy_urls": [{"host": "h", "port": 1, "protocol": "p"}] * 6}, "proxy_urls", "max_items"),
    ],
)
async def test_wrong_parameters_are_listed_with_their_rule(
    client: Client, body: dict[str, Any], field: str, rule: str
) -> None:
    refused = await client.call("POST", "/v2/control-planes", body, 400)
    assert [(item["field"], item["rule"]) for item in refused["invalid_parameters"]] == [(field, rule)]
    assert refused["invalid_parameters"][0]["reason"]


async def test_lists_are_paged_filtered_and_sorted(client: Client) -> None:
    for number in range(4):
        body = {"name": f"team-{number}", "labels": {"n": str(number), "even": str(number % 2 == 0)}}
        await client.call("POST", "/v2/control-planes", body, 201)
    page = await client.get("/v2/control-planes", {"page[size]": "2", "page[number]": "2"})
    assert page["meta"] == {"page": {"number": 2, "size": 2, "total": 5}}
    assert len(page["data"]) == 2
    assert await listed(client, {"filter[name][eq]": "team-1"}) == ["team-1"]
    assert len(await listed(client, {"filter[name][contains]": "team"})) == 4
    assert "first" not in await listed(client, {"filter[name][neq]": "first"})
    assert await listed(client, {"filter[id][oeq]": f"{client.id},{uuid.uuid4()}"}) == ["first"]
    assert await listed(client, {"filter[cloud_gateway]": "true"}) == []
    assert await listed(client, {"labels": "even:True,n"}) == ["team-0", "team-2"]
    assert (await listed(client, {"sort": "created_at desc"}))[0] == "team-3"
    assert (await listed(client, {"sort": " created_at  asc"}))[0] == "first"
    for size in ("0", "--5", "0000000000010000", "9" * 30, "²"):
        await client.get("/v2/control-planes", {"page[size]": size}, 400)
    for order in ("nonsense", "name desc", "created_at up", "created_at desc asc"):
        refused = await client.get("/v2/control-planes", {"sort": order}, 400)
        assert refused["invalid_parameters"][0]["field"] == "sort"
    await client.get("/v2/control-planes", {"filter[colour][eq]": "red"}, 400)


async def test_deck_finds_a_control_plane_by_its_name(client: Client) -> None:
    answer = await client.get("/konnect-api/api/runtime_groups")
    assert answer == {"data": [{"id": client.id, "name": "first"}], "page": 1, "pageCount": 1}
    await client.another("second")
    page = await client.get("/konnect-api/api/runtime_groups", {"page": "2", "size": "1"})
    assert (page["data"][0]["name"], page["page"], page["pageCount"]) == ("second", 2, 2)


@pytest.mark.parametrize("page", ["99999999999999999999999", "9" * 5000, "0", "--1"])
async def test_a_page_that_no_list_has_is_refused(client: Client, page: str) -> None:
    refused = await client.get("/konnect-api/api/runtime_groups", {"page": page}, 400)
    assert refused["invalid_parameters"][0]["field"] == "page"


async def test_who_am_i(client: Client) -> None:
    for path in ("/v2/organizations/me", "/v3/organizations/me"):
        organization = await client.get(path)
        assert organization["name"]
        assert uuid.UUID(organization["id"])
    assert (await client.get("/v3/users/me"))["active"] is True


async def test_the_organisation_is_also_found_behind_an_address_in_the_path(client: Client) -> None:
    """decK's ping asks so when the control plane's address is none of Konnect's."""
    plain = await client.get("/v2/organizations/me")
    response = await client.http.get("http://plane//127.0.0.1:8001/v2/organizations/me")
    assert response.status_code == 200
    assert response.json() == plain


async def test_a_certificate_loses_its_title_when_that_is_written_as_null(client: Client) -> None:
    base = f"/v2/control-planes/{client.id}/dp-client-certificates"
    pem = certificate_pem("node")
    made = (await client.call("POST", base, {"cert": pem, "title": "old"}, 201))["item"]
    kept = await client.call("PUT", f"{base}/{made['id']}", {"cert": pem})
    cleared = await client.call("PUT", f"{base}/{made['id']}", {"cert": pem, "title": None})
    assert (kept["item"]["title"], cleared["item"]["title"]) == ("old", None)
