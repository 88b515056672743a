"""Whose an entity is, and that plans of others stop before they touch it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import select

from control_plane.errors import DocumentRefused
from control_plane.holdings import Holdings, Row
from control_plane.models import AUDIT_LOG, ENTITY_OWNERS
from control_plane.ownership import Owners, OwnerSet
from control_plane.plan import make_plan
from control_plane.planned import ALARMING_DELETIONS, Plan
from gateway_schema.document import read_declaration
from tests.control_plane.client import Client
from tests.thorough import times

EMPTY = {"_format_version": "3.0"}


def services(*names: str, **more: Any) -> dict[str, Any]:
    return {**EMPTY, "services": [{"name": name, "host": f"{name}.test", **more} for name in names]}


def summary(answer: dict[str, Any]) -> tuple[int, int, int]:
    found = answer["plan"]["summary"]
    return found["creating"], found["updating"], found["deleting"]


async def owners_of(client: Client) -> dict[str, str]:
    async with client.plane.database.reading() as session:
        found = await session.execute(select(ENTITY_OWNERS.c.entity_id, ENTITY_OWNERS.c.owner))
        by_id = {str(entity_id): str(owner) for entity_id, owner in found}
    names = {entity["id"]: entity["name"] for entity in (await client.get("services"))["data"]}
    return {names.get(entity_id, "gone"): owner for entity_id, owner in by_id.items()}


async def actions_of(client: Client, action: str) -> list[dict[str, Any]]:
    async with client.plane.database.reading() as session:
        found = await session.execute(select(AUDIT_LOG).where(AUDIT_LOG.c.action == action).order_by(AUDIT_LOG.c.id))
        return [dict(line) for line in found.mappings()]


async def test_what_is_written_under_tags_belongs_to_them_and_what_is_not_to_nobody(client: Client) -> None:
    await client.apply(services("ours"), select_tags=["b", "a"])
    await client.apply(services("nobodys"), mode="apply")
    await client.call("POST", "services", {"name": "single", "host": "x.test", "tags": ["a", "b"]}, 201)
    assert await owners_of(client) == {"ours": '["a","b"]'}
    await client.call("PATCH", "services/ours", {"port": 81})
    await client.call("DELETE", "services/single", expect=204)
    assert await owners_of(client) == {"ours": '["a","b"]'}


async def test_owners_go_with_their_entities_however_those_go(client: Client) -> None:
    await client.apply(services("one", "two", routes=[]), select_tags=["a"])
    await client.call("DELETE", "services/one", expect=204)
    assert await owners_of(client) == {"two": '["a"]'}
    consumer = {**EMPTY, "consumers": [{"username": "bob", "keyauth_credentials": [{"key": "k"}]}]}
    await client.apply(consumer, select_tags=["b"])
    await client.call("DELETE", "consumers/bob", expect=204)
    assert await owners_of(client) == {"two": '["a"]'}


async def test_a_reset_that_spares_others_deletes_only_what_is_its_own(client: Client) -> None:
    await client.apply(services("theirs"), select_tags=["a"])
    await client.apply(services("mine"), mode="apply")
    await client.call("POST", "services", {"name": "nobodys", "host": "x.test"}, 201)
    refused = await client.apply(EMPTY, 400, mode="reset")
    assert [fault["owner"] for fault in refused["errors"]] == [["a"]]
    assert summary(await client.apply(EMPTY, mode="reset", spare=True)) == (0, 0, 2)
    assert await owners_of(client) == {"theirs": '["a"]'}


async def test_what_others_hang_under_ones_own_is_spared_by_refusing_the_reset(client: Client) -> None:
    await client.apply(services("mine"))
    theirs = {**EMPTY, "routes": [{"name": "theirs", "paths": ["/"], "service": {"name": "mine"}}]}
    await client.apply(theirs, select_tags=["a"])
    refused = await client.apply(EMPTY, 400, mode="reset", spare=True)
    (fault,) = refused["errors"]
    assert fault["entity"] == "service mine"
    assert fault["message"] == "cannot be deleted: route theirs refers to it and is owned by the tag 'a'"


@pytest.mark.parametrize("tags", [[], ["a"], ["b"], ["a", "b", "c"]])
async def test_a_plan_that_would_change_what_others_own_stops_and_says_whose_it_is(
    client: Client, tags: list[str]
) -> None:
    await client.apply(services("shared", tags=["c"]), select_tags=["a", "b"])
    before = (await client.get("services/shared"))["updated_at"]
    changed = {**services("new"), "routes": [{"name": "r", "paths": ["/"]}]}
    changed["services"].append({"name": "shared", "host": "other.test"})
    refused = await client.apply(changed, 400, select_tags=tags)
    (fault,) = [error for error in refused["errors"] if error["entity"] == "service shared"]
    assert fault["path"] == ["services", 1]
    assert "owned by the tags 'a', 'b'" in fault["message"]
    assert (await client.get("services/shared"))["updated_at"] == before
    assert len((await client.get("services"))["data"]) == 1


@pytest.mark.parametrize("mode", ["sync", "reset"])
async def test_a_plan_that_would_delete_what_others_own_stops_at_the_place_where_it_is_missing(
    client: Client, mode: str
) -> None:
    service = {"name": "s", "host": "s.test", "tags": ["b"], "routes": [{"name": "r", "paths": ["/"], "tags": ["b"]}]}
    await client.apply({**EMPTY, "services": [service]}, select_tags=["a"])
    refused = await client.apply(services("s", tags=["b"]), 400, mode=mode)
    faults = {error["entity"]: error for error in refused["errors"]}
    assert faults["route r"]["path"] == (["services", 0] if mode == "sync" else ["routes"])
    assert faults["route r"]["owner"] == ["a"]
    assert "would delete it" in faults["route r"]["message"]
    assert len((await client.get("routes"))["data"]) == 1


async def test_what_others_own_may_be_declared_if_that_changes_nothing_and_referred_to(client: Client) -> None:
    await client.apply(services("shared", tags=["b"]), select_tags=["a"])
    same = services("shared", tags=["a"])
    assert summary(await client.apply(same, select_tags=["b"])) == (0, 0, 0)
    assert await owners_of(client) == {"shared": '["a"]'}
    route = {**EMPTY, "routes": [{"name": "r", "paths": ["/"], "service": {"name": "shared"}}]}
    assert summary(await client.apply(route, select_tags=["c"])) == (1, 0, 0)


async def test_adopting_moves_ownership_and_leaves_a_line(client: Client) -> None:
    await client.apply(services("shared", "kept"), select_tags=["a"])
    await client.apply(services("shared"), 400, select_tags=["b"])
    shown = await client.apply(services("shared"), select_tags=["b"], adopt=True, commit=False)
    assert shown["plan"]["adopting"] == [{"name": "shared", "kind": "service", "owner": ["a"]}]
    assert await actions_of(client, "adopt") == []
    assert summary(await client.apply(services("shared"), select_tags=["b"], adopt=True)) == (0, 1, 0)
    assert await owners_of(client) == {"shared": '["b"]', "kept": '["a"]'}
    (line,) = await actions_of(client, "adopt")
    assert (line["entity_name"], line["details"]) == ("shared", {"from": ["a"], "to": ["b"]})
    assert line["principal_name"]
    await client.apply(services("shared", port=81), 400, select_tags=["a"])


async def test_adopting_without_a_change_moves_ownership_too(client: Client) -> None:
    await client.apply(services("s", tags=["b"]), select_tags=["a"])
    answer = await client.apply(services("s", tags=["a"]), select_tags=["b"], adopt=True)
    assert summary(answer) == (0, 0, 0)
    assert await owners_of(client) == {"s": '["b"]'}
    await client.apply(services("s", tags=["a", "b"]), adopt=True)
    assert await owners_of(client) == {}


async def test_adopting_what_is_nobodys_and_carries_no_tag_leaves_a_line_and_declaring_what_does_leaves_none(
    client: Client,
) -> None:
    await client.apply(
        {**EMPTY, "services": [*services("bare")["services"], *services("tagged", tags=["a"])["services"]]}
    )
    both = services("bare", "tagged")
    await client.apply(both, 400, select_tags=["a"])
    adopted = await client.apply(both, select_tags=["a"], adopt=True)
    assert adopted["plan"]["adopting"] == [{"name": "bare", "kind": "service", "owner": []}]
    assert await owners_of(client) == {"bare": '["a"]', "tagged": '["a"]'}
    (line,) = await actions_of(client, "adopt")
    assert (line["entity_name"], line["details"]) == ("bare", {"from": [], "to": ["a"]})


async def test_what_is_nobodys_becomes_the_property_of_who_declares_it(client: Client) -> None:
    await client.apply(services("s", tags=["a"]))
    assert await owners_of(client) == {}
    assert summary(await client.apply(services("s"), select_tags=["a"])) == (0, 0, 0)
    assert await owners_of(client) == {"s": '["a"]'}


async def test_a_row_whose_tags_were_taken_away_is_still_its_owners_to_mend(client: Client) -> None:
    await client.apply(services("s"), select_tags=["a"])
    await client.call("PATCH", "services/s", {"tags": None})
    assert summary(await client.apply(services("s"), select_tags=["a"])) == (0, 1, 0)
    assert (await client.get("services/s"))["tags"] == ["a"]


async def test_an_entity_that_comes_back_under_its_old_id_is_nobodys(client: Client) -> None:
    await client.apply(services("s"), select_tags=["a"])
    entity_id = (await client.get("services/s"))["id"]
    await client.call("DELETE", "services/s", expect=204)
    await client.call("PUT", f"services/{entity_id}", {"name": "s", "host": "x.test"})
    assert summary(await client.apply(services("s"))) == (0, 1, 0)


# -- alarming deletions


async def test_deleting_an_alarming_share_asks_for_force(client: Client) -> None:
    names = [f"s{number}" for number in range(20)]
    await client.apply(services(*names))
    few = services(*names[:10])
    shown = await client.apply(few, commit=False)
    assert summary(shown) == (0, 0, 10)
    assert shown["plan"]["warnings"] == ["this would delete 10 of 20 entities (50 %)"]
    refused = await client.apply(few, 409)
    assert "force" in refused["message"]
    assert (refused["deleting"], refused["governed"]) == (10, 20)
    assert len((await client.get("services"))["data"]) == 20
    assert summary(await client.apply(few, force=True)) == (0, 0, 10)


@pytest.mark.parametrize(
    ("held", "deleted", "mode", "alarming"),
    [
        (20, ALARMING_DELETIONS, "sync", True),
        (20, ALARMING_DELETIONS - 1, "sync", False),
        (40, 12, "sync", False),
        (40, 13, "sync", True),
        (20, 20, "reset", False),
        (20, 20, "apply", False),
    ],
)
def test_what_counts_as_alarming(held: int, deleted: int, mode: Any, alarming: bool) -> None:
    names = [f"s{number}" for number in range(held)]
    everything = read_declaration(services(*names))
    created = make_plan(Holdings("cp", 0, {}), everything, mode="apply", now=1).creates
    rest = read_declaration(services(*names[deleted:]))
    plan = make_plan(Holdings("cp", 0, {}).after(1, created, []), rest, mode=mode, now=1)
    assert bool(plan.alarm) is alarming


# -- five teams


class Teams:
    """Holdings and owners under the plans of several teams, without a database."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.holdings = Holdings("cp", 0, {})
        self.owners = Owners()
        self.sets = [["a"], ["b"], ["a", "b"], ["c", "a"], []]

    def document(self) -> dict[str, Any]:
        names = [f"s{number}" for number in range(6)]
        users = [f"u{number}" for number in range(4)]
        return {
            **EMPTY,
            "services": [self.service(name) for name in self.rng.sample(names, self.rng.randint(0, 3))],
            "consumers": [
                {"username": name, "keyauth_credentials": [{"key": f"{name}-{self.rng.randint(0, 1)}"}]}
                for name in self.rng.sample(users, self.rng.randint(0, 2))
            ],
        }

    def service(self, name: str) -> dict[str, Any]:
        rng = self.rng
        return {
            "name": name,
            "host": "x.test",
            "port": rng.choice([80, 81]),
            "tags": rng.sample(["a", "b", "c"], rng.randint(0, 2)),
            "routes": [{"name": f"r-{name}", "paths": ["/"], "tags": rng.sample(["a", "b"], rng.randint(0, 1))}]
            if rng.random() < 0.5
            else [],
            "plugins": [{"name": "key-auth"}] if rng.random() < 0.3 else [],
        }

    def apply(self, tags: list[str], adopt: bool) -> Plan | None:
        declaration = read_declaration(self.document(), tags)
        mode = self.rng.choice(["sync", "sync", "apply", "reset"])
        try:
            plan = make_plan(
                self.holdings,
                declaration,
                mode=mode,  # type: ignore[arg-type]
                select_tags=tags,
                owners=self.owners,
                adopt=adopt,
                now=1,
            )
        except DocumentRefused:
            return None
        puts = [*plan.creates, *(after for _, after in plan.updates)]
        self.holdings = self.holdings.after(self.holdings.version + 1, puts, plan.deletes)
        self.owners = self.owners.after(plan.assigned)
        return plan


def of_others(rows: Iterable[Row], owners: Owners, mine: OwnerSet) -> dict[str, Any]:
    return {row.id: row.written for row in rows if owners.of(row) and owners.of(row) != mine}


@pytest.mark.parametrize("seed", range(times(8, 40)))
def test_five_teams_never_change_each_others_entities_without_adopting_them(seed: int) -> None:
    """Two thousand random applies, ten thousand at full size: what another set owns is what it was."""
    teams = Teams(seed)
    carried_out = 0
    for _ in range(250):
        tags = teams.rng.choice(teams.sets)
        adopt = teams.rng.random() < 0.1
        mine = frozenset(tags)
        owners, before = teams.owners, of_others(teams.holdings.all(), teams.owners, mine)
        plan = teams.apply(tags, adopt)
        if plan is None:
            continue
        carried_out += bool(plan)
        after = {row.id: row.written for row in teams.holdings.all()}
        taken = {row.id for row, _ in plan.adopted}
        assert adopt or not taken
        assert {key: after.get(key) for key in before if key not in taken} == {
            key: body for key, body in before.items() if key not in taken
        }
        kept = [row for row in teams.holdings.all() if row.id in before and row.id not in taken]
        assert all(teams.owners.of(row) == owners.of(row) for row in kept)
    assert carried_out > 5


async def test_five_teams_on_a_real_database(client: Client) -> None:
    teams = Teams(99)
    applied = 0
    for _ in range(times(60, 2000)):
        tags = teams.rng.choice(teams.sets)
        before = await _world(client)
        body = {"document": teams.document(), "select_tags": tags, "commit": True, "force": True}
        response = await client.http.post(f"/v2/control-planes/{client.id}/apply", json=body)
        assert response.status_code in {200, 400}, response.text
        applied += response.status_code == 200
        after = await _world(client)
        if response.status_code == 400:
            assert after == before
        others = {key: value for key, value in before.items() if value[1] and value[1] != frozenset(tags)}
        assert {key: after.get(key) for key in others} == others
    assert applied > 5


async def _world(client: Client) -> dict[str, tuple[Any, OwnerSet]]:
    from control_plane import ownership

    async with client.plane.database.reading() as session:
        holdings = await client.plane.holdings.load(session, client.id)
        owners = await ownership.load(session, client.id)
    return {row.id: (row.written, owners.of(row)) for row in holdings.all()}
