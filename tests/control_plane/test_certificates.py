"""Certificates on Konnect's face take the names that they are for, and do not show them."""

from __future__ import annotations

from typing import Any

from tests.control_plane.client import Client
from tests.pems import certificate_pem, private_pem

PAIR = {"cert": certificate_pem("site"), "key": private_pem("site")}


async def names(client: Client) -> set[str]:
    return {sni["name"] for sni in (await client.get("snis"))["data"]}


async def test_a_certificate_takes_the_names_of_its_snis_and_shows_them_as_entities(client: Client) -> None:
    made = await client.call("POST", "certificates", {**PAIR, "snis": ["k.test", "l.test"]}, 201)
    path = f"certificates/{made['id']}"
    assert {sni["certificate"]["id"] for sni in (await client.get(f"{path}/snis"))["data"]} == {made["id"]}
    assert "snis" not in made
    await client.call("PUT", path, PAIR)
    assert await names(client) == {"k.test", "l.test"}
    await client.call("PUT", path, {**PAIR, "snis": ["k.test", "m.test"]})
    assert await names(client) == {"k.test", "m.test"}
    await client.call("PATCH", path, {"snis": ["n.test"]})
    assert await names(client) == {"n.test"}
    await client.call("PATCH", path, {"snis": None})
    assert await names(client) == set()


async def test_names_that_cannot_be_are_refused_and_nothing_is_written(client: Client) -> None:
    for snis, message in ((["a.test", "a.test"], "a.test is duplicated"), (["10.0.0.1"], "must not be an IP")):
        refused = await client.call("POST", "certificates", {**PAIR, "snis": snis}, 400)
        assert (refused["code"], refused["fields"]) == (2, {"snis": message})
    assert (await client.get("certificates"))["data"] == []
    assert await names(client) == set()


async def test_the_document_says_that_the_names_are_written_only(client: Client) -> None:
    document: dict[str, Any] = (await client.http.get("/openapi.json")).json()
    operations = document["paths"]["/v2/control-planes/{control_plane_id}/core-entities/certificates"]
    body = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["snis"]["writeOnly"]
    assert "snis" not in document["components"]["schemas"]["Certificate"]["properties"]
