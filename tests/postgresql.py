"""A real PostgreSQL, started from the machine's own binaries: for the tests once per run, for the benchmarks too."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from control_plane.database import driver_url
from tests.ports import free_ports


class Missing(Exception):
    """The machine lacks what the message names."""


def _binaries() -> Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    path = found[-1] if found else shutil.which("initdb")
    if path is None:
        raise Missing("PostgreSQL (initdb)")
    return Path(path).parent


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root; root borrows the account that its package made."""
    if os.geteuid() != 0:
        return []
    if shutil.which("runuser") is None:
        raise Missing("runuser")
    return ["runuser", "-u", "postgres", "--"]


@contextlib.contextmanager
def running(durable: bool = False) -> Iterator[str]:
    """The URL of a running PostgreSQL, without a database name. Raises Missing.

    `durable`: it waits for the disk, as in production; tests do without.
    """
    binaries, prefix = _binaries(), _unprivileged()
    base = Path(tempfile.mkdtemp(prefix="tandem-pg-"))
    if prefix:
        shutil.chown(base, "postgres")
    [port] = free_ports(1)
    fsync = "on" if durable else "off"
    options = f"-p {port} -k {base} -c listen_addresses=127.0.0.1 -c fsync={fsync} -c max_connections=60"

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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a running PostgreSQL, without a database name; skips, or fails where everything must run."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(running())
        except Missing as missing:
            if os.environ.get("TANDEM_REQUIRE_ALL") == "1":
                pytest.fail(f"{missing} is missing and TANDEM_REQUIRE_ALL=1")
            pytest.skip(f"{missing} is missing on this machine")
        yield url


async def execute(url: str, statement: str) -> None:
    """Run one statement outside any transaction."""
    engine = create_async_engine(driver_url(url), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text(statement))
    finally:
        await engine.dispose()


def in_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on a loop of its own: fixtures of the session are made while a test's loop is running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
