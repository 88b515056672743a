"""Owners, saved plans, history and rollback, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Recipe
from tests.cli.fakes import HASH, FakeControlPlane, change, node, plan_of

File = Callable[..., Path]

KONG = '_format_version: "3.0"\nservices:\n  - name: one\n    url: http://example.test\n'
SAVED: dict[str, Any] = {
    "id": "0b7e6f0a-0000-4000-8000-000000000001",
    "version": 4,
    "author": "me",
    "created_at": "2026-01-01T00:00:00.000Z",
    "expires_at": "2026-01-08T00:00:00.000Z",
    "select_tags": ["a"],
    "plan": plan_of(creating=[change("consumer", "bob", {"username": "the-secret-value"})]),
}


def answered(**more: Any) -> dict[str, Any]:
    return {"plan": plan_of(updating=[change("service", "s", {}, {})]), "committed": True, "hash": HASH, **more}


def problem(status: int, message: str, **more: Any) -> tuple[int, dict[str, Any]]:
    return status, {"status": status, "title": "x", "message": message, **more}


def test_an_entity_of_another_owner_is_named_with_file_and_line(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    path = file(KONG)
    fault = {
        "path": ["services", 0],
        "entity": "service one",
        "field": "",
        "message": "is owned by the tag 'team-b', and this document would change it",
        "owner": ["team-b"],
    }
    plane.answers["POST", "/apply"] = problem(400, "refused", errors=[fault])
    result = recipe("sync", path, "--select-tag", "team-a")
    assert result.code == 1
    assert f"error: {path}:3: service one: is owned by the tag 'team-b'" in result.err


@pytest.mark.parametrize("command", ["sync", "apply"])
def test_consent_is_passed_on(recipe: Recipe, plane: FakeControlPlane, file: File, command: str) -> None:
    force = ["--force"] if command == "sync" else []
    recipe(command, file(KONG), "--adopt", *force)
    (body,) = plane.sent("POST", "/apply")
    assert body["adopt"] is True
    assert body.get("force", False) is bool(force)


def test_what_is_taken_over_and_what_alarms_is_said_beside_decks_form(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    plan = {
        **plan_of(updating=[change("service", "s", {}, {})]),
        "adopting": [{"kind": "service", "name": "s", "owner": ["a", "b"]}],
        "warnings": ["this would delete 20 of 20 entities (100 %)"],
    }
    plane.answers["POST", "/apply"] = (200, {"plan": plan, "committed": False, "version": 1, "hash": HASH})
    result = recipe("diff", file(KONG))
    assert "adopting service s, which was owned by a, b" in result.err
    assert "warning: this would delete 20 of 20 entities (100 %)" in result.err
    assert "adopting" not in result.out
    shown = json.loads(recipe("diff", file(KONG), "--json-output").out)
    assert shown["warnings"] == ["this would delete 20 of 20 entities (100 %)"]


def test_a_plan_is_kept_by_the_control_plane_and_its_file_holds_no_secret(
    recipe: Recipe, plane: FakeControlPlane, file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECK_SECRET", "the-secret-value")
    plane.answers["POST", "/plans"] = (201, SAVED)
    kept = tmp_path / "plan.json"
    result = recipe("diff", file(KONG), "-o", kept, "--select-tag", "a")
    assert result.code == 0
    assert "creating consumer bob" in result.out
    assert plane.sent("POST", "/plans")[0]["select_tags"] == ["a"]
    text = kept.read_text()
    assert "the-secret-value" not in text
    assert json.loads(text)["_plan"]["version"] == 4
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("command", [["sync", "--plan"], ["apply-plan"]])
def test_a_kept_plan_is_applied_by_its_id(
    recipe: Recipe, plane: FakeControlPlane, file: File, tmp_path: Path, command: list[str]
) -> None:
    plane.answers["POST", "/plans"] = (201, SAVED)
    recipe("diff", file(KONG), "-o", tmp_path / "plan.json")
    plane.answers["POST", f"/plans/{SAVED['id']}/apply"] = (200, answered(version=5))
    plane.nodes = lambda: [node(version=5)]
    result = recipe(*command, tmp_path / "plan.json", "--wait", "--force")
    assert result.code == 0, result.err
    assert "updating service s" in result.out
    assert "version 5: live on 2 workers of 1 node" in result.err
    assert plane.sent("POST", f"{SAVED['id']}/apply") == [{"force": True}]


def test_a_plan_whose_time_has_passed_says_so(
    recipe: Recipe, plane: FakeControlPlane, file: File, tmp_path: Path
) -> None:
    plane.answers["POST", "/plans"] = (201, SAVED)
    recipe("diff", file(KONG), "-o", tmp_path / "plan.json")
    plane.answers["POST", f"/plans/{SAVED['id']}/apply"] = problem(409, "the state has moved since this plan was made")
    result = recipe("apply-plan", tmp_path / "plan.json")
    assert result.code == 1
    assert "the state has moved since this plan was made" in result.err


def test_what_is_no_plan_is_refused(recipe: Recipe, plane: FakeControlPlane, file: File, tmp_path: Path) -> None:
    assert "not a plan" in recipe("apply-plan", file("{}", "plan.json")).err
    assert "cannot be read" in recipe("apply-plan", tmp_path / "none.json").err
    assert "--plan says all by itself" in recipe("sync", file(KONG), "--plan", file("{}", "p.json")).err
    assert plane.requests == []


def test_history_lists_versions_and_shows_what_one_changed(recipe: Recipe, plane: FakeControlPlane) -> None:
    summary = {"creating": 1, "updating": 2, "deleting": 3, "total": 6}
    item = {
        "version": 7,
        "hash": HASH,
        "author": "alice",
        "action": "sync",
        "created_at": "2026-01-01T00:00:00.000Z",
        "summary": summary,
    }
    plane.answers["GET", "/snapshots"] = (200, {"data": [item], "next": None})
    result = recipe("history")
    assert result.out.splitlines()[1].split() == [
        *("7", "2026-01-01T00:00:00.000Z", "alice", "sync", "1", "2", "3", HASH[:12])
    ]
    assert json.loads(recipe("history", "--json-output").out)["snapshots"] == [item]
    plane.answers["GET", "/snapshots/7/diff"] = (
        200,
        {"from": 6, "to": 7, "plan": plan_of(deleting=[change("route", "r")])},
    )
    assert "deleting route r" in recipe("history", "7").out


def test_rollback_goes_back_and_waits(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.answers["POST", "/snapshots/3/rollback"] = (200, answered(version=9))
    plane.nodes = lambda: [node(version=9)]
    result = recipe("rollback", "3", "--wait", "--select-tag", "a", "--force")
    assert result.code == 0, result.err
    assert "version 9: live on 2 workers of 1 node" in result.err
    assert plane.sent("POST", "/rollback") == [{"commit": True, "select_tags": ["a"], "force": True}]
    recipe("rollback", "3", "--dry-run")
    assert plane.sent("POST", "/rollback")[-1] == {"commit": False}


def test_a_refused_rollback_names_each_entity(recipe: Recipe, plane: FakeControlPlane) -> None:
    errors = [{"path": [], "entity": f"service {name}", "field": "", "message": "is owned by x"} for name in "ab"]
    plane.answers["POST", "/snapshots/3/rollback"] = problem(400, "refused", errors=errors)
    result = recipe("rollback", "3")
    assert result.code == 1
    assert result.err.splitlines()[-2:] == [
        "error: service a: is owned by x",
        "error: service b: is owned by x",
    ]
