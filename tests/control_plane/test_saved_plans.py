"""Plans that are made now and applied later, to the state they were made against."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select, update

from control_plane import saved_plans
from control_plane.models import SAVED_PLANS
from tests.control_plane.client import Client

EMPTY = {"_format_version": "3.0"}


def services(*names: str, **more: Any) -> dict[str, Any]:
    return {**EMPTY, "services": [{"name": name, "host": f"{name}.test", **more} for name in names]}


async def save(client: Client, document: dict[str, Any], expect: int = 201, **options: Any) -> Any:
    path = f"/v2/control-planes/{client.id}/plans"
    return await client.call("POST", path, {"document": document, **options}, expect)


async def carry_out(client: Client, plan: dict[str, Any], expect: int = 200, **options: Any) -> Any:
    return await client.call("POST", f"/v2/control-planes/{client.id}/plans/{plan['id']}/apply", options, expect)


async def look(client: Client, plan: dict[str, Any], expect: int = 200) -> Any:
    return await client.get(f"/v2/control-planes/{client.id}/plans/{plan['id']}", expect=expect)


async def test_what_was_planned_is_what_is_written_ids_included(client: Client) -> None:
    await client.apply(services("old", "kept"))
    saved = await save(client, services("kept", "new", port=81))
    assert saved["plan"]["summary"] == {"creating": 1, "updating": 1, "deleting": 1, "total": 3}
    assert [entity["name"] for entity in (await client.get("services"))["data"]] != ["kept", "new"]
    done = await carry_out(client, saved)
    assert done["committed"] is True
    assert done["plan"]["changes"] == saved["plan"]["changes"]
    planned = saved["plan"]["changes"]["creating"][0]["body"]["new"]["id"]
    assert (await client.get("services/new"))["id"] == planned
    assert (await client.apply(services("kept", "new", port=81)))["plan"]["summary"]["total"] == 0


async def test_a_plan_is_refused_when_the_state_has_moved(client: Client) -> None:
    saved = await save(client, services("new"))
    await client.call("POST", "services", {"name": "else", "host": "x.test"}, 201)
    refused = await carry_out(client, saved, 409)
    assert "the state has moved since this plan was made" in refused["message"]
    assert (refused["plan_version"], refused["version"]) == (0, 1)
    assert "the state has moved" in (await look(client, saved))["conflict"]
    assert [entity["name"] for entity in (await client.get("services"))["data"]] == ["else"]


async def test_a_plan_is_applied_once(client: Client) -> None:
    saved = await save(client, services("new"))
    done = await carry_out(client, saved)
    refused = await carry_out(client, saved, 409)
    assert f"applied already, as version {done['version']}" in refused["message"]


async def test_a_plan_is_refused_when_ownership_has_moved(client: Client) -> None:
    await client.apply(services("s", tags=["b"]), select_tags=["a"])
    saved = await save(client, services("s", tags=["b"], port=81), select_tags=["a"])
    await client.apply(services("s", tags=["a"]), select_tags=["b"], adopt=True)
    assert "another owner" in (await carry_out(client, saved, 409))["message"]


async def test_a_plan_is_refused_when_what_it_would_make_its_own_has_become_anothers(client: Client) -> None:
    await client.apply(services("x", tags=["a", "b"]))
    declared = {**services("x", tags=["a", "b"]), "consumers": [{"username": "y"}]}
    saved = await save(client, declared, select_tags=["a"])
    await client.apply(services("x", tags=["a", "b"]), select_tags=["b"])
    refused = await carry_out(client, saved, 409)
    assert "service x" in refused["message"]
    assert "the tag 'b'" in refused["message"]
    assert refused["message"] == (await look(client, saved))["conflict"]
    assert (await client.get("consumers"))["data"] == []
    await client.apply(services("x", tags=["a", "b"], port=81), 400, select_tags=["a"])
    await client.apply(services("x", tags=["a", "b"], port=81), select_tags=["b"])


async def test_what_a_plan_makes_its_own_may_have_become_so_meanwhile(client: Client) -> None:
    await client.apply(services("x", tags=["a"]))
    declared = {**services("x", tags=["a"]), "consumers": [{"username": "y"}]}
    saved = await save(client, declared, select_tags=["a"])
    await client.apply(services("x", tags=["a"]), select_tags=["a"])
    await carry_out(client, saved)
    assert [consumer["username"] for consumer in (await client.get("consumers"))["data"]] == ["y"]


async def test_a_plan_that_changes_nothing_is_kept_shown_and_applied_as_any_other(client: Client) -> None:
    await client.apply(services("s"))
    saved = await save(client, services("s"))
    nothing = {"creating": [], "updating": [], "deleting": []}
    assert saved["plan"]["changes"] == nothing
    assert (await look(client, saved))["plan"] == saved["plan"]
    done = await carry_out(client, saved)
    assert (done["plan"]["changes"], done["version"]) == (nothing, saved["version"])
    assert "applied already" in (await carry_out(client, saved, 409))["message"]
    assert (await look(client, saved))["plan"] is None


async def test_adoption_and_ownership_are_part_of_a_saved_plan(client: Client) -> None:
    await client.apply(services("s"), select_tags=["a"])
    await save(client, services("s"), 400, select_tags=["b"])
    saved = await save(client, services("s"), select_tags=["b"], adopt=True)
    await carry_out(client, saved)
    await client.apply(services("s", port=81), 400, select_tags=["a"])
    await client.apply(services("s", port=81), select_tags=["b"])


async def test_an_alarming_plan_asks_for_force_when_it_is_applied(client: Client) -> None:
    await client.apply(services(*[f"s{number}" for number in range(12)]))
    saved = await save(client, EMPTY)
    assert saved["plan"]["warnings"]
    await carry_out(client, saved, 409)
    assert (await carry_out(client, saved, force=True))["plan"]["summary"]["deleting"] == 12


async def test_secrets_are_neither_in_the_answer_nor_in_clear_in_the_database(client: Client) -> None:
    document = {**EMPTY, "consumers": [{"username": "bob", "keyauth_credentials": [{"key": "key-in-the-clear"}]}]}
    saved = await save(client, document)
    assert "in-the-clear" not in str(saved) + str(await look(client, saved))
    async with client.plane.database.reading() as session:
        (payload,) = (await session.execute(select(SAVED_PLANS.c.payload))).scalars()
    assert b"in-the-clear" not in payload
    await carry_out(client, saved)
    assert (await client.get("key-auths"))["data"][0]["key"] == "key-in-the-clear"


async def test_plans_expire_and_only_so_many_are_kept(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(saved_plans, "MAX_SAVED", 2)
    plans = []
    for number in range(4):
        plans.append(await save(client, services(f"s{number}")))
        async with client.plane.database.writing() as session:
            await session.execute(update(SAVED_PLANS).values(created_ms=SAVED_PLANS.c.created_ms - 1))
    await look(client, plans[-3], 404)
    await look(client, plans[-2])
    async with client.plane.database.writing() as session:
        await session.execute(update(SAVED_PLANS).values(expires_ms=1))
    await carry_out(client, plans[-1], 404)
    await save(client, services("s"))
    async with client.plane.database.reading() as session:
        assert len(list((await session.execute(select(SAVED_PLANS.c.id))).scalars())) == 1


async def test_unknown_plans_and_those_of_other_control_planes_are_not_found(client: Client) -> None:
    saved = await save(client, services("s"))
    other = await client.another("other")
    await carry_out(other, saved, 404)
    await look(client, {"id": str(uuid.uuid4())}, 404)
    await look(client, {"id": "no-id"}, 404)
