"""The audit log: a line for every change, in its transaction; who, what, when, from where; never a secret."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import event, func, select

from control_plane import audit
from control_plane.models import AUDIT_LOG
from control_plane.throttle import MOST_TOLD
from tests.control_plane.callers import bearing, caller, make_token
from tests.control_plane.client import Client

SECRET = "sk-the-secret-key"


async def lines(client: Client, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/v2/audit-logs", query))["data"]
    return found


async def count(client: Client) -> int:
    async with client.plane.database.reading() as session:
        return (await session.execute(select(func.count()).select_from(AUDIT_LOG))).scalar_one()


async def test_each_write_of_an_entity_says_who_what_and_from_where(client: Client) -> None:
    made = await make_token(client, name="robot", kind="system-account")
    robot = bearing(client, made["token"])
    created = await robot.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    await robot.call("PATCH", f"services/{created['id']}", {"host": "b.test", "tags": ["x"]})
    await robot.call("DELETE", "services/s", expect=204)
    await robot.call("DELETE", "services/s", expect=204)
    told = await lines(client, principal="robot")
    assert [line["action"] for line in told] == ["delete", "update", "create"]
    for line in told:
        assert line["principal"] == {"id": made["id"], "name": "robot"}
        assert line["client_address"] == "127.0.0.1"
        assert line["control_plane_id"] == client.id
        assert line["entity"] == {"type": "services", "id": created["id"], "name": "s"}
        assert line["outcome"] == "done"
    assert told[1]["details"] == {"fields": ["host", "tags"]}
    assert told[0]["at"] >= told[2]["at"]


async def test_control_planes_certificates_and_tokens_have_lines_too(client: Client) -> None:
    other = await client.another("other")
    await client.call("PATCH", f"/v2/control-planes/{other.id}", {"description": "d", "labels": {"a": "b"}})
    await client.call("DELETE", f"/v2/control-planes/{other.id}", expect=204)
    token = await make_token(client, name="short-lived")
    await client.call("DELETE", f"/v2/tokens/{token['id']}", expect=204)
    told = await lines(client, entity_type="control_planes", control_plane_id=other.id)
    assert [(line["action"], line["entity"]["name"]) for line in told] == [
        ("delete", "other"),
        ("update", "other"),
        ("create", "other"),
    ]
    assert told[1]["details"] == {"fields": ["description", "labels"]}
    told = await lines(client, entity_type="tokens", entity_name="short-lived")
    assert [line["action"] for line in told] == ["revoke", "create"]
    assert told[1]["details"]["scopes"] == ["read", "write", "reveal"]
    assert token["token"] not in str(told)


async def test_an_apply_has_one_line_with_counts_and_one_for_each_entity(client: Client) -> None:
    document = {
        "_format_version": "3.0",
        "services": [{"name": "s", "host": "a.test"}],
        "consumers": [{"username": "bob", "keyauth_credentials": [{"key": SECRET}]}],
    }
    await client.apply(document)
    (summary,) = await lines(client, action="apply")
    assert (summary["details"]["mode"], summary["control_plane_id"]) == ("sync", client.id)
    assert sum(value for key, value in summary["details"].items() if key == "creating") == 3
    told = await lines(client, action="create", control_plane_id=client.id)
    assert {line["entity"]["type"] for line in told} >= {"services", "consumers", "keyauth_credentials"}
    before = await count(client)
    await client.apply(document)
    assert await count(client) == before, "an apply that changes nothing leaves no line"
    await client.apply(document, commit=False, mode="reset")
    assert await count(client) == before, "a plan leaves no line"
    assert SECRET not in str(await lines(client, size="1000"))


async def test_a_large_apply_writes_a_bounded_number_of_lines(client: Client) -> None:
    many = audit.MAX_ENTITY_LINES + 20
    await client.apply({"_format_version": "3.0", "consumers": [{"username": f"c{n}"} for n in range(many)]})
    told = await lines(client, control_plane_id=client.id, action="change")
    assert [line["details"] for line in told] == [{"further_entities": 20}]
    assert await count(client) < many


async def test_a_change_that_fails_leaves_no_line(client: Client) -> None:
    before = await count(client)
    await client.call("POST", "services", {"name": "s"}, 400)

    def fail(_: Any) -> None:
        raise RuntimeError("the disk is full")

    engine = client.plane.database.engine.sync_engine
    event.listen(engine, "commit", fail)
    try:
        await client.call("POST", "services", {"name": "s", "host": "a.test"}, 500)
        await client.call("POST", "/v2/tokens", {"name": "t"}, 500)
    finally:
        event.remove(engine, "commit", fail)
    assert await count(client) == before


async def test_refused_tokens_are_told_once_a_minute_and_never_by_value(client: Client) -> None:
    guesses = [f"kpat_a_guess_of_{number}" for number in range(14)]
    for guess in guesses:
        await bearing(client, guess).http.get("/v3/users/me")
    told = await lines(client, action="login")
    assert [line["outcome"] for line in told] == ["throttled", "refused"]
    assert told[0]["details"] == {"reason": "unknown token", "path": "/v3/users/me"}
    assert not any(guess in str(told) for guess in guesses)


async def test_a_token_that_tries_what_it_may_not_is_told(client: Client) -> None:
    async with caller(client, "read", name="curious") as curious:
        for _ in range(3):
            await curious.call("DELETE", f"/v2/control-planes/{client.id}", expect=403)
    (line,) = await lines(client, outcome="denied")
    assert line["principal"]["name"] == "curious"
    assert line["details"]["method"] == "DELETE"


async def test_a_key_in_a_path_is_in_no_line(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """API keys may stand where an id could: paths are told with a parameter in their place."""
    path = f"/v2/control-planes/{client.id}/core-entities/key-auths"
    async with caller(client, "read") as reader:
        await reader.call("DELETE", f"key-auths/{SECRET}", expect=403)
        await reader.call("PATCH", f"/admin/first/key-auths/{SECRET}", {}, 403)
    await bearing(client, "kpat_nobody").get(f"key-auths/{SECRET}", expect=401)
    told = await lines(client)
    assert SECRET not in str(told)
    assert [line["details"]["path"] for line in told if line["outcome"] != "done"] == [
        f"{path}/{{key}}",
        "/admin/first/key-auths/{key}",
        f"{path}/{{key}}",
    ]

    def fail(_: Any) -> None:
        raise RuntimeError("the disk is full")

    engine = client.plane.database.engine.sync_engine
    event.listen(engine, "commit", fail)
    try:
        await client.call("PUT", f"consumers/c/key-auth/{SECRET}", {}, 404)
        await client.call("PUT", f"consumers/{SECRET}", {}, 500)
    finally:
        event.remove(engine, "commit", fail)
    (line,) = [line for line in caplog.messages if "failed" in line]
    assert line.startswith(f"PUT /v2/control-planes/{client.id}/core-entities/consumers/{{key}} failed")


async def test_attempts_beyond_a_tokens_rights_are_told_wherever_they_are_found_out(client: Client) -> None:
    other = await client.another("other")
    apply = f"/v2/control-planes/{client.id}/apply"
    attempts: list[tuple[str, str, Any]] = [
        ("POST", "/v2/tokens", {"name": "t", "scopes": ["write"]}),
        ("POST", "/v2/tokens", {"name": "t", "scopes": ["read"], "control_plane_id": other.id}),
        ("POST", "/v2/tokens", {"name": "t", "scopes": ["read"], "expires_at": "9999-01-01T00:00:00Z"}),
        ("POST", apply, {"commit": True}),
        ("POST", apply, {"include_secrets": True}),
        ("GET", f"/v2/audit-logs?control_plane_id={other.id}", None),
    ]
    for number, (method, path, body) in enumerate(attempts):
        rights = {"control_plane_id": client.id, "expires_at": "2099-01-01T00:00:00Z"}
        async with caller(client, "read", "admin", name=f"curious {number}", **rights) as curious:
            await curious.call(method, path, body, 403)
        (line,) = await lines(client, outcome="denied", principal=f"curious {number}")
        assert line["details"]["path"] == path.partition("?")[0]


async def test_strangers_do_not_use_up_what_is_told_of_others(client: Client) -> None:
    for number in range(MOST_TOLD):
        client.plane.throttle.tells("login", f"refused 192.0.2.{number}")
    async with caller(client, "read") as curious:
        await curious.call("DELETE", f"/v2/control-planes/{client.id}", expect=403)
    assert len(await lines(client, outcome="denied")) == 1


async def test_pages_meet_each_line_once_while_the_log_grows(client: Client) -> None:
    for number in range(12):
        await client.call("POST", "consumers", {"username": f"c{number}"}, 201)
    seen: list[str] = []
    cursor: Any = None
    while True:
        query = {"entity_type": "consumers", "size": "5"} | ({"cursor": str(cursor)} if cursor is not None else {})
        page = await client.get("/v2/audit-logs", query)
        seen += [line["entity"]["name"] for line in page["data"]]
        cursor = page["next"]
        await client.call("POST", "services", {"host": "a.test"}, 201)
        await client.call("POST", "consumers", {"username": f"later-{len(seen)}"}, 201)
        if cursor is None:
            break
    assert seen == [f"c{number}" for number in reversed(range(12))]


async def test_a_time_range_is_from_start_to_before_end(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    (line,) = await lines(client, entity_name="s")
    assert await lines(client, start="2001-01-01T00:00:00Z", end="2001-01-02T00:00:00+02:00") == []
    assert line in await lines(client, start="2001-01-01", end="2999-01-01")
    assert await lines(client, start="2999-01-01T00:00:00Z") == []


@pytest.mark.parametrize("query", [{"start": "soon"}, {"size": "0"}, {"size": "1001"}, {"cursor": "x"}])
async def test_a_wrong_query_is_refused(client: Client, query: dict[str, str]) -> None:
    refused = await client.get("/v2/audit-logs", query, expect=400)
    assert refused["invalid_parameters"][0]["field"] == next(iter(query))


async def test_a_nul_in_a_query_finds_nothing(client: Client) -> None:
    assert await lines(client, entity_name="\0nobody") == []


async def test_lines_past_their_time_go(client: Client) -> None:
    await client.call("POST", "services", {"name": "s", "host": "a.test"}, 201)
    now_us = time.time_ns() // 1000
    await audit.prune(client.plane.database, now_us - 3_600_000_000)
    assert await count(client) > 0
    await audit.prune(client.plane.database, now_us + 1)
    assert await count(client) == 0


def test_changed_fields_are_named_without_their_values() -> None:
    old = {"name": "a", "config": {"key": "one", "same": 1, "gone": 2}, "tags": ["x"]}
    new = {"name": "a", "config": {"key": "two", "same": 1, "come": None}, "url": "u"}
    assert audit.changed_fields(old, new) == ["config.come", "config.gone", "config.key", "tags", "url"]
