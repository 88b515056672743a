"""The control plane on both databases: SQLite in a file, and a real PostgreSQL that the session starts for itself."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from control_plane.database import Database, driver_url
from tests.control_plane.client import Client, running_client


def _missing(what: str) -> None:
    """Skip, or fail where everything must run."""
    if os.environ.get("TANDEM_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is missing and TANDEM_REQUIRE_ALL=1")
    pytest.skip(f"{what} is missing on this machine")


def _binaries() -> Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    path = found[-1] if found else shutil.which("initdb")
    if path is None:
        _missing("PostgreSQL (initdb)")
    return Path(str(path)).parent


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root; root borrows the account that its package made."""
    if os.geteuid() != 0:
        return []
    if shutil.which("runuser") is None:
        _missing("runuser")
    return ["runuser", "-u", "postgres", "--"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a running PostgreSQL, without a database name."""
    binaries, prefix = _binaries(), _unprivileged()
    base = Path(tempfile.mkdtemp(prefix="tandem-pg-"))
    if prefix:
        shutil.chown(base, "postgres")
    port = _free_port()
    options = f"-p {port} -k {base} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"

    def run(*command: str) -> None:
        subprocess.run([*prefix, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=60)

    try:
        run(str(binaries / "initdb"), "-D", str(base / "data"), "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N")
        control = [str(binaries / "pg_ctl"), "-D", str(base / "data"), "-w"]
        run(*control, "-l", str(base / "log"), "-o", options, "start")
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def _execute(url: str, statement: str) -> None:
    engine = create_async_engine(driver_url(url), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text(statement))
    finally:
        await engine.dispose()


async def _migrate(url: str) -> None:
    database = Database(url)
    try:
        await database.migrate()
    finally:
        await database.close()


def _in_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on a loop of its own: fixtures of the session are made while a test's loop is running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy: running all revisions for each test would be most of its time."""
    path = tmp_path_factory.mktemp("migrated") / "control-plane.db"
    _in_thread(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: str) -> str:
    """The name of a database to copy."""
    _in_thread(_execute(f"{postgresql}/postgres", "CREATE DATABASE migrated"))
    _in_thread(_migrate(f"{postgresql}/migrated"))
    return "migrated"


@contextlib.asynccontextmanager
async def _database_of_its_own(server: str, template: str) -> AsyncIterator[str]:
    name = f"t{uuid.uuid4().hex}"
    await _execute(f"{server}/postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
    yield f"{server}/{name}"
    await _execute(f"{server}/postgres", f"DROP DATABASE {name} WITH (FORCE)")


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
