"""Who uses a partial; the one workspace; regions."""

from __future__ import annotations

from tests.control_plane.client import Client
from tests.control_plane.everything import everything


async def test_a_partial_says_which_plugins_it_fills(client: Client) -> None:
    await client.apply(everything())
    (plugin,) = [item for item in (await client.get("plugins"))["data"] if item["partials"]]
    shown = {"id": plugin["id"], "name": plugin["name"], "instance_name": None}
    assert await client.get("partials/cache/links") == {"count": 1, "data": [shown], "next": None}
    await client.call("DELETE", f"plugins/{plugin['id']}", expect=204)
    assert await client.get("partials/cache/links") == {"count": 0, "data": [], "next": None}
    await client.get("partials/none/links", expect=404)


async def test_there_is_one_workspace_and_whoever_wants_another_hears_what_to_do(client: Client) -> None:
    listed = await client.get("workspaces")
    assert [item["name"] for item in listed["data"]] == ["default"]
    assert await client.get("workspaces/default") == listed["data"][0]
    await client.get("workspaces/team-a", expect=404)
    refused = await client.call("POST", "workspaces", {"name": "team-a"}, 400)
    assert "--konnect-control-plane-name" in refused["message"]


async def test_there_is_one_region(client: Client) -> None:
    region = (await client.get("/v3/users/me"))["inferred_region"]
    assert (await client.get("/v3/available-regions"))["regions"]["stable"] == [region]
