"""What only joins two others: whose it is, who sees it, what a document says of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.control_plane.client import Client

EMPTY = {"_format_version": "3.0"}
TEAM = ["team"]


def members(*groups: str, held: tuple[str, ...] = ("g",), **more: Any) -> dict[str, Any]:
    """A consumer in groups, and the groups."""
    consumer = {"username": "u", "groups": [{"name": name} for name in groups], **more}
    return {**EMPTY, "consumers": [consumer], "consumer_groups": [{"name": name, **more} for name in held]}


async def join(client: Client, group: str, consumer: str = "u") -> None:
    """As decK and the API do: without tags, and for nobody."""
    await client.call("POST", f"consumer_groups/{group}/consumers", {"consumer": consumer}, 201)


async def groups_of(client: Client, consumer: str = "u") -> list[str]:
    return sorted(group["name"] for group in (await client.get(f"consumers/{consumer}/consumer_groups"))["data"])


def summary(answer: dict[str, Any]) -> tuple[int, int, int]:
    found = answer["plan"]["summary"]
    return found["creating"], found["updating"], found["deleting"]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_membership_of_nobodys_between_two_of_a_team_is_the_teams(client: Client, declared: bool) -> None:
    await client.apply(members(), select_tags=TEAM)
    await join(client, "g")
    if declared:
        assert summary(await client.apply(members("g"), select_tags=TEAM)) == (0, 0, 0)
    assert await groups_of(client) == ["g"]
    assert summary(await client.apply(members(), select_tags=TEAM)) == (0, 0, 1)
    assert await groups_of(client) == []


async def test_a_membership_in_a_group_of_others_is_a_teams_only_once_it_has_declared_it(client: Client) -> None:
    await client.apply({**EMPTY, "consumer_groups": [{"name": "theirs"}]}, mode="apply")
    await client.apply(members(held=()), select_tags=TEAM)
    await join(client, "theirs")
    assert summary(await client.apply(members(held=()), select_tags=TEAM)) == (0, 0, 0)
    assert summary(await client.apply(members("theirs", held=()), select_tags=TEAM)) == (0, 0, 0)
    assert summary(await client.apply(members(held=()), select_tags=TEAM)) == (0, 0, 1)


async def test_a_membership_between_two_that_are_only_looked_up_is_not_the_documents(client: Client) -> None:
    await client.apply(members(tags=["base"]), mode="apply")
    await join(client, "g")
    lookup = {"consumer_groups": ["base"], "consumers": ["base"]}
    info = {"_info": {"select_tags": TEAM, "default_lookup_tags": lookup}}
    mine = {**info, **EMPTY, "consumers": [{"username": "mine", "groups": [{"name": "g"}]}]}
    assert summary(await client.apply(mine)) == (2, 0, 0)
    assert await groups_of(client) == ["g"]


async def test_a_membership_in_a_group_that_is_looked_up_is_the_documents(client: Client) -> None:
    await client.apply({**EMPTY, "consumer_groups": [{"name": "base", "tags": ["base"]}]}, mode="apply")
    info = {"_info": {"select_tags": TEAM, "default_lookup_tags": {"consumer_groups": ["base"]}}}
    await client.apply({**info, **members(held=())})
    await join(client, "base")
    assert summary(await client.apply({**info, **members("base", held=())}, commit=False)) == (0, 0, 0)
    assert summary(await client.apply({**info, **members(held=())})) == (0, 0, 1)


async def test_what_another_set_declared_first_stays_its_own_unless_it_is_adopted(client: Client) -> None:
    both = {"tags": ["a", "b"]}
    await client.apply(members("g", **both), select_tags=["a"])
    assert summary(await client.apply(members("g", **both), select_tags=["b"])) == (0, 0, 0)
    assert summary(await client.apply(members(**both), select_tags=["b"])) == (0, 0, 0)
    adopted = await client.apply(members("g", **both), select_tags=["b"], adopt=True)
    assert "consumer-group-consumer" in {entry["kind"] for entry in adopted["plan"]["adopting"]}
    assert summary(await client.apply(members(**both), select_tags=["b"])) == (0, 0, 1)


async def test_a_dump_by_tags_has_the_memberships_of_what_is_in_it_and_no_other(client: Client) -> None:
    await client.apply({**EMPTY, "consumer_groups": [{"name": "theirs"}]}, mode="apply")
    await client.apply(members(), select_tags=TEAM)
    await join(client, "g")
    await join(client, "theirs")
    await client.call("POST", "consumers", {"username": "other"}, 201)
    await join(client, "g", "other")
    dumped = await client.dump(tags="team")
    assert [consumer["groups"] for consumer in dumped["consumers"]] == [[{"name": "g"}]]
    assert summary(await client.apply(dumped)) == (0, 0, 0)
    assert await groups_of(client) == ["g", "theirs"]
    assert await groups_of(client, "other") == ["g"]


async def test_a_rollback_under_tags_brings_a_membership_of_nobodys_back_and_takes_it_away(client: Client) -> None:
    without = (await client.apply(members(), select_tags=TEAM))["version"]
    await join(client, "g")
    other = {**EMPTY, "services": [{"name": "s", "host": "s.test"}]}
    joined = (await client.apply(other, mode="apply"))["version"]
    path = f"/v2/control-planes/{client.id}/snapshots"
    await client.call("POST", f"{path}/{without}/rollback", {"select_tags": TEAM, "commit": True})
    assert await groups_of(client) == []
    await client.call("POST", f"{path}/{joined}/rollback", {"select_tags": TEAM, "commit": True})
    assert await groups_of(client) == ["g"]


async def test_an_id_that_another_kind_has_too_is_not_mistaken_for_it(client: Client) -> None:
    """A service goes that has the id of a consumer: neither the consumer's memberships go with it, nor its name."""
    same = "11111111-1111-4111-8111-111111111111"
    await client.apply(members("g", id=same, held=()) | {"consumer_groups": [{"name": "g"}]}, mode="apply")
    services = {**EMPTY, "services": [{"id": same, "name": "of-the-team", "host": "s.test"}]}
    before = (await client.apply(services, select_tags=TEAM))["version"]
    gone = await client.apply(EMPTY, select_tags=TEAM)
    assert summary(gone) == (0, 0, 1)
    assert await groups_of(client) == ["g"]
    path = f"/v2/control-planes/{client.id}/snapshots/{before}/rollback"
    assert summary(await client.call("POST", path, {"select_tags": TEAM, "commit": True})) == (1, 0, 0)
    assert await groups_of(client) == ["g"]


async def test_titles_name_the_parent_that_is_meant_among_those_with_its_id(client: Client) -> None:
    same = "11111111-1111-4111-8111-111111111111"
    route = {"id": same, "name": "r", "paths": ["/"], "plugins": [{"name": "key-auth"}]}
    service = {"id": same, "name": "s", "host": "s.test", "plugins": [{"name": "key-auth"}]}
    document = {**EMPTY, "services": [service], "routes": [route]}
    shown = await client.apply(document)
    titles = {entry["name"] for entry in shown["plan"]["changes"]["creating"] if entry["kind"] == "plugin"}
    assert titles == {"key-auth for service s", "key-auth for route r"}
