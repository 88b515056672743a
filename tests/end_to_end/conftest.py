"""Stacks for the end-to-end tests, each on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.stack import Stack
from tests.postgresql import execute, in_thread


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> str | None:
    """The URL of a PostgreSQL without a database name; None for SQLite."""
    return None if request.param == "sqlite" else str(request.getfixturevalue("postgresql"))


@pytest.fixture(scope="module")
def stack(server: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack with the recipe applied, shared by a module's tests."""
    yield from running(tmp_path_factory.mktemp("home"), server)


@pytest.fixture
def fresh_stack(server: str | None, tmp_path: Path) -> Iterator[Stack]:
    """A running stack of the test's own, to be broken at will."""
    yield from running(tmp_path / "home", server)


@pytest.fixture
def home(server: str | None, tmp_path: Path) -> Iterator[Stack]:
    """A place for a stack that the test itself starts."""
    stack = Stack(tmp_path / "home", database_on(server))
    try:
        yield stack
    finally:
        stack.recipe("down", "--all")


def running(home: Path, server: str | None) -> Iterator[Stack]:
    stack = Stack(home, database_on(server))
    result = stack.up()
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        yield stack
    finally:
        stack.recipe("down", "--all")


def database_on(server: str | None) -> str | None:
    """The URL of a new, empty database; None lets the stack make its own file."""
    if server is None:
        return None
    name = f"e{uuid.uuid4().hex}"
    in_thread(execute(f"{server}/postgres", f"CREATE DATABASE {name}"))
    return f"{server}/{name}"
