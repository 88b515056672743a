from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from tests.cli.conftest import Recipe
from tests.cli.fakes import FakeControlPlane

VALUE = "kpat_the_value_that_is_shown_once"
ID = "11111111-2222-4333-8444-555555555555"


def token(**more: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "name": "ci",
        "kind": "system-account",
        "scopes": ["read", "write"],
        "control_plane_id": None,
        "state": "active",
        "expires_at": "2099-01-02T03:04:05.000Z",
        "created_by": "TANDEM_ADMIN_TOKEN",
        "created_at": "2026-01-01T00:00:00.000Z",
        **more,
    }


def line(**more: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "at": "2026-01-31T12:00:00.123Z",
        "principal": {"id": ID, "name": "ci"},
        "client_address": "192.0.2.7",
        "action": "update",
        "outcome": "done",
        "control_plane_id": ID,
        "entity": {"type": "services", "id": ID, "name": "chat"},
        "details": {"fields": ["host", "tags"]},
        **more,
    }


def tokens(plane: FakeControlPlane, *found: dict[str, Any]) -> None:
    plane.answers["GET", "/v2/tokens"] = (200, {"data": list(found), "meta": {}})


def test_the_value_of_a_new_token_is_all_that_stdout_gets(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.answers["POST", "/v2/tokens"] = (201, token(token=VALUE))
    result = recipe(
        "token", "create", "ci", "--scope", "read", "--scope", "write", "--system-account", "--only", "default"
    )
    assert result.code == 0
    assert result.out == f"{VALUE}\n"
    assert VALUE not in result.err
    assert "not shown again" in result.err
    (sent,) = plane.sent("POST", "/v2/tokens")
    days = datetime.datetime.fromisoformat(sent.pop("expires_at")) - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=89) < days <= datetime.timedelta(days=90)
    assert sent == {
        "name": "ci",
        "kind": "system-account",
        "scopes": ["read", "write"],
        "control_plane_id": plane.control_planes["default"],
    }


def test_scopes_and_expiry_can_be_left_to_the_control_plane(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.answers["POST", "/v2/tokens"] = (201, token(token=VALUE, expires_at=None))
    result = recipe("token", "create", "me", "--expires", "never", "--json-output")
    assert json.loads(result.out)["token"] == VALUE
    assert plane.sent("POST", "/v2/tokens") == [{"name": "me", "kind": "personal"}]


@pytest.mark.parametrize(("text", "message"), [("soon", "expected 30d"), ("2001-01-01", "has passed")])
def test_a_wrong_expiry_is_refused_before_anything_is_made(
    recipe: Recipe, plane: FakeControlPlane, text: str, message: str
) -> None:
    result = recipe("token", "create", "ci", "--expires", text)
    assert result.code == 1
    assert message in result.err
    assert plane.sent("POST", "/v2/tokens") == []


def test_tokens_are_listed_with_what_they_may(recipe: Recipe, plane: FakeControlPlane) -> None:
    limited = token(name="old", control_plane_id=plane.control_planes["default"], state="expired")
    tokens(plane, token(), limited)
    head, first, second = recipe("token", "list").out.splitlines()
    assert head.split() == ["ID", "NAME", "KIND", "SCOPES", "CONTROL", "PLANE", "EXPIRES", "MADE", "BY"]
    assert first.split()[1:5] == ["ci", "system-account", "read,write", "all"]
    assert "2099-01-02 03:04:05" in first
    assert second.split()[4:6] == ["default", "expired"]
    assert json.loads(recipe("token", "list", "--json-output").out) == [token(), limited]


@pytest.mark.parametrize("wanted", ["ci", ID, ID.upper()])
def test_a_token_is_revoked_by_id_or_name(recipe: Recipe, plane: FakeControlPlane, wanted: str) -> None:
    tokens(plane, token(), token(id="another", name="x"))
    plane.answers["DELETE", f"/v2/tokens/{ID}"] = (204, {})
    result = recipe("token", "revoke", wanted)
    assert result.out == f"revoked token 'ci' ({ID})\n"
    assert len(plane.sent("DELETE", f"/v2/tokens/{ID}")) == 1


def test_a_name_of_several_tokens_or_of_none_revokes_nothing(recipe: Recipe, plane: FakeControlPlane) -> None:
    tokens(plane, token(), token(id="another"))
    assert "give the id of one" in recipe("token", "revoke", "ci").err
    assert "no token 'x'" in recipe("token", "revoke", "x").err


def test_the_audit_log_is_a_table_of_this_control_plane(recipe: Recipe, plane: FakeControlPlane) -> None:
    refused = line(action="login", outcome="refused", principal={"id": "", "name": ""}, details={"reason": "expired"})
    plane.answers["GET", "/v2/audit-logs"] = (200, {"data": [line(), refused], "next": None})
    result = recipe("audit", "--since", "1h", "--by", "ci", "--kind", "services")
    head, first, second = result.out.splitlines()
    assert head.split() == ["TIME", "WHO", "FROM", "ACTION", "WHAT", "NAME", "DETAILS"]
    assert first.split() == [
        *("2026-01-31", "12:00:00", "ci", "192.0.2.7", "update", "services", "chat", "host,", "tags")
    ]
    assert "login (refused)" in second
    path = next(path for method, path, _, _ in plane.requests if method == "GET" and "audit-logs" in path)
    assert f"control_plane_id={plane.control_planes['default']}" in path
    assert "principal=ci&entity_type=services" in path
    assert "start=" in path


def test_pages_of_the_audit_log_are_followed_up_to_the_limit(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.answers["GET", "/v2/audit-logs"] = (200, {"data": [line(), line()], "next": 5})
    result = recipe("audit", "--limit", "4", "--all-control-planes", "--json-output")
    assert len(json.loads(result.out)) == 4
    asked = [path for method, path, _, _ in plane.requests if "audit-logs" in path]
    assert len(asked) == 2
    assert "cursor=5" in asked[1]
    assert "control_plane_id" not in asked[0]


def test_nothing_in_the_log_is_said(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.answers["GET", "/v2/audit-logs"] = (200, {"data": [], "next": None})
    assert recipe("audit").out.startswith("no change since 20")


def test_an_expired_token_is_called_that(recipe: Recipe, plane: FakeControlPlane) -> None:
    refusal = {"status": 401, "title": "Unauthorized", "detail": "this token expired at 2024-01-02T03:04:05Z"}
    plane.answers["GET", "/v2/tokens"] = (401, refusal)
    assert "this token expired at 2024-01-02T03:04:05Z" in recipe("token", "list").err


def test_a_scope_that_is_missing_is_named(recipe: Recipe, plane: FakeControlPlane) -> None:
    refusal = {"status": 403, "title": "Forbidden", "message": "this token lacks the scope 'admin' (it has: read)"}
    plane.answers["GET", "/v2/tokens"] = (403, refusal)
    assert "lacks the scope 'admin'" in recipe("token", "list").err
