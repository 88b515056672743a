"""Consumer groups and memberships on Konnect's face."""

from __future__ import annotations

from tests.control_plane.client import Client


async def test_a_group_that_is_asked_for_comes_with_its_members(client: Client) -> None:
    group = await client.call("POST", "consumer_groups", {"name": "gold"}, 201)
    consumer = await client.call("POST", "consumers", {"username": "alice"}, 201)
    path = f"consumer_groups/{group['id']}/consumers"
    for _ in range(2):
        added = await client.call("POST", path, {"consumer": consumer["id"]}, 201)
        assert added == {"consumer_group": group, "consumers": [consumer]}
    assert await client.get("consumer_groups/gold") == {"consumer_group": group, "consumers": [consumer]}
    assert await client.get("consumer_groups/gold", {"list_consumers": "false"}) == {"consumer_group": group}
    assert (await client.get(path))["data"] == [consumer]
    assert (await client.get("consumers/alice/consumer_groups"))["data"] == [group]
    assert (await client.get("consumer_groups"))["data"] == [group]
    assert await client.call("PUT", f"consumer_groups/{group['id']}", {"name": "gold"}) != {}
    for _ in range(2):
        await client.call("DELETE", f"{path}/{consumer['id']}", expect=204)
    assert (await client.get("consumer_groups/gold"))["consumers"] == []


async def test_a_membership_goes_with_either_of_its_ends(client: Client) -> None:
    for path in ("consumer_groups", "consumers"):
        await client.call("PUT", "consumer_groups/gold", {})
        await client.call("PUT", "consumers/alice", {})
        await client.call("POST", "consumers/alice/consumer_groups", {"group": "gold"}, 201)
        await client.call("DELETE", f"{path}/{'gold' if path == 'consumer_groups' else 'alice'}", expect=204)
        await client.call("PUT", "consumer_groups/gold", {})
        await client.call("PUT", "consumers/alice", {})
        assert (await client.get("consumer_groups/gold"))["consumers"] == []
        assert (await client.get("consumers/alice/consumer_groups"))["data"] == []


async def test_all_members_leave_at_once(client: Client) -> None:
    await client.call("PUT", "consumer_groups/gold", {})
    for name in ("a", "b"):
        await client.call("PUT", f"consumers/{name}", {})
        await client.call("POST", "consumer_groups/gold/consumers", {"consumer": name}, 201)
    await client.call("DELETE", "consumer_groups/gold/consumers", expect=204)
    assert (await client.get("consumer_groups/gold"))["consumers"] == []


async def test_a_membership_is_no_collection_of_its_own(client: Client) -> None:
    await client.get("consumer_group_consumers", expect=404)
    missing = await client.call("POST", "consumer_groups/none/consumers", {"consumer": "x"}, 404)
    assert missing["message"] == "Not found"
