from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli import recipes
from cli.app import SECTIONS
from cli.app import recipe as group
from cli.connection import Asked, resolve
from cli.errors import CliError
from cli.state import ProcessRecord, StackFolder, StackState
from tests.cli.conftest import Recipe
from tests.cli.fakes import FakeControlPlane


def test_help_shows_every_command_and_the_exit_codes(recipe: Recipe) -> None:
    shown = group.get_help(click.Context(group))
    for commands in SECTIONS.values():
        for command in commands:
            assert f"  {command.name} " in shown
    assert "130  interrupted" in shown


def test_a_wrong_option_is_an_error_like_any_other(recipe: Recipe) -> None:
    result = recipe("sync", "--nope")
    assert result.code == 1
    assert "No such option" in result.err
    assert "try: recipe sync --help" in result.err


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    ("command", "option"),
    [(["sync"], "--wait-timeout"), (["dump"], "--timeout"), (["up", "no-such-recipe"], "--wait-timeout")],
)
def test_what_no_clock_reaches_is_no_number_of_seconds(
    recipe: Recipe, plane: FakeControlPlane, command: list[str], option: str, seconds: str
) -> None:
    result = recipe(*command, option, seconds)
    assert result.code == 1
    assert f"Invalid value for '{option}': {seconds} is not" in result.err
    assert plane.requests == []


def test_nobody_there_says_what_was_tried_and_what_to_do(recipe: Recipe, tmp_path: Path) -> None:
    fake = FakeControlPlane()
    fake.server.server_close()
    result = recipe("dump", "--konnect-addr", fake.url)
    assert result.code == 1
    assert f"the control plane at {fake.url} (from --konnect-addr) cannot be reached" in result.err
    assert "recipe up" in result.err
    assert "Traceback" not in result.err


def test_a_refused_token_says_where_it_came_from(recipe: Recipe, plane: FakeControlPlane) -> None:
    plane.answers["GET", "/v2/control-planes"] = (401, {"message": "Unauthorized"})
    assert "refused the token from DECK_KONNECT_TOKEN (401)" in recipe("dump").err


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'"x"'])
def test_something_else_at_the_address_is_no_control_plane(
    recipe: Recipe, plane: FakeControlPlane, body: bytes
) -> None:
    plane.answers["GET", "/v2/control-planes"] = (200, body)
    result = recipe("dump")
    assert result.code == 1
    assert "is not a control plane" in result.err


def test_an_unknown_control_plane_lists_those_that_are_there(recipe: Recipe, plane: FakeControlPlane) -> None:
    result = recipe("dump", "--konnect-control-plane-name", "nope")
    assert "control plane not found: nope" in result.err
    assert "there are: default" in result.err


def test_of_many_control_planes_it_is_said_how_many_are_not_listed(recipe: Recipe, plane: FakeControlPlane) -> None:
    listed = [{"id": str(number), "name": f"cp-{number}"} for number in range(20)]
    plane.answers["GET", "/v2/control-planes"] = (200, {"data": listed, "meta": {"page": {"total": 23}}})
    assert "cp-18, cp-19 and 3 more)" in recipe("dump", "--konnect-control-plane-name", "nope").err


@pytest.mark.parametrize("said", ["Request validation failed", "Request validation failed (tags: is too long)"])
def test_parameters_that_the_control_plane_refuses_are_named_once(
    recipe: Recipe, plane: FakeControlPlane, said: str
) -> None:
    plane.answers["GET", "/document"] = (
        400,
        {"detail": said, "invalid_parameters": [{"field": "tags", "reason": "is too long"}]},
    )
    assert "error: Request validation failed (tags: is too long) [HTTP 400" in recipe("dump").err


@pytest.mark.parametrize("address", ["nonsense", "ftp://x", "http://["])
def test_what_is_no_address_is_told_as_such(recipe: Recipe, address: str) -> None:
    result = recipe("dump", "--konnect-addr", address)
    assert result.code == 1
    assert "error: " in result.err
    assert "unexpected" not in result.err


def test_a_home_that_cannot_be_written_is_a_plain_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECIPE_HOME", str(tmp_path / "file" / "home"))
    result = recipe("up")
    assert result.code == 1
    assert "Not a directory" in result.err
    assert "RECIPE_HOME" in result.err
    assert "unexpected" not in result.err


_INTERRUPTED = """
import importlib.abc, os, signal, sys
import cli.__main__

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
cli.__main__.main()
"""


def test_ctrl_c_before_anything_has_begun_ends_without_a_word() -> None:
    result = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_what_nobody_expected_is_one_line_unless_asked(
    recipe: Recipe, plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.answers["GET", "/v2/control-planes"] = (200, {"data": [{"nameless": 1}]})
    assert recipe("dump").err.count("\n") == 1
    monkeypatch.setenv("TANDEM_DEBUG", "1")
    assert "Traceback" in recipe("dump").err


# Which control plane is meant


def stack(home: Path, name: str, port: int) -> None:
    state = StackState(name, control_plane_name=f"cp-{name}", ports={"control-plane": port}, token=f"token-{name}")
    state.processes["control-plane"] = ProcessRecord(1, "0", "x")
    StackFolder(home, name).save(state)


def test_the_running_stack_is_the_default(home: Path) -> None:
    stack(home, "a", 1234)
    connection = resolve(Asked(), None, {})
    assert (connection.address, connection.token, connection.control_plane_name) == (
        "http://127.0.0.1:1234",
        "token-a",
        "cp-a",
    )
    assert connection.token_source == "the local stack"


def test_flags_win_over_the_environment_and_that_over_the_stack(home: Path) -> None:
    stack(home, "a", 1234)
    environment = {"DECK_KONNECT_ADDR": "http://e/", "DECK_KONNECT_TOKEN": "e", "DECK_KONNECT_CONTROL_PLANE_NAME": "ne"}
    from_environment = resolve(Asked(), None, environment)
    assert (from_environment.address, from_environment.token) == ("http://e", "e")
    asked = Asked(address="http://f", token="f", control_plane_name="nf")
    from_flags = resolve(asked, None, environment)
    assert (from_flags.address, from_flags.token, from_flags.control_plane_name) == ("http://f", "f", "nf")


def test_the_stacks_token_goes_to_no_other_address(home: Path) -> None:
    stack(home, "a", 1234)
    assert resolve(Asked(address="http://elsewhere:1234"), None, {}).token == ""
    assert resolve(Asked(address="http://127.0.0.1:1235"), None, {}).token == ""
    assert resolve(Asked(address="http://localhost:1234"), None, {}).token == "token-a"


def test_of_several_stacks_one_must_be_named(home: Path) -> None:
    stack(home, "a", 1234)
    stack(home, "b", 2345)
    with pytest.raises(CliError, match="several local stacks are up"):
        resolve(Asked(), None, {})
    assert resolve(Asked(control_plane_name="cp-b"), None, {}).token == "token-b"
    assert resolve(Asked(), "cp-a", {}).token == "token-a"


def test_without_anything_the_defaults_are_named_as_such() -> None:
    connection = resolve(Asked(), None, {})
    assert (connection.address, connection.control_plane_name) == ("http://127.0.0.1:8001", "default")
    assert "no local stack is up" in connection.address_source


def test_two_sources_of_a_token_exclude_one_another(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="exclude one another"):
        resolve(Asked(token="a", token_file="b"), None, {})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CliError, match="the file is empty"):
        resolve(Asked(token_file=str(tmp_path / "empty")), None, {})
    with pytest.raises(CliError, match="cannot be read"):
        resolve(Asked(token_file=str(tmp_path / "none")), None, {})


def test_a_connection_does_not_print_its_token(home: Path) -> None:
    stack(home, "a", 1234)
    assert "token-a" not in repr(resolve(Asked(), None, {}))
    loaded = StackFolder(home, "a").load()
    assert "token-a" not in repr(loaded)


# Recipes


def test_the_recipes_files_are_the_users_byte_for_byte() -> None:
    folder = recipes.folder_of("model-based-routing")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(folder.glob("*"))}
    sums.pop("recipe.yaml")
    assert sums == CHECKSUMS


def test_every_recipe_can_be_loaded_and_its_prompts_are_there() -> None:
    for name in recipes.names():
        recipe = recipes.load(name)
        folder = recipes.folder_of(name)
        for file in (recipe.file, *recipe.prompts):
            assert (folder / file).is_file()
        assert {tier.model_variable for tier in recipe.tiers} <= {variable.name for variable in recipe.variables}
        assert all(variable.simulated for variable in recipe.credentials())


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(CliError, match="did you mean 'model-based-routing'"):
        recipes.load("model-based-ruting")


def test_list_shows_title_and_tags(recipe: Recipe) -> None:
    result = recipe("list")
    assert result.code == 0
    assert "model-based-routing  Model-based routing  model-based-routing-recipe  not up" in result.out


CHECKSUMS = {
    "complex_prompt.json": "fc8ed58d45fd14a7",
    "multi-provider.yaml": "fed31f2da9730dd9",
    "simple_prompt.json": "b8e77e9941fc5b4e",
}
