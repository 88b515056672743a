"""The control plane on both databases: SQLite in a file, and a real PostgreSQL that the session starts for itself."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.database import Database
from control_plane.plane import ControlPlane
from control_plane.settings import Settings
from tests.control_plane.administration import TOKEN, Admin
from tests.control_plane.client import Client, running_client
from tests.postgresql import execute, in_thread


async def _migrate(url: str) -> None:
    database = Database(url)
    try:
        await database.migrate()
    finally:
        await database.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy: running all revisions for each test would be most of its time."""
    path = tmp_path_factory.mktemp("migrated") / "control-plane.db"
    in_thread(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: str) -> str:
    """The name of a database to copy."""
    in_thread(execute(f"{postgresql}/postgres", "CREATE DATABASE migrated"))
    in_thread(_migrate(f"{postgresql}/migrated"))
    return "migrated"


@contextlib.asynccontextmanager
async def _database_of_its_own(server: str, template: str) -> AsyncIterator[str]:
    name = f"t{uuid.uuid4().hex}"
    await execute(f"{server}/postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
    yield f"{server}/{name}"
    await execute(f"{server}/postgres", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'control-plane.db'}"
        return
    async with _database_of_its_own(request.getfixturevalue("postgresql"), "template0") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database of each kind, with all tables and nothing in them."""
    if request.param == "sqlite":
        path = tmp_path / "control-plane.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    template = request.getfixturevalue("migrated_postgresql")
    async with _database_of_its_own(request.getfixturevalue("postgresql"), template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database."""
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def client(tmp_path: Path, database_url: str) -> AsyncIterator[Client]:
    """A running control plane with one control plane resource in it."""
    async with running_client(tmp_path / "state", database_url) as client:
        yield client


@pytest.fixture
async def admin(database_url: str, tmp_path: Path) -> AsyncIterator[Admin]:
    settings = Settings(state_dir=tmp_path / "state", database_url=database_url, grpc_port=0, admin_token=TOKEN)
    plane = ControlPlane(settings)
    async with plane.running():
        admin = Admin(plane)
        await admin.prepare()
        yield admin
        await admin.http.aclose()
