from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.app import run
from cli.output import Output
from tests.cli.fakes import FakeControlPlane


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Recipe = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state home of its own, and none of the environment's settings."""
    for name in list(os.environ):
        if name.startswith(("DECK_", "KONNECT_", "RECIPE_", "AWS_", "OPENAI_", "TANDEM_DEBUG", "MAKELEVEL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RECIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def recipe() -> Recipe:
    """Run the command in this process: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> Result:
        out, err = io.StringIO(), io.StringIO()
        code = run([str(argument) for argument in arguments], Output(stdout=out, stderr=err))
        return Result(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControlPlane]:
    """A scripted control plane that the environment points to."""
    fake = FakeControlPlane().start()
    monkeypatch.setenv("DECK_KONNECT_ADDR", fake.url)
    monkeypatch.setenv("DECK_KONNECT_TOKEN", "kpat_of_the_tests_0123456789")
    yield fake
    fake.stop()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write a declarative file."""

    def write(text: str, name: str = "kong.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write
