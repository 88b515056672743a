from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.data_plane.agent.control_plane import ControlPlane
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
