from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from data_plane.agent.link import Backoff
from tests.data_plane.agent.control_plane import ControlPlane
from tests.data_plane.agent.scripted import Node
from tests.data_plane.agent.spools import close_all


@pytest.fixture(autouse=True)
def _spools_are_closed() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A node's state directory whose name is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="node-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def control_plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(tmp_path)
    await plane.start()
    yield plane
    await plane.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are opened again at once."""
    monkeypatch.setattr(Backoff, "next", lambda self: 0.02)


@pytest.fixture
async def node(impatient: None, control_plane: ControlPlane, state_dir: Path) -> AsyncIterator[Node]:
    made = Node(control_plane.settings(state_dir))
    await made.start()
    await control_plane.connected()
    yield made
    await made.stop()
