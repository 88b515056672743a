"""What is said when nobody knows whether a change was made, or is live."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Recipe
from tests.cli.fakes import FakeControlPlane

File = Callable[..., Path]

KONG = '_format_version: "3.0"\nservices:\n  - name: one\n    url: http://example.test\n'
PLAN = json.dumps({"_plan": {"id": "p", "control_plane_id": "c", "control_plane_name": "default"}})


@pytest.fixture
def withheld(plane: FakeControlPlane) -> Iterator[threading.Event]:
    """An answer that does not come before the command has ended; set when the request has arrived."""
    arrived, ended = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        ended.wait(30)

    plane.before_silence = wait
    yield arrived
    ended.set()


def interrupt_when(arrived: threading.Event) -> threading.Thread:
    """Ctrl-C as soon as the request has arrived."""
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        if arrived.wait(30):
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Also where whoever started the tests has told them to ignore Ctrl-C, as shells do for jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_apply_whose_answer_is_lost_may_have_been_made(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.silent.add(("POST", "/apply"))
    result = recipe("sync", file(KONG))
    assert plane.version == 1
    assert result.code == 4
    assert f"the control plane at {plane.url} took the request, but no answer came" in result.err
    assert "unknown whether the change was made" in result.err
    assert "recipe diff" in result.err
    assert "recipe history" in result.err
    assert "recipe up" not in result.err


def test_an_apply_that_takes_too_long_may_be_made_yet(
    recipe: Recipe,
    plane: FakeControlPlane,
    file: File,
    withheld: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cli.client.APPLY_TIMEOUT", 0.2)
    plane.silent.add(("POST", "/apply"))
    result = recipe("reset", "--yes", "--timeout", "0.2", "--json-output")
    assert result.code == 4
    assert "unknown whether the change was made" in json.loads(result.out)["errors"][0]


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_that_gave_up_does_not_know_either(
    recipe: Recipe, plane: FakeControlPlane, file: File, status: int
) -> None:
    plane.answers["POST", "/apply"] = (status, b"<html>")
    result = recipe("sync", file(KONG))
    assert result.code == 4
    assert f"HTTP {status}" in result.err
    assert recipe("diff", file(KONG)).code == 1


def test_a_rollback_and_a_kept_plan_may_have_been_made_too(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.silent |= {("POST", "/rollback"), ("POST", "/apply")}
    assert recipe("rollback", "1").code == 4
    assert recipe("sync", "--plan", file(PLAN, "plan.json")).code == 4


def test_what_changes_nothing_has_no_unknown_outcome(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.silent |= {("POST", "/rollback"), ("POST", "/apply"), ("GET", "/document")}
    for command in (["diff", file(KONG)], ["rollback", "1", "--dry-run"], ["dump"]):
        result = recipe(*command)
        assert result.code == 1
        assert "cannot be reached" in result.err


def test_a_request_that_was_never_sent_changed_nothing(recipe: Recipe, plane: FakeControlPlane, file: File) -> None:
    plane.stop()
    result = recipe("sync", "--plan", file(PLAN, "plan.json"))
    assert result.code == 1
    assert "cannot be reached" in result.err


def test_a_token_whose_answer_is_lost_may_be_there(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.silent.add(("POST", "/tokens"))
    made = recipe("token", "create", "ci")
    assert made.code == 4
    assert "recipe token list" in made.err


@pytest.mark.parametrize("json_output", [False, True])
def test_ctrl_c_while_the_control_plane_applies(
    recipe: Recipe, plane: FakeControlPlane, file: File, withheld: threading.Event, json_output: bool
) -> None:
    plane.silent.add(("POST", "/apply"))
    thread = interrupt_when(withheld)
    result = recipe("sync", file(KONG), *(["--json-output"] if json_output else []))
    thread.join()
    assert plane.version == 1
    assert result.code == 130
    said = json.loads(result.out)["errors"][0] if json_output else result.err
    assert "interrupted" in said
    assert "unknown whether the change was made" in said
    assert "recipe diff" in said


def test_ctrl_c_while_nothing_changes_is_an_interruption_and_no_more(
    recipe: Recipe, plane: FakeControlPlane, file: File, withheld: threading.Event
) -> None:
    plane.silent.add(("POST", "/apply"))
    thread = interrupt_when(withheld)
    result = recipe("diff", file(KONG))
    thread.join()
    assert result.code == 130
    assert "unknown" not in result.err


@pytest.mark.parametrize("json_output", [False, True])
def test_ctrl_c_while_waiting_says_that_the_change_is_written(
    recipe: Recipe, plane: FakeControlPlane, file: File, withheld: threading.Event, json_output: bool
) -> None:
    plane.silent.add(("GET", "/receipts"))
    thread = interrupt_when(withheld)
    result = recipe("sync", file(KONG), "--wait", *(["--json-output"] if json_output else []))
    thread.join()
    assert result.code == 130
    said = json.loads(result.out)["errors"][0] if json_output else result.err
    assert "written as version 1, but interrupted" in said
    if json_output:
        assert json.loads(result.out)["summary"]["creating"] == 1


def test_a_connection_lost_while_waiting_says_that_the_change_is_written(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    plane.silent.add(("GET", "/receipts"))
    result = recipe("sync", file(KONG), "--wait")
    assert result.code == 3
    assert "written as version 1, but it is not known whether it is live" in result.err
