"""Where `-o` of dump and diff writes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Recipe
from tests.cli.fakes import EMPTY_PLAN, FakeControlPlane

File = Callable[..., Path]

KONG = '_format_version: "3.0"\nservices:\n  - name: one\n    url: http://example.test\n'


@pytest.fixture
def keeping(plane: FakeControlPlane) -> FakeControlPlane:
    """A control plane that keeps plans."""
    saved = {"id": "p", "version": 1, "author": "me", "created_at": "", "expires_at": "", "select_tags": []}
    plane.answers["POST", "/plans"] = (201, {**saved, "plan": EMPTY_PLAN})
    return plane


def read_through(pipe: Path, recipe: Recipe, *arguments: str | Path) -> str:
    """What a reader of the pipe gets; it is there from the beginning, so that writing need not wait for one."""
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = recipe(*arguments)
        assert result.code == 0, result.err
        return os.read(reader, 65536).decode()
    finally:
        os.close(reader)


@pytest.mark.parametrize("more", [(), ("--yes",)])
def test_dump_writes_into_a_pipe_and_leaves_it_one(
    recipe: Recipe, plane: FakeControlPlane, tmp_path: Path, more: tuple[str, ...]
) -> None:
    pipe = tmp_path / "pipe"
    text = read_through(pipe, recipe, "dump", "--format", "json", "-o", pipe, *more)
    assert json.loads(text) == {"_format_version": "3.0"}
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_diff_writes_its_plan_into_a_pipe(
    recipe: Recipe, keeping: FakeControlPlane, file: File, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    assert json.loads(read_through(pipe, recipe, "diff", file(KONG), "-o", pipe))["_plan"]["id"] == "p"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="a device takes root to make")
def test_a_device_stays_a_device(recipe: Recipe, plane: FakeControlPlane, tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.close(os.open(device, os.O_WRONLY))
    except OSError:
        pytest.skip("no devices on this file system")
    assert recipe("dump", "-o", device, "--yes").code == 0
    assert stat.S_ISCHR(device.lstat().st_mode)


def test_a_link_stays_and_what_it_leads_to_is_replaced(recipe: Recipe, plane: FakeControlPlane, tmp_path: Path) -> None:
    link, target = tmp_path / "lnk", tmp_path / "there" / "target.yaml"
    target.parent.mkdir()
    link.symlink_to("there/target.yaml")
    assert recipe("dump", "-o", link).code == 0
    assert recipe("dump", "-o", link).code == 1
    target.write_text("before")
    assert recipe("dump", "-o", link, "--yes").code == 0
    assert link.is_symlink()
    assert "_format_version" in target.read_text()
    assert [path.name for path in target.parent.iterdir()] == ["target.yaml"]


def test_dump_to_what_exists_asks_nothing_of_the_control_plane(
    recipe: Recipe, plane: FakeControlPlane, file: File
) -> None:
    path = file(KONG)
    result = recipe("dump", "-o", path)
    assert (result.code, result.err) == (1, f"error: {path}: exists already; say --yes to overwrite it\n")
    assert path.read_text() == KONG
    assert plane.requests == []


def test_what_cannot_be_written_is_named(recipe: Recipe, plane: FakeControlPlane, tmp_path: Path) -> None:
    assert f"{tmp_path}: cannot be written: Is a directory" in recipe("dump", "-o", tmp_path).err
    nowhere = tmp_path / "no" / "where"
    assert f"{nowhere}: cannot be written: No such file or directory" in recipe("dump", "-o", nowhere).err


@pytest.mark.parametrize("more", [(), ("--yes",)])
@pytest.mark.parametrize("target", ["kong.yaml", "link.yaml"])
def test_diff_never_overwrites_an_input(
    recipe: Recipe, keeping: FakeControlPlane, file: File, target: str, more: tuple[str, ...]
) -> None:
    path = file(KONG)
    (path.parent / "link.yaml").symlink_to(path)
    result = recipe("diff", path, "-o", path.parent / target, *more)
    assert result.code == 1
    assert f"{path.parent / target}: is one of the files that are read" in result.err
    assert path.read_text() == KONG
    assert keeping.requests == []


def test_diff_overwrites_plans_and_asks_before_it_overwrites_anything_else(
    recipe: Recipe, keeping: FakeControlPlane, file: File, tmp_path: Path
) -> None:
    path, other = file(KONG), file("notes", "notes.txt")
    assert recipe("diff", path, "-o", tmp_path / "plan.json").code == 0
    assert recipe("diff", path, "-o", tmp_path / "plan.json").code == 0
    refused = recipe("diff", path, "-o", other)
    assert (refused.code, other.read_text()) == (1, "notes")
    assert f"{other}: exists already; say --yes to overwrite it" in refused.err
    assert len(keeping.sent("POST", "/plans")) == 2
    assert recipe("diff", path, "-o", other, "--yes").code == 0
    assert json.loads(other.read_text())["_plan"]["id"] == "p"
