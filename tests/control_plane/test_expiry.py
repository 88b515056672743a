"""Keys with a `ttl`: when that is over they are gone, for the API, for files, for nodes; on both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, Connection, column, insert, select, table, update

from control_plane.database import Database
from control_plane.models import AUDIT_LOG, ENTITY_TABLES, ControlPlane
from tests.control_plane.client import Client, running_client
from tests.control_plane.scripted_node import PATIENCE

CREDENTIALS = ENTITY_TABLES["keyauth_credentials"]
KEY = "key-of-bob"
DAY = 86_400


def document(**more: Any) -> dict[str, Any]:
    credentials = [{"key": KEY, **more}]
    return {"_format_version": "3.0", "consumers": [{"username": "bob", "keyauth_credentials": credentials}]}


async def write(client: Client, **more: Any) -> dict[str, Any]:
    """A key of bob, with bob."""
    await client.call("PUT", "consumers/bob", {"username": "bob"})
    created: dict[str, Any] = await client.call("POST", "consumers/bob/key-auth", {"key": KEY, **more}, 201)
    return created


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def passed(moment: float) -> None:
    async def is_over() -> bool:
        return time.time() >= moment

    await until(is_over)


async def kept(client: Client) -> list[Any]:
    """The rows of all keys, whatever the API shows."""
    async with client.plane.database.reading() as session:
        return list((await session.execute(select(CREDENTIALS))).all())


async def deleted(client: Client) -> None:
    async def is_deleted() -> bool:
        return not await kept(client)

    await until(is_deleted)


async def version(client: Client) -> int:
    async with client.plane.database.reading() as session:
        return int((await session.execute(select(ControlPlane.config_version))).scalar_one())


async def authors(client: Client) -> list[str]:
    """Who deleted keys."""
    about = (AUDIT_LOG.c.action == "delete") & (AUDIT_LOG.c.entity_type == "keyauth_credentials")
    async with client.plane.database.reading() as session:
        return list((await session.execute(select(AUDIT_LOG.c.principal_name).where(about))).scalars())


async def served(client: Client) -> list[dict[str, Any]]:
    """The keys in the snapshot, as nodes get it."""
    snapshot = await client.plane.snapshots.refresh(client.id)
    return list(orjson.loads(snapshot.payload)["entities"]["keyauth_credentials"])


async def make_older(client: Client, seconds: int) -> None:
    """As if the keys had been written so long ago."""
    moments = {name: CREDENTIALS.c[name] - seconds for name in ("created_at", "updated_at", "expires_at")}
    async with client.plane.database.writing() as session:
        await session.execute(update(CREDENTIALS).values(moments))


async def summary(client: Client, declared: dict[str, Any], **options: Any) -> tuple[int, int, int]:
    found = (await client.apply(declared, **options))["plan"]["summary"]
    return found["creating"], found["updating"], found["deleting"]


# -- what is over


async def test_a_key_that_is_over_is_deleted_like_by_anybody(client: Client) -> None:
    await write(client, ttl=1)
    before = await version(client)
    await deleted(client)
    assert await version(client) == before + 1
    assert await served(client) == []
    assert await authors(client) == ["expiry"]
    await client.get(f"key-auths/{KEY}", expect=404)


async def test_until_it_is_deleted_it_is_not_shown_and_in_nobodys_way(client: Client) -> None:
    await client.plane.expiry.close()
    old = await write(client, ttl=1)
    await passed(old["created_at"] + 1)
    assert len(await kept(client)) == 1
    assert (await client.get("key-auths"))["data"] == []
    assert (await client.get("consumers/bob/key-auth"))["data"] == []
    assert (await client.dump())["consumers"] == [{"username": "bob"}]
    for name in (KEY, old["id"]):
        await client.get(f"key-auths/{name}", expect=404)
        await client.call("PATCH", f"key-auths/{name}", {"ttl": 60}, 404)
    new = await write(client)
    assert new["id"] != old["id"]
    assert [row.id for row in await kept(client)] == [new["id"]]
    assert await authors(client) == ["expiry"]


async def test_a_key_may_come_again_under_its_id(client: Client) -> None:
    await client.plane.expiry.close()
    old = await write(client, ttl=1)
    await passed(old["created_at"] + 1)
    again = await client.call("PUT", f"consumers/bob/key-auth/{old['id']}", {"key": KEY})
    assert (again["id"], again["ttl"]) == (old["id"], None)


async def test_what_is_over_is_over_after_a_restart_too(tmp_path: Path, database_url: str) -> None:
    async with running_client(tmp_path / "state", database_url) as client:
        created = await write(client, ttl=1)
        await client.plane.expiry.close()
        await passed(created["created_at"] + 1)
    async with running_client(tmp_path / "state", database_url, client.id) as again:
        await deleted(again)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_one_of_several_replicas_deletes_it(tmp_path: Path, database_url: str) -> None:
    async with (
        running_client(tmp_path / "state", database_url) as first,
        running_client(tmp_path / "state", database_url, first.id) as second,
    ):
        for each in (first, second):
            await each.plane.expiry.close()
        created = await write(first, ttl=1)
        before = await version(first)
        await passed(created["created_at"] + 1)
        await asyncio.gather(*(each.plane.expiry.sweep() for each in (first, second)))
        assert await version(first) == before + 1
        assert await authors(first) == ["expiry"]
        assert await served(second) == []


# -- periods


async def test_a_period_begins_when_the_ttl_is_written(client: Client) -> None:
    """Nodes count from `created_at`, so that is what a snapshot says there; the API says when it was created."""
    now = int(time.time())
    await write(client, ttl=60, created_at=now - DAY)
    (credential,) = await served(client)
    assert now <= credential["created_at"] <= now + PATIENCE
    shown = await client.get(f"key-auths/{KEY}")
    assert (shown["created_at"], shown["ttl"]) == (now - DAY, 60)


async def test_writing_the_ttl_begins_a_new_period_and_writing_anything_else_does_not(client: Client) -> None:
    await write(client, ttl=2 * DAY)
    await make_older(client, DAY)
    (before,) = await kept(client)
    await client.call("PATCH", f"key-auths/{KEY}", {"tags": ["a"]})
    (after,) = await kept(client)
    assert after.expires_at == before.expires_at
    await client.call("PATCH", f"key-auths/{KEY}", {"ttl": 2 * DAY})
    (renewed,) = await kept(client)
    assert renewed.expires_at >= before.expires_at + DAY
    (credential,) = await served(client)
    assert credential["created_at"] + credential["ttl"] == renewed.expires_at


@pytest.mark.parametrize("ttl", [None, 0])
async def test_a_key_without_a_ttl_is_never_over(client: Client, ttl: int | None) -> None:
    created = await write(client, ttl=60)
    await client.call("PATCH", f"key-auths/{KEY}", {"ttl": ttl})
    (row,) = await kept(client)
    assert row.expires_at is None
    assert (await served(client))[0]["created_at"] == created["created_at"]


# -- files


async def test_a_file_with_a_ttl_does_not_differ_from_what_it_made(client: Client) -> None:
    await client.apply(document(ttl=3600))
    await make_older(client, 60)
    assert (await client.get(f"key-auths/{KEY}"))["ttl"] == 3600
    assert await summary(client, document(ttl=3600), commit=False) == (0, 0, 0)


async def test_a_file_that_still_declares_it_creates_it_again(client: Client) -> None:
    await client.plane.expiry.close()
    await client.apply(document(ttl=1))
    (old,) = await kept(client)
    await passed(old.expires_at)
    assert await summary(client, document(ttl=60), commit=False) == (1, 0, 0)
    assert await summary(client, document(ttl=60)) == (1, 0, 0)
    (new,) = await kept(client)
    assert new.id != old.id
    assert new.expires_at > time.time()


async def test_a_file_that_declares_its_id_creates_it_under_that_again(client: Client) -> None:
    await client.plane.expiry.close()
    declared = document(ttl=1, id="8a1b0f3e-6a8e-4d7c-9a60-0c1e5b7f2d11")
    await client.apply(declared)
    (old,) = await kept(client)
    await passed(old.expires_at)
    assert await summary(client, declared) == (1, 0, 0)
    assert [row.id for row in await kept(client)] == [old.id]


async def test_what_an_apply_wrote_is_deleted_when_it_is_over(client: Client) -> None:
    await client.apply(document(ttl=1))
    await deleted(client)
    assert await served(client) == []


async def test_a_saved_plan_s_period_begins_when_it_is_written(client: Client) -> None:
    path = f"/v2/control-planes/{client.id}/plans"
    saved = await client.call("POST", path, {"document": document(ttl=2)}, 201)
    await passed(int(time.time()) + 2)
    now = int(time.time())
    await client.call("POST", f"{path}/{saved['id']}/apply", {})
    (row,) = await kept(client)
    assert row.expires_at >= now + 2


async def test_a_rollback_revives_no_key_that_is_over(client: Client) -> None:
    await client.plane.expiry.close()
    then = await client.apply(document(ttl=1))
    (row,) = await kept(client)
    await passed(row.expires_at)
    path = f"/v2/control-planes/{client.id}/snapshots/{then['version']}/rollback"
    for commit in (False, True):
        done = await client.call("POST", path, {"commit": commit})
        assert done["plan"]["summary"]["total"] == 0
    assert await kept(client) == []


async def test_a_rollback_keeps_a_key_that_was_renewed_since(client: Client) -> None:
    then = await client.apply(document(ttl=1))
    await client.call("PUT", "key-auths/" + (await kept(client))[0].id, {"key": KEY, "consumer": {"username": "bob"}})
    await passed((await client.get(f"key-auths/{KEY}"))["created_at"] + 1)
    path = f"/v2/control-planes/{client.id}/snapshots/{then['version']}/rollback"
    plan = (await client.call("POST", path, {"commit": False}))["plan"]
    assert (plan["summary"]["updating"], plan["summary"]["deleting"]) == (1, 0)


# -- rows of before


async def test_the_revision_gives_every_period_of_before_its_end(empty_url: str) -> None:
    def go(connection: Connection, revision: str, step: Any = command.upgrade) -> None:
        config = Config()
        config.set_main_option("script_location", "migrations:")
        config.attributes["connection"] = connection
        step(config, revision)

    fields = ("control_plane_id", "id", "consumer_id", "revision", "created_at", "updated_at")
    old = table("keyauth_credentials", *(column(name) for name in fields), column("written", JSON))
    planes = table("control_planes", *(column(name) for name in _CONTROL_PLANE))
    consumers = table("consumers", *(column(name) for name in _CONSUMER), column("written", JSON))
    written = {"a": {"ttl": 60}, "b": {"ttl": 0}, "c": {}}
    database = Database(empty_url)
    try:
        async with database.engine.begin() as connection:
            await connection.run_sync(go, "0007")
            await connection.execute(insert(planes), _CONTROL_PLANE)
            await connection.execute(insert(consumers), {**_CONSUMER, "written": {}})
            for name, said in written.items():
                row = dict(zip(fields, ("cp", name, "bob", 1, 1000, 5000), strict=True))
                await connection.execute(insert(old), {**row, "written": said})
            await connection.run_sync(go, "0008")
            columns = (CREDENTIALS.c.id, CREDENTIALS.c.updated_at, CREDENTIALS.c.expires_at)
            found = (await connection.execute(select(*columns).order_by(CREDENTIALS.c.id))).all()
            assert [tuple(row) for row in found] == [("a", 1000, 1060), ("b", 5000, None), ("c", 5000, None)]
            await connection.run_sync(go, "0007", command.downgrade)
            assert len((await connection.execute(select(old.c.id))).all()) == 3
    finally:
        await database.close()


_CONTROL_PLANE: dict[str, Any] = {
    "id": "cp",
    "name": "first",
    "description": "",
    "labels": "{}",
    "cluster_type": "",
    "auth_type": "",
    "proxy_urls": "[]",
    "cloud_gateway": False,
    "config_version": 1,
    "created_at": 0,
    "updated_at": 0,
}
_CONSUMER: dict[str, Any] = {"control_plane_id": "cp", "id": "bob", "revision": 1, "created_at": 0, "updated_at": 0}
