"""Config stores and their secrets: kept sealed, never answered, gone with what they belong to."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, select

from control_plane.database import Database
from control_plane.models import CONFIG_STORE_SECRETS
from control_plane.rotation import rotate_key
from control_plane.sealed import unseal
from control_plane.secrets import read_keys
from control_plane.settings import Settings
from tests.control_plane.callers import caller
from tests.control_plane.client import TOKEN, Client, running_client
from tests.control_plane.test_rotation import opened_by

VALUE = "the value nobody sees again"


def base(client: Client) -> str:
    return f"/v2/control-planes/{client.id}/config-stores"


async def store_of(client: Client, name: str = "main") -> str:
    created = await client.call("POST", base(client), {"name": name}, 201)
    return f"{base(client)}/{created['id']}"


async def sealed(database: Database) -> list[bytes]:
    async with database.reading() as session:
        return list((await session.execute(select(CONFIG_STORE_SECRETS.c.payload))).scalars())


async def test_a_store_is_made_read_renamed_and_deleted(client: Client) -> None:
    created = await client.call("POST", base(client), {"name": "main"}, 201)
    assert set(created) == {"id", "name", "created_at", "updated_at"}
    assert datetime.fromisoformat(created["created_at"])
    path = f"{base(client)}/{created['id']}"
    assert await client.get(path) == created
    renamed = await client.call("PUT", path, {"name": "other"})
    assert (renamed["id"], renamed["name"]) == (created["id"], "other")
    assert (await client.get(base(client)))["data"] == [renamed]
    nameless = await client.call("POST", base(client), {}, 201)
    assert nameless["name"] == nameless["id"]
    await client.call("DELETE", path, expect=204)
    missing = await client.get(path, expect=404)
    assert missing["detail"] == "The requested config store was not found."
    await client.call("DELETE", path, expect=404)


async def test_a_secret_is_written_and_never_answered(client: Client) -> None:
    secrets = f"{await store_of(client)}/secrets"
    created = await client.call("POST", secrets, {"key": "db/password", "value": VALUE}, 201)
    assert set(created) == {"key", "created_at", "updated_at"}
    taken = await client.call("POST", secrets, {"key": "db/password", "value": "another"}, 409)
    assert "PUT replaces it" in taken["detail"]
    assert await client.get(f"{secrets}/db/password") == created
    assert (await client.get(secrets))["data"] == [created]
    await client.call("PUT", f"{secrets}/db%2Fpassword", {"value": "newer"})
    assert [unseal(client.plane.cipher, data) for data in await sealed(client.plane.database)] == ["newer"]
    made = await client.call("PUT", f"{secrets}/second", {"value": VALUE}, 201)
    assert made["key"] == "second"
    await client.call("DELETE", f"{secrets}/second", expect=204)
    await client.get(f"{secrets}/second", expect=404)
    await client.call("DELETE", f"{secrets}/second", expect=404)


async def test_values_stand_sealed_in_the_database_also_those_that_look_like_references(client: Client) -> None:
    secrets = f"{await store_of(client)}/secrets"
    for key, value in {"plain": VALUE, "reference": "{vault://env/other}"}.items():
        await client.call("POST", secrets, {"key": key, "value": value}, 201)
    payloads = await sealed(client.plane.database)
    assert all(payload.startswith(b"fernet:") for payload in payloads)
    assert {unseal(client.plane.cipher, payload) for payload in payloads} == {VALUE, "{vault://env/other}"}


async def test_a_store_with_secrets_is_deleted_by_force_only(client: Client) -> None:
    path = await store_of(client)
    await client.call("POST", f"{path}/secrets", {"key": "k", "value": VALUE}, 201)
    refused = await client.call("DELETE", path, expect=400)
    assert "is not empty (secrets: 1)" in refused["detail"]
    await client.call("DELETE", path, expect=204, params={"force": "true"})
    assert await sealed(client.plane.database) == []


async def test_stores_and_secrets_go_with_their_control_plane(client: Client) -> None:
    other = await client.another("other")
    path = await store_of(other)
    await other.call("POST", f"{path}/secrets", {"key": "k", "value": VALUE}, 201)
    elsewhere = path.replace(other.id, client.id)
    await client.get(elsewhere, expect=404)
    await client.get(f"{elsewhere}/secrets/k", expect=404)
    await client.call("DELETE", f"/v2/control-planes/{other.id}", expect=204)
    await client.get(path, expect=404)
    assert await sealed(client.plane.database) == []


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({"value": "v"}, "key", "required"),
        ({"key": "k"}, "value", "required"),
        ({"key": "", "value": "v"}, "key", "min_length"),
        ({"key": "k" * 513, "value": "v"}, "key", "max_length"),
        ({"key": "k", "value": ""}, "value", "min_length"),
        ({"key": "k", "value": "v" * 5121}, "value", "max_length"),
        ({"key": "k", "value": 5}, "value", "is_string"),
        ({"key": "k", "value": "v", "vlaue": ""}, "vlaue", "unknown_property"),
        ({"key": "a\0b", "value": "v"}, "key", "invalid"),
    ],
)
async def test_wrong_secrets_are_refused_by_field_without_their_value(
    client: Client, body: dict[str, Any], field: str, rule: str
) -> None:
    secrets = f"{await store_of(client)}/secrets"
    refused = await client.call("POST", secrets, body, 400)
    assert [(item["field"], item["rule"]) for item in refused["invalid_parameters"]] == [(field, rule)]
    assert (await client.get(secrets))["data"] == []


async def test_limits_hold_for_names_and_for_keys_in_the_path(client: Client) -> None:
    for name in ("", "n" * 101):
        await client.call("POST", base(client), {"name": name}, 400)
    secrets = f"{await store_of(client, 'n' * 100)}/secrets"
    await client.call("PUT", f"{secrets}/{'k' * 513}", {"value": "v"}, 400)
    await client.call("PUT", f"{secrets}/{'k' * 512}", {"value": "v" * 5120}, 201)
    await client.get(f"{secrets}/a%00b", expect=404)
    refused = await client.http.post(secrets, content=b"key=k", headers={"content-type": "text/plain"})
    assert refused.status_code == 415
    assert refused.headers["content-type"] == "application/problem+json"


async def test_lists_are_paged_forwards_and_backwards(client: Client) -> None:
    secrets = f"{await store_of(client)}/secrets"
    for number in range(5):
        await client.call("POST", secrets, {"key": f"k{number}", "value": VALUE}, 201)
    seen, url, pages = [], f"{secrets}?page%5Bsize%5D=2", []
    while url is not None:
        page = await client.call("GET", url.removeprefix("http://plane"))
        pages.append(page)
        seen += [item["key"] for item in page["data"]]
        url = page["meta"]["page"]["next"]
    assert seen == [f"k{number}" for number in range(5)]
    assert pages[0]["meta"]["page"]["previous"] is None
    back = await client.call("GET", pages[2]["meta"]["page"]["previous"].removeprefix("http://plane"))
    assert back["data"] == pages[1]["data"]
    await client.get(secrets, {"page[after]": "no cursor"}, 400)
    await client.get(secrets, {"page[size]": "0"}, 400)


async def test_who_may_only_read_changes_nothing(client: Client) -> None:
    path = await store_of(client)
    await client.call("POST", f"{path}/secrets", {"key": "k", "value": VALUE}, 201)
    async with caller(client, "read") as reader:
        assert len((await reader.get(f"{path}/secrets"))["data"]) == 1
        await reader.call("POST", base(client), {"name": "x"}, 403)
        await reader.call("PUT", path, {"name": "x"}, 403)
        await reader.call("DELETE", path, expect=403)
        await reader.call("PUT", f"{path}/secrets/k", {"value": "x"}, 403)
        await reader.call("DELETE", f"{path}/secrets/k", expect=403)


async def test_every_change_has_its_line_and_no_line_has_a_value(client: Client) -> None:
    path = await store_of(client)
    await client.call("PUT", path, {"name": "renamed"})
    await client.call("POST", f"{path}/secrets", {"key": "k", "value": VALUE}, 201)
    await client.call("PUT", f"{path}/secrets/k", {"value": VALUE + "!"})
    await client.call("DELETE", f"{path}/secrets/k", expect=204)
    await client.call("DELETE", path, expect=204)
    query = {"control_plane_id": client.id, "size": "6"}
    told = (await client.get("/v2/audit-logs", query))["data"]
    assert [(line["action"], line["entity"]["type"], line["entity"]["name"]) for line in told] == [
        ("delete", "config_stores", "renamed"),
        ("delete", "config_store_secrets", "k"),
        ("update", "config_store_secrets", "k"),
        ("create", "config_store_secrets", "k"),
        ("update", "config_stores", "renamed"),
        ("create", "config_stores", "main"),
    ]
    assert VALUE not in str(told)


async def test_a_rotated_key_covers_them(tmp_path: Path, database_url: str) -> None:
    settings = Settings(tmp_path, database_url, grpc_port=0, admin_token=TOKEN)
    async with running_client(tmp_path, database_url) as client:
        path = await store_of(client)
        await client.call("POST", f"{path}/secrets", {"key": "k", "value": VALUE}, 201)
        await rotate_key(settings, say=lambda _: None)
        new, old = read_keys(settings)
        (payload,) = await sealed(client.plane.database)
        token = payload.decode().removeprefix("fernet:")
        assert (opened_by(old, [token]), opened_by(new, [token])) == (0, 1)
        assert unseal(client.plane.cipher, payload) == VALUE


async def test_the_revision_goes_up_and_down_and_leaves_the_rest(empty_url: str) -> None:
    def go(connection: Connection, revision: str, step: Any = command.upgrade) -> None:
        config = Config()
        config.set_main_option("script_location", "migrations:")
        config.attributes["connection"] = connection
        step(config, revision)

    def tables(connection: Connection) -> set[str]:
        return set(inspect(connection).get_table_names())

    new = {"config_stores", "config_store_secrets", "control_plane_members"}
    database = Database(empty_url)
    try:
        async with database.engine.begin() as connection:
            await connection.run_sync(go, "0006")
            before = await connection.run_sync(tables)
            await connection.run_sync(go, "0007")
            assert await connection.run_sync(tables) == before | new
            await connection.run_sync(go, "0006", command.downgrade)
            assert await connection.run_sync(tables) == before
    finally:
        await database.close()
