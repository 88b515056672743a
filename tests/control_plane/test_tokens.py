"""Tokens: made, listed and revoked; what each scope allows, on which control planes, until when."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, Connection, column, insert, select, table, update

from control_plane.api.exchange import rfc3339
from control_plane.app import create_app
from control_plane.auth import SCOPES
from control_plane.database import Database
from control_plane.models import Token
from control_plane.plane import ControlPlane
from control_plane.settings import Settings
from tests.control_plane.callers import bearing, caller, make_token
from tests.control_plane.client import TOKEN, Client

SECRET = "sk-the-secret-key"
DOCUMENT = {
    "_format_version": "3.0",
    "services": [{"name": "s", "host": "a.test"}],
    "consumers": [{"username": "bob", "keyauth_credentials": [{"key": SECRET}]}],
}
LATER = "2099-01-01T00:00:00Z"


async def test_a_token_is_shown_once_and_kept_as_a_digest(client: Client) -> None:
    made = await make_token(client, name="ci", kind="system-account", expires_at=LATER)
    assert made["token"].startswith("spat_")
    assert made["scopes"] == ["read", "write"]
    assert made["expires_at"] == "2099-01-01T00:00:00.000Z"
    assert made["created_by"] == "TANDEM_ADMIN_TOKEN"
    listed = await client.get("/v2/tokens")
    assert {item["name"] for item in listed["data"]} == {"TANDEM_ADMIN_TOKEN", "ci"}
    assert listed["meta"]["page"]["total"] == 2
    shown = await client.get(f"/v2/tokens/{made['id']}")
    for answer in (listed, shown):
        assert made["token"] not in str(answer)
        assert "digest" not in str(answer)
    async with client.plane.database.engine.connect() as connection:
        assert made["token"] not in str((await connection.exec_driver_sql("SELECT * FROM tokens")).all())


async def test_a_personal_token_sees_secrets_unless_told_otherwise(client: Client) -> None:
    """decK compares what it reads with its files: with masks its second diff would never be empty."""
    made = await make_token(client)
    assert made["token"].startswith("kpat_")
    assert made["scopes"] == ["read", "write", "reveal"]
    assert (await make_token(client, scopes=["write"]))["scopes"] == ["read", "write"]


async def test_a_token_works_until_it_is_revoked(client: Client) -> None:
    made = await make_token(client, scopes=["read"])
    other = bearing(client, made["token"])
    assert (await other.get("/v2/tokens/me"))["id"] == made["id"]
    await client.call("DELETE", f"/v2/tokens/{made['id']}", expect=204)
    assert (await other.get("services", expect=401))["detail"] == "A valid token is required"
    await client.call("DELETE", f"/v2/tokens/{made['id']}", expect=404)


async def test_an_expired_token_hears_that_it_expired(client: Client) -> None:
    made = await make_token(client, expires_at=LATER)
    async with client.plane.database.writing() as session:
        past = int(datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp())
        await session.execute(update(Token).where(Token.id == made["id"]).values(expires_at=past))
    refused = await bearing(client, made["token"]).get("services", expect=401)
    assert refused["message"] == "this token expired at 2024-01-02T03:04:05Z"
    assert (await client.get(f"/v2/tokens/{made['id']}"))["state"] == "expired"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["everything"]}, "scopes.0"),
        ({"name": "a", "kind": "robot"}, "kind"),
        ({"name": "a", "expires_at": "soon"}, "expires_at"),
        ({"name": "a", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": "0001-01-01T00:00:00+01:00"}, "expires_at"),
        ({"name": "a", "expires_at": "9999-12-31T23:59:59-01:00"}, "expires_at"),
        ({"name": "a", "digest": "x"}, "digest"),
        ({"name": "TANDEM_ADMIN_TOKEN"}, "name"),
    ],
)
async def test_a_wrong_token_is_refused_by_field(client: Client, body: dict[str, Any], field: str) -> None:
    refused = await client.call("POST", "/v2/tokens", body, 400)
    assert [item["field"] for item in refused["invalid_parameters"]] == [field]


async def test_a_token_may_last_as_long_as_its_end_can_be_written(client: Client) -> None:
    made = await make_token(client, expires_at="9999-12-31T23:59:59Z")
    assert made["expires_at"] == "9999-12-31T23:59:59.000Z"
    refused = await make_token(client, 400, expires_at="9999-12-31T23:59:59-00:01")
    assert "expires_at: must lie before the year 10000 in UTC" in refused["message"]


# -- scopes


async def test_each_scope_allows_its_own_and_no_more(client: Client) -> None:
    created = await client.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    apply = f"/v2/control-planes/{client.id}/apply"
    needs: dict[str, list[tuple[str, str, Any, int]]] = {
        "read": [
            ("GET", "services", None, 200),
            ("GET", f"services/{created['id']}", None, 200),
            ("GET", f"/v2/control-planes/{client.id}", None, 200),
            ("GET", f"/v2/control-planes/{client.id}/nodes", None, 200),
            ("GET", f"/v2/control-planes/{client.id}/dp-client-certificates", None, 200),
            ("GET", f"/v2/control-planes/{client.id}/document", None, 200),
            ("GET", "/v2/control-planes", None, 200),
            ("GET", "/konnect-api/api/runtime_groups", None, 200),
            ("GET", "/v3/users/me", None, 200),
            ("POST", apply, {"document": DOCUMENT, "mode": "apply"}, 200),
            ("POST", "/v2/metrics", {}, 200),
            ("POST", "/v2/api-requests", {}, 200),
        ],
        "write": [
            ("PATCH", f"services/{created['id']}", {"host": "b.test"}, 200),
            ("PUT", f"services/{created['id']}", {"name": "s", "host": "c.test"}, 200),
            ("POST", apply, {"document": DOCUMENT, "mode": "apply", "commit": True}, 200),
            ("DELETE", f"services/{created['id']}", None, 204),
            ("POST", f"/v2/control-planes/{client.id}/dp-client-certificates", {"cert": "x"}, 400),
            ("DELETE", f"/v2/control-planes/{client.id}/nodes/{client.id}", None, 404),
        ],
        "admin": [
            ("GET", "/v2/tokens", None, 200),
            ("GET", "/v2/audit-logs", None, 200),
            ("POST", "/v2/tokens", {"name": "t", "scopes": ["read"]}, 201),
            ("POST", "/v2/control-planes", {"name": "another"}, 201),
            ("PATCH", f"/v2/control-planes/{client.id}", {"description": "d"}, 200),
        ],
    }
    for scope in ("read", "admin", "write"):
        async with caller(client, scope) as less:
            for needed, calls in needs.items():
                for method, path, body, status in calls:
                    allowed = needed in ("read", scope)
                    answer = await less.call(method, path, body, status if allowed else 403)
                    if not allowed:
                        assert answer["missing_scope"] == needed
                        assert f"lacks the scope '{needed}'" in answer["message"]


async def test_secrets_are_masked_for_whoever_may_not_see_them(client: Client) -> None:
    await client.apply(DOCUMENT)
    async with caller(client, "read", "write") as machine, caller(client, "read", "reveal") as auditor:
        assert (await machine.get("key-auths"))["data"][0]["key"] == "[masked]"
        assert SECRET not in str(await machine.dump())
        assert (await auditor.get("key-auths"))["data"][0]["key"] == SECRET
        assert SECRET in str(await auditor.dump())
        written = await machine.call("POST", "consumers/bob/key-auth", {"key": "another-secret"}, 201)
        assert written["key"] == "[masked]"
        changed = {**DOCUMENT, "consumers": []}
        plan = await machine.apply(changed)
        assert SECRET not in str(plan)
        refused = await machine.apply(DOCUMENT, 403, include_secrets=True)
        assert "lacks the scope 'reveal'" in refused["message"]


async def test_a_mask_that_is_written_back_is_refused_and_the_secret_stays(client: Client) -> None:
    """Keeping "what was there" would hand a secret to another address when a list was reordered."""
    target = {
        "route_type": "llm/v1/chat",
        "auth": {"header_name": "Authorization", "header_value": "Bearer sk-real"},
        "model": {"provider": "openai", "name": "gpt-4o"},
    }
    plugin = {"name": "ai-proxy-advanced", "config": {"targets": [target]}}
    created = await client.call("POST", "plugins", plugin, 201)
    await client.apply({"_format_version": "3.0", "consumers": DOCUMENT["consumers"]}, mode="apply")
    async with caller(client, "read", "write") as machine:
        shown = await machine.get(f"plugins/{created['id']}")
        assert "sk-real" not in str(shown)
        for method in ("PUT", "PATCH"):
            refused = await machine.call(method, f"plugins/{created['id']}", {**shown, "enabled": False}, 400)
            assert "config.targets[0].auth.header_value: holds the mask of a secret" in refused["message"]
        document = await machine.dump()
        refused = await machine.apply(document, 400)
        assert any("holds the mask" in error["message"] for error in refused["errors"])
        await machine.call("PATCH", f"plugins/{created['id']}", {"enabled": False})
    kept = await client.get(f"plugins/{created['id']}")
    assert kept["enabled"] is False
    assert kept["config"]["targets"][0]["auth"]["header_value"] == "Bearer sk-real"


# -- one control plane


async def test_a_limited_token_sees_and_changes_its_own_control_plane_only(client: Client) -> None:
    other = await client.another("other")
    async with caller(client, *SCOPES, control_plane_id=client.id) as limited:
        await limited.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
        for path in ("/v2/control-planes", "/konnect-api/api/runtime_groups", "/konnect-api/api/runtime_groups?page=1"):
            assert [item["id"] for item in (await limited.get(path))["data"]] == [client.id]
        base = f"/v2/control-planes/{other.id}"
        for method, path in (
            ("GET", base),
            ("DELETE", base),
            ("GET", f"{base}/core-entities/services"),
            ("POST", f"{base}/core-entities/services"),
            ("POST", f"{base}/apply"),
            ("GET", f"{base}/document"),
            ("GET", f"{base}/nodes"),
            ("POST", f"{base}/dp-client-certificates"),
            ("GET", f"/v2/audit-logs?control_plane_id={other.id}"),
        ):
            refused = await limited.call(method, path, {} if method == "POST" else None, 403)
            assert refused["limited_to"] == client.id
        await limited.call("POST", "/v2/control-planes", {"name": "third"}, 403)
        upper = await limited.get(f"/v2/control-planes/{client.id.upper()}/core-entities/services")
        assert len(upper["data"]) == 1
    await client.call("DELETE", base, expect=204)


async def test_the_tokens_of_a_control_plane_go_with_it(client: Client) -> None:
    other = await client.another("other")
    made = await make_token(client, control_plane_id=other.id)
    await client.call("DELETE", f"/v2/control-planes/{other.id}", expect=204)
    await bearing(client, made["token"]).get("/v3/users/me", expect=401)


async def test_every_path_with_a_token_refuses_a_limited_one_elsewhere(client: Client) -> None:
    """Also those that are added later: what names no control plane is closed to a limited token until it says so."""
    made = await make_token(client, scopes=list(SCOPES), control_plane_id=client.id)
    limited = bearing(client, made["token"])
    other = "00000000-0000-4000-8000-000000000000"
    narrowing = {
        *("/v2/control-planes", "/konnect-api/api/runtime_groups", "/v2/organizations/me", "/v3/organizations/me"),
        *("/v3/users/me", "/v2/metrics", "/v2/api-requests", "/v2/audit-logs", "/metrics"),
        *("/v2/tokens", "/v2/tokens/me", "/v2/tokens/{token_id}"),
    }
    open_to_all = {"/health", "/v3/available-regions"}
    document = (await client.http.get("/openapi.json")).json()
    for template, methods in document["paths"].items():
        path = template.replace("{control_plane_id}", other)
        for name in ("parent", "key", "certificate_id", "node_id", "token_id", "store_id"):
            path = path.replace(f"{{{name}}}", other)
        for method in methods:
            nobody = await client.http.request(method, path, headers={"authorization": ""})
            assert nobody.status_code == (200 if template in open_to_all else 401), (method, template)
            if template in open_to_all or (template in narrowing and method != "post"):
                continue
            response = await limited.http.request(method, path)
            expected = {403} if template not in narrowing else {403, 400, 200}
            assert response.status_code in expected, (method, template, response.text)


async def test_nobody_gives_what_they_lack(client: Client) -> None:
    other = await client.another("other")
    async with caller(client, "read", "admin", control_plane_id=client.id) as clerk:
        refused = await make_token(clerk, 403, scopes=["write"])
        assert refused["missing_scope"] == "write"
        refused = await make_token(clerk, 403, scopes=["read"], control_plane_id=other.id)
        assert refused["limited_to"] == client.id
        made = await make_token(clerk)
        assert made["scopes"] == ["read"]
        assert made["control_plane_id"] == client.id
        assert {item["control_plane_id"] for item in (await clerk.get("/v2/tokens"))["data"]} == {client.id}
        admin = next(t for t in (await client.get("/v2/tokens"))["data"] if t["control_plane_id"] is None)
        await clerk.call("DELETE", f"/v2/tokens/{admin['id']}", expect=404)
    missing = await make_token(client, 404, control_plane_id="00000000-0000-4000-8000-000000000000")
    assert "control plane" in missing["message"]


async def test_nothing_outlives_its_maker(client: Client) -> None:
    until = "2099-01-01T00:00:00Z"
    async with caller(client, *SCOPES, expires_at=until) as mortal:
        assert (await make_token(mortal))["expires_at"] == "2099-01-01T00:00:00.000Z"
        assert (await make_token(mortal, expires_at="2098-01-01T00:00:00Z"))["expires_at"].startswith("2098")
        await make_token(mortal, expires_at=until)
        refused = await make_token(mortal, 403, expires_at="2099-01-01T00:00:01Z")
        assert "expires_at must be no later than 2099-01-01T00:00:00.000Z" in refused["message"]


def starting(state: Path, url: str, token: str = "") -> Settings:
    return Settings(state, url, grpc_port=0, admin_token=token)


@contextlib.asynccontextmanager
async def started(state: Path, url: str, token: str = "") -> AsyncIterator[Client]:
    """A start with this value in TANDEM_ADMIN_TOKEN: a client that bears it or, without one, what the start made."""
    async with ControlPlane(starting(state, url, token)).running() as plane:
        headers = {"authorization": f"Bearer {token or (state / 'admin.token').read_text()}"}
        transport = httpx.ASGITransport(create_app(plane), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://plane", headers=headers) as http:
            yield Client(plane, http)


async def test_the_last_token_that_may_make_tokens_stays(tmp_path: Path, database_url: str) -> None:
    async with started(tmp_path, database_url) as client:
        (first,) = (await client.get("/v2/tokens"))["data"]
        soon = rfc3339((int(time.time()) + 600) * 1000)
        await make_token(client, scopes=["admin"], expires_at=soon)
        refused = await client.call("DELETE", f"/v2/tokens/{first['id']}", expect=409)
        assert "make another first" in refused["message"]
        heir = await make_token(client, scopes=["admin"])
        await bearing(client, heir["token"]).call("DELETE", f"/v2/tokens/{first['id']}", expect=204)


async def test_the_last_two_cannot_revoke_each_other(tmp_path: Path, database_url: str) -> None:
    async with started(tmp_path, database_url) as client:
        for _ in range(8):
            (last,) = (await client.get("/v2/tokens"))["data"]
            heir = await make_token(client, scopes=["admin"])
            other = bearing(client, heir["token"])
            one, two = await asyncio.gather(
                client.http.delete(f"/v2/tokens/{heir['id']}"), other.http.delete(f"/v2/tokens/{last['id']}")
            )
            assert sorted([one.status_code, two.status_code])[0] == 204
            assert sorted([one.status_code, two.status_code])[1] in (401, 409)
            client = client if one.status_code == 204 else other


async def test_a_token_is_revoked_once(client: Client) -> None:
    for _ in range(8):
        made = await make_token(client)
        gone = await asyncio.gather(*(client.http.delete(f"/v2/tokens/{made['id']}") for _ in range(2)))
        assert sorted(answer.status_code for answer in gone) == [204, 404]
    assert len((await client.get("/v2/audit-logs", {"action": "revoke"}))["data"]) == 8


async def test_the_token_of_the_variable_is_valid_for_as_long_as_the_variable_holds_it(
    tmp_path: Path, database_url: str
) -> None:
    async with started(tmp_path, database_url, "kpat_of-the-variable") as client:
        (shown,) = (await client.get("/v2/tokens"))["data"]
        heir = await make_token(client, scopes=["admin"], name="heir")
        refused = await client.call("DELETE", f"/v2/tokens/{shown['id']}", expect=409)
        assert "change or unset the variable" in refused["message"]
    async with started(tmp_path, database_url, "kpat_another-one") as client:
        await bearing(client, "kpat_of-the-variable").get("/v3/users/me", expect=401)
    async with ControlPlane(starting(tmp_path, database_url)).running() as plane:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(plane)), base_url="http://plane")
        client = bearing(Client(plane, http), heir["token"])
        await bearing(client, "kpat_another-one").get("/v3/users/me", expect=401)
        assert [item["name"] for item in (await client.get("/v2/tokens"))["data"]] == ["heir"]
        assert not (tmp_path / "admin.token").exists()


async def test_a_start_makes_a_token_when_nobody_is_left_who_may(tmp_path: Path, database_url: str) -> None:
    async with started(tmp_path, database_url) as client:
        before = client.http.headers["authorization"]
        await make_token(client, scopes=["read", "write"])
        await make_token(client, scopes=["admin"], control_plane_id=(await client.another("first")).id)
        async with client.plane.database.writing() as session:
            await session.execute(update(Token).where(Token.created_by == "").values(expires_at=1))
    async with started(tmp_path, database_url) as client:
        assert client.http.headers["authorization"] != before
        await make_token(client, scopes=["admin"])


async def test_a_start_that_fails_ends_no_token(tmp_path: Path, database_url: str) -> None:
    async with started(tmp_path, database_url, "kpat_of-the-variable") as client:
        assert client.plane.wire is not None
        taken = replace(starting(tmp_path, database_url), grpc_port=client.plane.wire.port)
        with pytest.raises(OSError, match="in use"):
            await contextlib.AsyncExitStack().enter_async_context(ControlPlane(taken).running())
        await client.get("/v3/users/me")


@pytest.mark.parametrize("scopes", [["read"], ["read", "write", "reveal", "admin"]])
async def test_a_token_whose_value_the_variable_takes_is_the_variables(
    tmp_path: Path, database_url: str, scopes: list[str]
) -> None:
    async with started(tmp_path, database_url) as client:
        made = await make_token(client, scopes=scopes)
    async with started(tmp_path, database_url, made["token"]) as client:
        assert sorted((await client.get("/v2/tokens/me"))["scopes"]) == ["admin", "read", "reveal", "write"]
    async with started(tmp_path, database_url, "kpat_another-one") as client:
        await bearing(client, made["token"]).get("/v3/users/me", expect=401)


async def test_a_token_that_somebody_called_like_the_variable_is_theirs(tmp_path: Path, database_url: str) -> None:
    """No one can now; tokens that are called so from before must not vanish."""
    async with started(tmp_path, database_url) as client:
        made = await make_token(client)
        async with client.plane.database.writing() as session:
            await session.execute(update(Token).where(Token.id == made["id"]).values(name="TANDEM_ADMIN_TOKEN"))
    async with started(tmp_path, database_url, "kpat_of-the-variable") as client:
        await bearing(client, made["token"]).get("/v3/users/me")


# -- throttling


async def test_wrong_tokens_end_in_429_and_a_valid_one_always_passes(client: Client) -> None:
    wrong = [bearing(client, f"kpat_guess_{number}") for number in range(14)]
    statuses = [(await guess.http.get("/v3/users/me")).status_code for guess in wrong]
    assert statuses == [401] * 10 + [429] * 4
    throttled = await wrong[-1].http.get("/v3/users/me")
    assert 1 <= int(throttled.headers["retry-after"]) <= 2
    assert throttled.headers["content-type"] == "application/problem+json"
    assert throttled.json()["status"] == 429
    fresh = await make_token(client, scopes=["read"])
    await bearing(client, fresh["token"]).get("services")
    assert client.http.headers["authorization"] == f"Bearer {TOKEN}"
    await client.get("services")


async def test_a_request_without_a_token_is_no_guess(client: Client) -> None:
    for _ in range(30):
        assert (await client.http.get("/v3/users/me", headers={"authorization": ""})).status_code == 401


async def test_a_request_with_many_tokens_is_refused_before_they_are_looked_up(client: Client) -> None:
    async def send(count: int) -> httpx.Response:
        tokens = [("kong-admin-token", f"kpat_guess_{number}") for number in range(count)]
        return await client.http.get("/v3/users/me", headers=[("authorization", ""), *tokens])

    refused = await send(2000)
    assert refused.status_code == 400
    assert "at most 4 tokens, not 2000" in refused.json()["message"]
    assert [(await send(4)).status_code for _ in range(3)] == [401, 401, 429]


async def test_an_address_that_is_none_is_remembered_in_short(client: Client) -> None:
    """Behind a proxy the address is whatever the client wrote into a header."""
    transport = httpx.ASGITransport(client.http._transport.app, client=("x" * 60_000, 1))  # type: ignore[attr-defined]
    async with httpx.AsyncClient(transport=transport, base_url="http://plane") as http:
        await http.get("/v3/users/me", headers={"authorization": "Bearer kpat_guess"})
    (line,) = (await client.get("/v2/audit-logs", {"action": "login"}))["data"]
    assert line["client_address"] == "x" * 64


# -- tokens of before


async def test_tokens_from_before_keep_what_they_could_do(empty_url: str) -> None:
    """There was no `reveal`: whoever could write saw secrets."""

    def go(connection: Connection, revision: str, step: Any = command.upgrade) -> None:
        config = Config()
        config.set_main_option("script_location", "migrations:")
        config.attributes["connection"] = connection
        step(config, revision)

    old = table("tokens", *(column(name) for name in ("id", "name", "digest", "expires_at", "created_at")))
    old.append_column(column("scopes", JSON))
    before = {"r": ["read"], "w": ["write"], "a": ["admin"]}
    database = Database(empty_url)
    try:
        async with database.engine.begin() as connection:
            await connection.run_sync(go, "0003")
            for name, scopes in before.items():
                row = {"id": name, "name": name, "digest": name, "scopes": scopes, "created_at": 0}
                await connection.execute(insert(old), row)
            await connection.run_sync(go, "0004")
            after = dict((await connection.execute(select(old.c.name, old.c.scopes))).all())
            assert {name: set(scopes) for name, scopes in after.items()} == {
                "r": {"read"},
                "w": {"read", "write", "reveal"},
                "a": set(SCOPES),
            }
            await connection.run_sync(go, "0003", command.downgrade)
            assert dict((await connection.execute(select(old.c.name, old.c.scopes))).all()) == before
    finally:
        await database.close()
