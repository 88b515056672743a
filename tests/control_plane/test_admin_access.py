"""Scopes, limits and the audit log hold on Kong's Admin API as on every other face."""

from __future__ import annotations

from tests.control_plane.callers import caller
from tests.control_plane.client import Client


async def test_a_token_may_on_the_admin_api_what_it_may_elsewhere(client: Client) -> None:
    other = await client.another("other")
    base = f"/admin/{client.id}"
    await client.call("POST", f"{base}/consumers", {"username": "bob"}, 201)
    await client.call("POST", f"{base}/consumers/bob/key-auth", {"key": "sk-secret"}, 201)
    async with (
        caller(client, "read", name="reader") as reader,
        caller(client, "read", "write", control_plane_id=client.id, name="limited") as limited,
    ):
        assert "sk-secret" not in str(await reader.get(f"{base}/key-auths"))
        await reader.call("POST", f"{base}/services", {"name": "s", "host": "a.test"}, 403)
        await limited.call("POST", f"{base}/services", {"name": "s", "host": "a.test"}, 201)
        await limited.call("PATCH", f"{base}/services/s", {"host": "b.test"})
        await limited.call("DELETE", f"{base}/services/s", expect=204)
        for where in (other.id, "other"):
            await limited.call("GET", f"/admin/{where}/services", expect=403)
            await limited.call("POST", f"/admin/{where}/services", {"host": "a.test"}, 403)
    told = (await client.get("/v2/audit-logs", {"principal": "limited", "entity_type": "services"}))["data"]
    assert [line["action"] for line in told] == ["delete", "update", "create"]


async def test_a_token_in_kongs_own_header_is_no_way_around(client: Client) -> None:
    client.http.headers.pop("authorization")
    path = f"/admin/{client.id}/services"
    assert (await client.http.get(path, headers={"Kong-Admin-Token": "kpat_wrong"})).status_code == 401
    assert (await client.http.get(path)).status_code == 401
