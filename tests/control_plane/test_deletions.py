"""Deleting what others refer to: some of them go along, some stand in the way."""

from __future__ import annotations

import hashlib

from tests.control_plane.client import Client
from tests.control_plane.everything import AUTHORITY, CERTIFICATE, everything


async def test_what_is_used_cannot_be_deleted_and_the_answer_says_by_whom(client: Client) -> None:
    await client.apply(everything())
    service = (await client.get("services/billing"))["id"]
    for path, code, said in (
        ("services/billing", 4, "an existing 'routes' entity references this 'services' entity"),
        (f"certificates/{CERTIFICATE}", 4, "an existing 'services' entity references this 'certificates' entity"),
        ("partials/cache", 19, "is still referenced by plugins (id = "),
    ):
        refused = await client.call("DELETE", path, expect=400)
        assert refused["code"] == code
        assert said in refused["message"]
    await client.call("DELETE", "consumers/alice", expect=204)
    refused = await client.call("DELETE", f"ca_certificates/{AUTHORITY}", expect=400)
    assert refused["code"] == 19
    assert refused["message"] == f"ca certificate {AUTHORITY} is still referenced by services (id = {service})"


async def test_what_belongs_to_something_goes_with_it(client: Client) -> None:
    await client.apply(everything())
    for path in ("consumers/alice", "consumer_groups/gold", "upstreams/billing.upstream", "key-sets/signing"):
        await client.call("DELETE", path, expect=204)
    for path in ("basic-auths", "hmac-auths", "jwts", "acls", "mtls-auths", "key-auths", "targets", "keys"):
        assert (await client.get(path))["data"] == []
    assert {plugin["name"] for plugin in (await client.get("plugins"))["data"]} == {"key-auth"}


async def test_lists_name_only_what_is_there(client: Client) -> None:
    body = {"host": "h.test", "protocol": "https", "ca_certificates": [AUTHORITY]}
    refused = await client.call("POST", "services", body, 400)
    assert (refused["code"], refused["fields"]) == (4, {"ca_certificates": {"id": AUTHORITY}})
    document = everything()
    [cache], [_, plugin] = document["partials"], document["plugins"]
    plugin = {"name": plugin["name"], "config": plugin["config"], "partials": [{"name": "nobody"}]}
    assert (await client.call("POST", "plugins", plugin, 400))["code"] == 13
    partial = await client.call("POST", "partials", cache, 201)
    plugin["partials"] = [{"name": "cache"}]
    created = await client.call("POST", "plugins", plugin, 201)
    assert [link["id"] for link in created["partials"]] == [partial["id"]]


async def test_a_password_is_hashed_unless_it_is_a_digest(client: Client) -> None:
    consumer = await client.call("POST", "consumers", {"username": "bob"}, 201)
    digest = hashlib.sha1(f"secret{consumer['id']}".encode(), usedforsecurity=False).hexdigest()
    body = {"username": "bob", "password": "secret"}
    created = await client.call("POST", "consumers/bob/basic-auth", body, 201)
    assert created["password"] == digest
    kept = await client.call("PUT", f"basic-auths/{created['id']}?skip_hash=true", {**created, "password": "a digest"})
    assert kept["password"] == "a digest"
