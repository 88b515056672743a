from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack with the recipe applied, shared by a module's tests."""
    yield from running(tmp_path_factory.mktemp("home"))


@pytest.fixture
def fresh_stack(tmp_path: Path) -> Iterator[Stack]:
    """A running stack of the test's own, to be broken at will."""
    yield from running(tmp_path / "home")


def running(home: Path, **settings: object) -> Iterator[Stack]:
    stack = Stack(home, **settings)  # type: ignore[arg-type]
    result = stack.up()
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        yield stack
    finally:
        stack.recipe("down", "--all")
