"""What is said, and what stays, when the output of a command cannot be written; each command is a real process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.app import run
from cli.documents import written
from cli.output import Output
from tests.cli.fakes import FakeControlPlane, change, node, plan_of
from tests.cli.test_tokens import ID, VALUE, token

File = Callable[..., Path]

KONG = '_format_version: "3.0"\nservices:\n  - name: one\n    url: http://example.test\n'


def shell(command: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `recipe` is the command, and "$@" its arguments. What is no UTF-8 comes escaped."""
    return subprocess.run(
        ["bash", "-c", f'recipe() {{ "{sys.executable}" -m cli "$@"; }}; {command}', "bash", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=60,
        check=False,
    )


def test_a_change_whose_report_finds_no_room_is_told_as_made(plane: FakeControlPlane, file: File) -> None:
    result = shell('recipe sync "$1" > /dev/full', file(KONG))
    assert result.returncode == 5
    assert "error: written as version 1, but its report could not be written: No space left on device" in result.stderr
    assert plane.version == 1


@pytest.mark.parametrize("flags", ["--wait", "--wait --json-output"])
def test_what_cannot_be_reported_is_waited_for_all_the_same(plane: FakeControlPlane, file: File, flags: str) -> None:
    result = shell(f'recipe sync "$1" {flags} > /dev/full', file(KONG))
    assert result.returncode == 5
    assert [target for _, target, _, _ in plane.requests if "receipts" in target]
    error = {"code": "config_rejected", "message": "no such plugin"}
    plane.nodes = lambda: [node("rejected", 0, "0" * 32, last_error=error)]
    result = shell(f"recipe reset --yes {flags} > /dev/full")
    assert result.returncode == 3
    assert "no such plugin" in result.stderr


def test_a_reader_that_has_seen_enough_makes_no_failure_of_a_change(plane: FakeControlPlane, file: File) -> None:
    many = plan_of(creating=[change("service", f"s{number}" * 20, {}) for number in range(5000)])
    plane.answers["POST", "/apply"] = (200, {"plan": many, "committed": True, "version": 7, "hash": "h"})
    result = shell('recipe sync "$1" | head -1; exit ${PIPESTATUS[0]}', file(KONG))
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)
    assert "error" not in result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_ends_what_only_reads(plane: FakeControlPlane, unbuffered: str) -> None:
    plane.document = {"_format_version": "3.0", "services": [{"name": f"s{number}" * 20} for number in range(5000)]}
    result = shell("recipe dump | head -1; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 128 + signal.SIGPIPE
    assert "error" not in result.stderr


def test_a_slow_reader_gets_all_of_it(plane: FakeControlPlane) -> None:
    plane.document = {"_format_version": "3.0", "services": [{"name": f"s{number}" * 20} for number in range(5000)]}
    dumps = [shell("recipe dump | cat", PYTHONUNBUFFERED=unbuffered).stdout for unbuffered in ("", "1")]
    assert dumps == [written(plane.document, "yaml")] * 2


def test_what_only_reads_has_failed_when_nobody_can_be_told(plane: FakeControlPlane) -> None:
    result = shell("recipe dump > /dev/full")
    assert result.returncode == 1
    assert result.stderr == "error: standard output: No space left on device\n"


def test_remarks_that_find_no_room_are_lost_and_no_more(plane: FakeControlPlane, file: File) -> None:
    assert shell('recipe sync "$1" 2> /dev/full', file(KONG)).returncode == 0
    assert plane.version == 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_an_encoding_lacks_is_escaped(plane: FakeControlPlane, file: File, encoding: str) -> None:
    bodies = [{"name": "a", "path": path, "host": "h"} for path in ("/\u4e16", "/é")]
    plan = plan_of(
        updating=[{"kind": "service", "name": "\u4e16", "body": dict(zip(("old", "new"), bodies, strict=True))}]
    )
    plane.answers["POST", "/apply"] = (200, {"plan": plan, "committed": True, "version": 7, "hash": "h"})
    text = shell('recipe sync "$1"', file(KONG), PYTHONIOENCODING=encoding)
    assert text.returncode == 0, text.stderr
    assert "updating service \\u4e16" in text.stdout
    assert '"path": "/\\xe9"' in text.stdout
    data = shell('recipe sync "$1" --json-output', file(KONG), PYTHONIOENCODING=encoding)
    assert json.loads(data.stdout)["changes"]["updating"][0]["name"] == "\u4e16"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">&- --json-output"])
@pytest.mark.parametrize("command", ["sync", "diff", "validate"])
def test_closed_streams_are_nobodys_and_no_failure(
    plane: FakeControlPlane, file: File, command: str, closed: str
) -> None:
    if command == "validate":
        closed = closed.replace("--json-output", "")
    result = shell(f'recipe {command} "$1" {closed}', file(KONG))
    assert (result.returncode, "Error" in result.stderr) == (0, False)
    assert plane.version == (1 if command == "sync" else 0)


def test_a_closed_input_is_an_empty_one(plane: FakeControlPlane) -> None:
    result = shell("recipe sync <&-")
    assert result.returncode == 1
    assert "<stdin>: empty" in result.stderr


@pytest.mark.parametrize("flags", ["", "--json-output"])
def test_a_token_whose_value_nobody_saw_is_revoked_again(plane: FakeControlPlane, flags: str) -> None:
    plane.answers["POST", "/v2/tokens"] = (201, token(token=VALUE))
    plane.answers["DELETE", f"/v2/tokens/{ID}"] = (204, {})
    result = shell(f"recipe token create ci {flags} > /dev/full")
    assert result.returncode == 1
    assert "could not be written (No space left on device): it was revoked again" in result.stderr
    assert VALUE not in result.stderr
    assert len(plane.sent("DELETE", f"/v2/tokens/{ID}")) == 1


def test_a_token_that_cannot_be_revoked_is_named(plane: FakeControlPlane) -> None:
    plane.answers["POST", "/v2/tokens"] = (201, token(token=VALUE))
    result = shell("recipe token create ci > /dev/full")
    assert f"it is still there: recipe token revoke {ID}" in result.stderr


def test_no_token_is_made_for_a_closed_output(plane: FakeControlPlane) -> None:
    result = shell("recipe token create ci >&-")
    assert result.returncode == 1
    assert "nothing was made" in result.stderr
    assert plane.sent("POST", "/v2/tokens") == []


# Names that would be more than a name


FORGED = "x\n2026-11-28T21:00:00Z  boss  delete  services  prod\u2028y\u202ez\rw"
SHOWN = "x\\n2026-11-28T21:00:00Z  boss  delete  services  prod\\u2028y\\u202ez\\rw"


def test_a_name_is_one_line_of_a_plan_and_one_row_of_a_table(plane: FakeControlPlane, file: File) -> None:
    plane.answers["POST", "/apply"] = (
        200,
        {"plan": plan_of(creating=[change("consumer", FORGED, {})]), "committed": True, "version": 7, "hash": "h"},
    )
    out = io.StringIO()
    assert run(["sync", str(file(KONG))], Output(stdout=out, stderr=io.StringIO())) == 0
    assert f"creating consumer {SHOWN}\n" in out.getvalue()
    plane.answers["GET", "/v2/tokens"] = (200, {"data": [token(name=FORGED)], "meta": {}})
    out = io.StringIO()
    assert run(["token", "list"], Output(stdout=out, stderr=io.StringIO())) == 0
    assert len(out.getvalue().splitlines()) == 2
    assert SHOWN in out.getvalue()


def test_a_name_is_part_of_one_error_however_long_it_is(plane: FakeControlPlane, file: File) -> None:
    long = f"{FORGED}{'o' * 3000}"
    fault = {"path": ["services", 0], "entity": f"service {long}", "message": f"service '{long}' is not yours"}
    plane.answers["POST", "/apply"] = (400, {"message": "refused", "errors": [fault]})
    err = io.StringIO()
    assert run(["sync", str(file(KONG))], Output(stdout=io.StringIO(), stderr=err)) == 1
    (line,) = [line for line in err.getvalue().splitlines() if "boss" in line]
    assert line.startswith("error: ")
    assert "is not yours" in line
    assert len(line) < 700


def test_a_secret_in_a_long_name_is_masked_before_the_name_is_cut(
    plane: FakeControlPlane, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"first-line-{'s' * 200}\nit's"
    monkeypatch.setenv("DECK_SECRET", secret)
    fault = {"path": ["services", 0], "entity": f"service {secret}", "message": f"service '{secret}' is not yours"}
    plane.answers["POST", "/apply"] = (400, {"message": "refused", "errors": [fault]})
    err = io.StringIO()
    run(["sync", str(file(KONG))], Output(stdout=io.StringIO(), stderr=err))
    assert "service [masked]: service '[masked]' is not yours" in err.getvalue()
