"""Groups of control planes: members, and whether their entities get in one another's way."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import delete, text

from control_plane.database import Database
from control_plane.models import GROUP, ControlPlane
from tests.control_plane.callers import caller
from tests.control_plane.client import Client


async def group_of(client: Client, *members: str) -> str:
    body = {"name": "group", "cluster_type": GROUP}
    created = await client.call("POST", "/v2/control-planes", body, 201)
    path = f"/v2/control-planes/{created['id']}"
    await client.call("PUT", f"{path}/group-memberships", ids(*members), 204)
    return path


def ids(*members: str) -> dict[str, Any]:
    return {"members": [{"id": member} for member in members]}


async def names(client: Client, path: str) -> list[str]:
    return sorted(item["name"] for item in (await client.get(f"{path}/group-memberships"))["data"])


async def test_members_are_added_replaced_and_removed(client: Client) -> None:
    second, third = await client.another("second"), await client.another("third")
    path = await group_of(client)
    members = f"{path}/group-memberships"
    for _ in range(2):
        await client.call("POST", f"{members}/add", ids(client.id, second.id), 204)
        assert await names(client, path) == ["first", "second"]
    await client.call("PUT", members, ids(second.id, third.id), 204)
    assert await names(client, path) == ["second", "third"]
    await client.call("POST", f"{members}/remove", ids(third.id, client.id), 204)
    assert await names(client, path) == ["second"]
    assert await client.get(f"/v2/control-planes/{second.id}/group-member-status") == {"is_member": True}
    assert await client.get(f"/v2/control-planes/{third.id}/group-member-status") == {"is_member": False}
    await client.call("DELETE", f"/v2/control-planes/{second.id}", expect=204)
    assert await names(client, path) == []


async def test_members_come_in_pages_with_their_number_on_the_first(client: Client) -> None:
    others = [await client.another(f"member-{number}") for number in range(3)]
    path = await group_of(client, *(other.id for other in others))
    first = await client.get(f"{path}/group-memberships", {"page[size]": "2"})
    assert first["meta"]["page"]["total"] == 3
    assert first["meta"]["page"]["size"] == 2
    second = await client.call("GET", first["meta"]["page"]["next"].removeprefix("http://plane"))
    assert second["meta"]["page"] == {"size": 2, "next": None}
    found = [item["id"] for item in (*first["data"], *second["data"])]
    assert sorted(found) == sorted(other.id for other in others)


async def test_only_groups_have_members_and_no_group_is_one(client: Client) -> None:
    path = await group_of(client)
    inner = await client.call("POST", "/v2/control-planes", {"name": "inner", "cluster_type": GROUP}, 201)
    for member, rule in ((inner["id"], "invalid"), (str(uuid.uuid4()), "missing_reference"), ("x", "is_uuid")):
        refused = await client.call("PUT", f"{path}/group-memberships", ids(client.id, member), 400)
        assert [(item["field"], item["rule"]) for item in refused["invalid_parameters"]] == [("members.1.id", rule)]
    assert await names(client, path) == []
    single = f"/v2/control-planes/{client.id}"
    for method, where in (("GET", "group-memberships"), ("GET", "group-status"), ("PUT", "group-memberships")):
        await client.call(method, f"{single}/{where}", ids() if method == "PUT" else None, 400)


async def test_what_two_members_both_hold_is_a_conflict(client: Client) -> None:
    other = await client.another("other")
    path = await group_of(client, client.id, other.id)
    for one in (client, other):
        await one.call("POST", "services", {"name": f"only-{one.id}", "host": "a.test"}, 201)
    status = await client.get(f"{path}/group-status")
    assert (status["item"]["state"], status["item"]["conflicts"]) == ("OK", [])
    made = [await one.call("POST", "services", {"name": "shared", "host": "a.test"}, 201) for one in (client, other)]
    status = await client.get(f"{path}/group-status")
    assert status["item"]["state"] == "CONFLICT"
    found = {(item["cluster_id"], item["resource"]["id"]) for item in status["item"]["conflicts"]}
    assert found == {(client.id, made[0]["id"]), (other.id, made[1]["id"])}
    assert {item["resource"]["type"] for item in status["item"]["conflicts"]} == {"service"}


@pytest.mark.parametrize("verb", ["add", "remove"])
async def test_a_limited_token_takes_in_nobody_whom_it_may_not_touch(client: Client, verb: str) -> None:
    path = await group_of(client)
    async with caller(client, "read", "admin", control_plane_id=path.rpartition("/")[2]) as limited:
        refused = await limited.call("POST", f"{path}/group-memberships/{verb}", ids(client.id), 403)
        assert refused["limited_to"] in path
    async with caller(client, "read", "write") as writer:
        await writer.call("POST", f"{path}/group-memberships/{verb}", ids(client.id), 403)


async def test_a_limited_token_leaves_in_whom_it_may_not_touch_and_sees_ids_only(client: Client) -> None:
    path = await group_of(client, client.id)
    await client.call("PATCH", f"/v2/control-planes/{client.id}", {"description": "of another team"})
    async with caller(client, "read", "admin", control_plane_id=path.rpartition("/")[2]) as limited:
        refused = await limited.call("PUT", f"{path}/group-memberships", ids(), 403)
        assert refused["limited_to"] in path
        assert (await limited.get(f"{path}/group-memberships"))["data"] == [{"id": client.id}]
    assert await names(client, path) == ["first"]
    (line,) = (await client.get("/v2/audit-logs", {"outcome": "denied"}))["data"]
    assert line["details"]["path"] == f"{path}/group-memberships"


async def test_a_change_of_members_has_its_line(client: Client) -> None:
    path = await group_of(client, client.id)
    (line,) = (await client.get("/v2/audit-logs", {"entity_id": path.rpartition("/")[2], "action": "update"}))["data"]
    assert line["details"] == {"members": 1}


async def test_a_group_takes_no_entities_on_any_way_in(client: Client) -> None:
    path = await group_of(client, client.id)
    kept = await client.apply({"_format_version": "3.0", "services": [{"name": "s", "host": "a.test"}]})
    group = Client(client.plane, client.http, path.rpartition("/")[2])
    service = {"name": "s", "host": "a.test"}
    document = {"document": {"_format_version": "3.0", "services": [service]}}
    below = "consumer_groups/gold/consumers"
    for method, where, body in (
        ("POST", "services", service),
        ("PUT", "services/s", service),
        ("PATCH", "services/s", service),
        ("DELETE", "services/s", None),
        ("POST", below, {"consumer": "bob"}),
        ("DELETE", below, None),
        ("POST", "/admin/group/services", service),
        ("PUT", "/admin/group/services/s", service),
        ("PATCH", "/admin/group/services/s", service),
        ("DELETE", "/admin/group/services/s", None),
        ("POST", f"{path}/apply", {**document, "commit": True}),
        ("POST", f"{path}/apply", document),
        ("POST", f"{path}/apply", {"mode": "reset", "commit": True}),
        ("POST", f"{path}/plans", document),
        ("POST", f"{path}/plans/{uuid.uuid4()}/apply", {}),
        ("POST", f"{path}/snapshots/{kept['version']}/rollback", {"commit": True}),
    ):
        refused = await group.call(method, where, body, 400)
        assert "'group' is a group" in refused["message"], (method, where)
        assert "members instead of entities" in refused["message"]
    assert (await group.get("services"))["data"] == []
    assert (await client.get("/admin/group/services"))["data"] == []
    assert "services" not in await group.dump()
    assert (await group.get(path))["name"] == "group"
    assert await names(client, path) == ["first"]
    await client.call("PATCH", path, {"description": "still ours to describe"})


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("deleted", "status"), [("group", 404), ("second", 400)])
async def test_what_is_being_deleted_gets_no_member_and_is_none(client: Client, deleted: str, status: int) -> None:
    second = await client.another("second")
    path = await group_of(client)
    database = client.plane.database
    async with database.writing() as session:
        await session.execute(delete(ControlPlane).where(ControlPlane.name == deleted))
        await session.flush()
        adding = asyncio.create_task(client.call("POST", f"{path}/group-memberships/add", ids(second.id), status))
        await somebody_waits(database)
    await adding


async def somebody_waits(database: Database) -> None:
    """For a lock of this database."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = :name")
    async with database.single() as connection, asyncio.timeout(20):
        while not (await connection.execute(waiting, {"name": database.url.database})).scalar_one():
            pass
