from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Recipe
from tests.cli.fakes import HASH, FakeControlPlane, change, node, plan_of

File = Callable[..., Path]

KONG = '_format_version: "3.0"\nservices:\n  - name: one\n    url: http://example.test\n'


def test_sync_sends_the_whole_document_once_and_shows_the_plan(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    result = recipe("sync", file(KONG))
    assert (result.code, result.out) == (0, "creating service s\nSummary:\n  Created: 1\n  Updated: 0\n  Deleted: 0\n")
    (body,) = plane.sent("POST", "/apply")
    assert body == {
        "document": {"_format_version": "3.0", "services": [{"name": "one", "url": "http://example.test"}]},
        "mode": "sync",
        "commit": True,
    }
    assert plane.requests[-1][3]["Authorization"] == "Bearer kpat_of_the_tests_0123456789"


def test_apply_says_that_nothing_is_to_be_deleted(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    assert recipe("apply", file(KONG), "--select-tag", "a", "--select-tag", "b").code == 0
    (body,) = plane.sent("POST", "/apply")
    assert (body["mode"], body["select_tags"]) == ("apply", ["a", "b"])


def test_diff_changes_nothing_and_its_exit_code_tells_when_asked(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    path = file(KONG)
    assert recipe("diff", path).code == 0
    assert recipe("diff", path, "--non-zero-exit-code").code == 2
    assert [body["commit"] for body in plane.sent("POST", "/apply")] == [False, False]
    recipe("sync", path)
    assert recipe("diff", path, "--non-zero-exit-code").code == 0


def test_json_output_is_decks_and_nothing_else(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    result = recipe("diff", file(KONG), "--json-output")
    data = json.loads(result.out)
    assert data["summary"] == {"creating": 1, "updating": 0, "deleting": 0, "total": 1}
    assert data["changes"]["creating"][0]["body"] == {"new": {}, "old": None}
    assert (data["warnings"], data["errors"]) == ([], [])


def test_an_error_is_json_too_but_the_exit_code_stays_true(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    result = recipe("sync", file("a: ["), "--json-output")
    assert result.code == 1
    assert "not YAML" in json.loads(result.out)["errors"][0]
    assert plane.requests == []


def test_the_control_planes_faults_lead_to_file_and_line(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    one, two = file(KONG, "1.yaml"), file("services:\n  - name: two\n    port: x\n", "2.yaml")
    errors = [
        {"path": ["services", 1, "port"], "entity": "service two", "field": "port", "message": "expected an integer"},
        {"path": ["services", 0, "plugins", 2], "entity": "plugin x", "field": "", "message": "unknown plugin"},
    ]
    plane.answers["POST", "/apply"] = (400, {"status": 400, "title": "Bad Request", "message": "no", "errors": errors})
    result = recipe("sync", one, two)
    assert result.code == 1
    assert result.err.splitlines()[-2:] == [
        f"error: {two}:3: service two: port: expected an integer",
        f"error: {one}:3: plugin x: unknown plugin",
    ]


def test_the_other_place_of_what_is_declared_twice_is_a_line_too(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    one, two = file(KONG, "1.yaml"), file("services:\n  - name: one\n    host: b.test\n", "2.yaml")
    message = "name: this name is declared twice: also at services[0]"
    fault = {"path": ["services", 1, "name"], "entity": "service one", "field": "name", "message": message}
    plane.answers["POST", "/apply"] = (400, {"message": "no", "errors": [{**fault, "also": ["services", 0]}]})
    result = recipe("sync", one, two)
    assert f"error: {two}:2: service one: name: this name is declared twice: also at {one}:3\n" in result.err


def test_values_of_the_environment_are_masked_in_plans_and_errors(
    recipe: Recipe, plane: FakeControlPlane, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECK_OPENAI_TOKEN", "Bearer sk-very-secret")
    monkeypatch.setenv("DECK_MINUTE", "77")
    path = file(KONG + '    tags: ["${{ env `DECK_OPENAI_TOKEN` }}"]\n    retries: ${{ env `DECK_MINUTE` | toInt }}\n')
    body = {"config": {"header_value": "Bearer sk-very-secret", "minute": 77, "more": 770}}
    plane.answers["POST", "/apply"] = (
        200,
        {"plan": plan_of(updating=[change("plugin", "p", body, {"config": {}})]), "version": 2, "hash": HASH},
    )
    shown = recipe("diff", path).out + recipe("diff", path, "--json-output").out
    assert "very-secret" not in shown
    assert '"header_value": "[masked]"' in shown
    assert '"minute": "[masked]"' in shown
    assert '"more": 770' in shown
    assert plane.sent("POST", "/apply")[0]["document"]["services"][0]["retries"] == 77
    plane.answers["POST", "/apply"] = (400, {"message": "tag Bearer sk-very-secret: kpat_of_the_tests_0123456789"})
    failed = recipe("sync", path)
    assert "tag [masked]: [masked]" in failed.err


def test_a_token_is_masked_wherever_it_came_from(
    recipe: Recipe, plane: FakeControlPlane, file: File, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("kpat_out_of_a_file\n")
    plane.answers["GET", "/v2/control-planes"] = (500, {"message": "kpat_out_of_a_file"})
    result = recipe("diff", file(KONG), "--konnect-token-file", tmp_path / "token")
    assert plane.requests[0][3]["Authorization"] == "Bearer kpat_out_of_a_file"
    assert "kpat_out" not in result.err


def test_reset_asks_first_and_without_a_terminal_wants_yes(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    recipe("sync", file(KONG))
    refused = recipe("reset")
    assert refused.code == 1
    assert "this deletes everything in control plane default: 1 entities; say --yes" in refused.err
    assert [body["commit"] for body in plane.sent("POST", "/apply")] == [True, False]
    done = recipe("reset", "--yes", "--select-tag", "mine")
    assert (done.code, plane.document) == (0, None)
    assert "deleting service s\n" in done.out
    assert plane.sent("POST", "/apply")[-1]["select_tags"] == ["mine"]


def test_dump_gives_yaml_that_reads_the_same_and_keeps_files(
    recipe: Recipe, plane: FakeControlPlane, tmp_path: Path
) -> None:
    plane.document = {"_format_version": "3.0", "services": [{"name": "1e5", "tags": ["yes", "y"], "path": "/a\nb"}]}
    result = recipe("dump", "--select-tag", "a", "--select-tag", "b")
    assert yaml.safe_load(result.out) == plane.document
    assert '"1e5"' in result.out
    assert "/document?tags=a%2Cb" in plane.requests[-1][1]
    target = tmp_path / "out.yaml"
    assert recipe("dump", "-o", target).code == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert "exists already" in recipe("dump", "-o", target).err
    assert recipe("dump", "-o", target, "--yes", "--format", "json").code == 0
    assert json.loads(target.read_text()) == plane.document


@pytest.mark.parametrize("tag", ["a/b", "a,b", ""])
@pytest.mark.parametrize("command", ["dump", "reset", "sync"])
def test_a_select_tag_that_no_entity_may_carry_is_refused(
    recipe: Recipe, plane: FakeControlPlane, command: str, tag: str
) -> None:
    result = recipe(command, "--select-tag", tag)
    assert result.code != 0
    assert f"'--select-tag': invalid tag '{tag}'" in result.err
    assert plane.requests == []


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_looks_like_an_expression_is_no_way_to_the_secrets_of_whoever_syncs_a_dump(
    recipe: Recipe, plane: FakeControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    stored = {"_format_version": "3.0", "services": [{"name": "s", "tags": ['${{ env "DECK_X" }}'], "host": "h"}]}
    plane.document = stored
    target = tmp_path / f"dump.{form}"
    assert recipe("dump", "--format", form, "-o", target).code == 0
    monkeypatch.setenv("DECK_X", "the-secret")
    assert recipe("sync", target).code == 0
    assert plane.sent("POST", "/apply")[0]["document"] == stored


def test_validate_names_every_fault_and_needs_no_control_plane(recipe: Recipe, file: File) -> None:
    path = file(
        """\
_format_version: "3.0"
services:
  - name: one
    hots: example.test
    host: example.test
    port: "80"
    plugins:
      - name: key-oauth
      - name: key-auth
        config:
          key_name: x
consumers:
  - username: a
  - username: a
"""
    )
    result = recipe("validate", path)
    assert result.code == 1
    assert f"{path}:4: " in result.err
    assert "did you mean 'host'?" in result.err
    path.write_text(path.read_text().replace("    hots: example.test\n", ""))
    result = recipe("validate", path)
    assert f"error: {path}:5: service one: port: expected an integer" in result.err
    assert (
        f"error: {path}:7: plugin key-oauth: name: plugin 'key-oauth' not enabled; "
        "add it to the 'plugins' configuration property (did you mean 'key-auth'?)" in result.err
    )
    assert (
        f"error: {path}:10: plugin key-auth: config.key_name: unknown field (did you mean 'key_names'?)" in result.err
    )
    assert f"error: {path}:13: consumer a: the same username as at {path}:12" in result.err


def test_validate_says_what_is_valid(recipe: Recipe, file: File) -> None:
    path = file(KONG)
    result = recipe("validate", path)
    assert (result.code, result.out) == (0, f"{path}: valid\n")


def test_validate_online_asks_without_writing(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    assert recipe("validate", "--online", file(KONG)).code == 0
    assert plane.sent("POST", "/apply")[0]["commit"] is False


def test_a_file_for_another_control_plane_is_not_sent(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    path = file(KONG + "_konnect: {control_plane_name: prod}\n")
    result = recipe("sync", path, "--konnect-control-plane-name", "default")
    assert result.code == 1
    assert "the file is for control plane 'prod'" in result.err
    assert plane.requests == []


def test_wait_returns_when_every_worker_runs_it(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    states = [node("pending", 0, "0" * 32), node("pending", 0, "0" * 32), node("in_sync", 1)]
    plane.nodes = lambda: [states.pop(0) if len(states) > 1 else states[0], node("offline", 0, "0" * 32)]
    result = recipe("sync", file(KONG), "--wait")
    assert result.code == 0
    assert "version 1: live on 2 workers of 1 node" in result.err
    assert len(states) == 1


def test_wait_names_who_refused_and_why(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    error = {
        "message": "unknown model",
        "entity_type": "plugin",
        "entity_id": "x",
        "entity_name": "ai-proxy-advanced",
        "field": "config.targets[0]",
    }
    plane.nodes = lambda: [node("rejected", 0, "0" * 32, last_error=error), node("in_sync", 1)]
    result = recipe("sync", file(KONG), "--wait")
    assert result.code == 3
    assert "node host-a (11111111) refused it: plugin ai-proxy-advanced: config.targets[0]: unknown model" in result.err
    assert "1 other node runs it" in result.err


def test_wait_names_who_is_silent(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.nodes = lambda: [node("pending", 0, "0" * 32)]
    result = recipe("sync", file(KONG), "--wait", "--wait-timeout", "0.1", "--json-output")
    assert result.code == 3
    data = json.loads(result.out)
    assert data["summary"]["total"] == 1
    assert "was silent for 0.1 s: worker 1, 2 runs another version" in "\n".join(data["errors"])


def test_a_version_beyond_ours_counts_as_live(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.nodes = lambda: [node("in_sync", 9, "f" * 32)]
    assert recipe("sync", file(KONG), "--wait", "--wait-timeout", "0.1").code == 0


def test_without_a_node_there_is_nothing_to_wait_for(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.nodes = list
    result = recipe("sync", file(KONG), "--wait")
    assert result.code == 0
    assert "no data plane node is connected" in result.err


def test_what_a_terminal_would_obey_is_spelled_out(recipe: Recipe, file: File) -> None:
    hostile = file('_format_version: "3.0"\nservices: [{name: "a\\x1b[2J\\0", url: "http://a.test"}]\n')
    result = recipe("validate", hostile)
    assert result.code == 1
    assert r"a\x1b[2J\x00" in result.err
    assert not {"\x1b", "\0"} & set(result.err)
