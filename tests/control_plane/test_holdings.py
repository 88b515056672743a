"""What is kept in memory and brought up to date is what reading everything again gives, to the byte."""

from __future__ import annotations

import random
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.cache import Parcel
from control_plane.holdings import Holdings, HoldingsCache
from control_plane.snapshot import Snapshot, build
from gateway_schema.document import canonical
from gateway_schema.registry import ENTITY_TYPES
from tests.control_plane.client import Client
from tests.control_plane.test_plan import World, documents


def anew(holdings: Holdings) -> Snapshot:
    """The snapshot of the same rows without anything that was remembered."""
    rows = {name: dict(reversed(holdings.of(name).items())) for name in ENTITY_TYPES}
    return build(Holdings(holdings.control_plane_id, holdings.version, rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(documents(), min_size=2, max_size=5))
def test_snapshots_one_after_another_are_those_that_would_be_built_anew(some: list[dict[str, Any]]) -> None:
    """And the deltas from each former one lead to the last, byte for byte."""
    world = World()
    parcels: list[Parcel] = []
    for document in some:
        world.apply(document)
        snapshot = build(world.holdings)
        entities = {name: [row.entity() for row in world.holdings.of(name).values()] for name in ENTITY_TYPES}
        assert snapshot.payload == canonical("cp", entities)
        assert snapshot == anew(world.holdings)
        parcels.append(parcels[-1].next(snapshot) if parcels else Parcel(snapshot))
    last = parcels[-1]
    for former in parcels[:-1]:
        way = last.way_from(former.snapshot.hash)
        if way is not None:
            assert former.snapshot.catalogue.after(way.delta).payload() == last.snapshot.payload


def test_kinds_that_stay_are_not_put_together_again() -> None:
    world = World()
    world.apply({"services": [{"name": "s", "host": "s.test"}], "consumers": [{"username": "bob"}]})
    before = build(world.holdings).catalogue.entities
    world.apply({"services": [{"name": "s", "host": "s.test"}], "consumers": [{"username": "eve"}]})
    after = build(world.holdings).catalogue.entities
    assert after["services"] is before["services"]
    assert after["consumers"] is not before["consumers"]


async def test_random_writes_are_followed_as_if_everything_had_been_read_again(client: Client) -> None:
    """Creations, updates, deletions, one by one and many at once, by a process that hears of none of them."""
    chance = random.Random(4)
    follower = HoldingsCache(client.plane.cipher)
    for number in range(25):
        await _write_something(client, chance, number)
        async with client.plane.database.reading() as session:
            followed = await follower.load(session, client.id)
            read = await HoldingsCache(client.plane.cipher).load(session, client.id)
        assert build(followed) == build(read)


async def test_what_is_remembered_of_one_s_own_writes_is_what_the_database_holds(client: Client) -> None:
    """So a snapshot may be made of it without a look there: after single writes, applies and rollbacks."""
    chance = random.Random(7)
    plane = client.plane
    await client.plane.snapshots.get(client.id)
    written = remembered = 0
    for number in range(40):
        before = await _version(client)
        if number % 8 == 7:
            await _roll_back(client, chance)
        else:
            await _write_something(client, chance, number)
        async with plane.database.reading() as session:
            read = await HoldingsCache(plane.cipher).load(session, client.id)
        kept = plane.holdings.known(client.id, read.version)
        written += read.version > before
        remembered += kept is not None
        assert kept is None or build(kept) == build(read)
        snapshot = await plane.snapshots.refresh(client.id, read.version)
        assert (snapshot.hash, snapshot.payload) == (build(read).hash, build(read).payload)
    assert written > 30
    assert remembered > 15


async def test_a_change_that_another_process_made_in_between_is_in_the_snapshot(client: Client) -> None:
    """What is remembered is then no base for what was written after it."""
    plane = client.plane
    await client.apply({"_format_version": "3.0", "services": [{"name": "ours", "host": "a.test"}]})
    remembered = plane.holdings.known(client.id, await _version(client))
    assert remembered is not None
    await client.call("POST", "services", {"name": "theirs", "host": "b.test"}, 201)
    plane.holdings.forget(client.id)
    plane.holdings.keep(remembered)  # as if another process had made the change
    await client.call("PATCH", "services/ours", {"port": 81})
    snapshot = await plane.snapshots.refresh(client.id, await _version(client))
    services = orjson.loads(snapshot.payload)["entities"]["services"]
    assert {service["name"]: service["port"] for service in services} == {"ours": 81, "theirs": 80}


async def _version(client: Client) -> int:
    found = await client.get(f"/v2/control-planes/{client.id}/expected-config-version")
    return int(found["expected_config_version"])


async def _roll_back(client: Client, chance: random.Random) -> None:
    base = f"/v2/control-planes/{client.id}/snapshots"
    kept = [entry["version"] for entry in (await client.get(base))["data"]]
    if kept:
        await client.call("POST", f"{base}/{chance.choice(kept)}/rollback", {"commit": True, "force": True})


async def _write_something(client: Client, chance: random.Random, number: int) -> None:
    services = (await client.get("services"))["data"]
    dice = chance.randrange(6)
    if dice == 0 or not services:
        names = chance.sample(range(8), 4)
        service = [
            {"name": f"a{name}", "host": "a.test", "routes": [{"name": f"ar{name}", "paths": ["/"]}]} for name in names
        ]
        routes = [{"name": f"r{number}", "paths": [f"/{number}"]}]
        plugins = [{"name": "key-auth", "config": {"key_names": [f"k{number}"]}}] if chance.random() < 0.5 else []
        document = {"_format_version": "3.0", "services": service, "routes": routes, "plugins": plugins}
        await client.apply(document, force=True)
    elif dice == 1:
        await client.call("POST", "services", {"name": f"n{number}", "host": "n.test"}, 201)
    elif dice in (2, 3):
        await client.call("PATCH", f"services/{chance.choice(services)['id']}", {"port": 1000 + number})
    else:
        # One goes and one comes: the number of rows stays.
        gone = chance.choice(services)["id"]
        for route in (await client.get(f"services/{gone}/routes"))["data"]:
            await client.call("DELETE", f"routes/{route['id']}", expect=204)
        await client.call("DELETE", f"services/{gone}", expect=204)
        await client.call("POST", "services", {"name": f"m{number}", "host": "m.test"}, 201)
