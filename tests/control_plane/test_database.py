"""Engines, units of work and migrations, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from control_plane import database as room
from control_plane.database import Database, driver_url, is_away
from control_plane.errors import CommitInDoubt, StartError
from control_plane.models import Token, metadata
from control_plane.plane import ControlPlane
from control_plane.settings import Settings
from tests.pems import certificate_pem
from tests.postgresql import execute


def token(number: int) -> Token:
    return Token(id=f"{number:036d}", name="t", digest=f"{number:064d}", scopes=[], expires_at=None, created_at=0)


async def count(database: Database) -> int:
    async with database.reading() as session:
        return (await session.execute(select(func.count()).select_from(Token))).scalar_one()


async def test_upgrading_from_empty_gives_the_tables_of_models(empty_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    database = Database(empty_url)
    try:
        await database.migrate()
        async with database.engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await database.close()


async def test_migrating_twice_and_at_once_is_harmless(empty_url: str) -> None:
    replicas = [Database(empty_url) for _ in range(4)]
    try:
        await asyncio.gather(*(replica.migrate() for replica in replicas))
        assert await count(replicas[0]) == 0
    finally:
        for replica in replicas:
            await replica.close()


async def test_a_unit_of_work_that_raises_leaves_no_trace(database: Database) -> None:
    async def fail_midway() -> None:
        async with database.writing() as session:
            session.add(token(1))
            await session.flush()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        await fail_midway()
    assert await count(database) == 0


async def test_many_writers_and_readers_at_once_never_meet_a_locked_database(database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))

    async def write(number: int) -> None:
        async with (database if number % 2 else other).writing() as session:
            await session.execute(select(Token))
            session.add(token(number))

    try:
        await asyncio.gather(*(write(number) for number in range(60)), *(count(database) for _ in range(60)))
        assert await count(database) == 60
    finally:
        await other.close()


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgres://u@h/d", "postgresql+asyncpg"),
        ("postgresql://u@h/d", "postgresql+asyncpg"),
        ("sqlite:///x.db", "sqlite+aiosqlite"),
    ],
)
def test_a_plain_url_gets_its_asynchronous_driver(url: str, driver: str) -> None:
    assert driver_url(url).drivername == driver


def test_the_word_of_libpq_for_tls_is_understood() -> None:
    assert dict(driver_url("postgres://u@h/d?sslmode=require").query) == {"ssl": "require"}


async def test_libpqs_words_for_a_connection_are_understood(postgresql: str) -> None:
    words = (
        "connect_timeout=7&application_name=gateway&options=-c%20statement_timeout%3D1234&channel_binding=prefer"
        "&keepalives=1&target_session_attrs=any&sslmode=prefer&gssencmode=disable"
    )
    database = Database(f"{postgresql}/postgres?{words}")
    try:
        async with database.single() as connection:
            shown = [
                (await connection.execute(text(f"SHOW {name}"))).scalar_one()
                for name in ("application_name", "statement_timeout")
            ]
    finally:
        await database.close()
    assert shown == ["gateway", "1234ms"]


async def test_a_server_that_no_authority_vouches_for_is_refused(postgresql: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(certificate_pem("authority", authority=True))
    database = Database(f"{postgresql}/postgres?sslmode=verify-full&sslrootcert={tmp_path / 'ca.pem'}")
    try:
        with pytest.raises(StartError, match="rejected SSL upgrade"), database.at_start():
            await database.migrate()
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("garbage-hunter2", "expected sqlite:///… or postgresql://…, and this is no such URL"),
        ("postgresql://u:hunter2@h:port/d", "expected sqlite:///… or postgresql://…, and this is no such URL"),
        ("postgresql://u:hunter2@h/d?connect_timeout=soon", "connect_timeout must be a number"),
        ("postgresql://u:hunter2@h/d?channel_binding=require", "leave it out"),
        ("postgresql://u:hunter2@h/d?sslrootcert=/no/ca.pem", "sslrootcert names no file: /no/ca.pem"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_shown(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"DATABASE_URL: .*{said}") as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)


def test_another_kind_of_database_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="mysql"):
        driver_url("mysql://u@h/d")


@pytest.mark.parametrize("cut", [False, True], ids=["ends", "is cancelled"])
async def test_closing_waits_for_the_units_of_work_in_it(database_url: str, cut: bool) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()
    database = Database(database_url)
    pool = database.engine.sync_engine.pool

    async def work() -> None:
        async with database.reading() as session:
            await session.execute(select(func.count()).select_from(Token))
            inside.set()
            await leave.wait()

    worker = asyncio.create_task(work())
    await inside.wait()
    closing = asyncio.create_task(database.close())
    closed, _ = await asyncio.wait({closing}, timeout=0.1)
    assert not closed
    if cut:
        worker.cancel()
    leave.set()
    await asyncio.gather(worker, closing, return_exceptions=True)
    assert pool.checkedin() == pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_connections_that_ended_while_nobody_used_them_are_made_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_TRUSTED_SECONDS", 0.0)
    assert await count(database) == 0
    ended = await end_connections(database)
    assert ended == 1
    assert await count(database) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_ended_a_moment_ago_fails_one_transaction_and_no_other(database: Database) -> None:
    assert await count(database) == 0
    await end_connections(database)
    # Between the server's last word and its end the driver says that another operation is in progress.
    with pytest.raises(DBAPIError) as broken:
        await count(database)
    assert is_away(broken.value)  # the API answers 503
    assert await count(database) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_server_that_takes_no_writes_is_left_for_one_that_does(database: Database, postgresql: str) -> None:

    async def write() -> None:
        async with database.writing() as session:
            session.add(token(1))

    for setting, connections in (("on", 1), ("off", 0)):
        rule = f"ALTER DATABASE {database.url.database} SET default_transaction_read_only = {setting}"
        await execute(f"{postgresql}/postgres", rule)
        if connections:
            await end_connections(database)  # it holds for new ones
            await database.engine.dispose()
            with pytest.raises(DBAPIError) as refused:
                await write()
            assert is_away(refused.value)
    await write()
    assert await count(database) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_breaks_before_the_commit_is_no_doubt_and_one_that_breaks_in_it_is(
    database: Database,
) -> None:

    async def write(*after_the_break: Token) -> None:
        async with database.writing() as session:
            session.add(token(1))
            await session.flush()
            await end_connections(database)
            session.add_all(after_the_break)

    with pytest.raises(DBAPIError) as broken:
        await write(token(2))
    assert is_away(broken.value)
    with pytest.raises(CommitInDoubt):
        await write()
    assert await count(database) == 0


@pytest.mark.parametrize("state", ["57P03", "57P01", "53300", "58030", "08006", "25006"])
def test_a_server_that_cannot_be_worked_with_now_is_away(state: str) -> None:
    raised = asyncpg.PostgresError.new({"C": state, "M": "the server's words"})
    assert is_away(raised)
    assert is_away(DBAPIError("SELECT 1", {}, raised))


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), socket.gaierror(), PoolTimeout()])
def test_a_server_that_does_not_answer_is_away(error: Exception) -> None:
    assert is_away(error)


@pytest.mark.parametrize("state", ["23505", "42P01", "22003", "25P02"])
def test_a_statement_that_the_server_refuses_is_ours(state: str) -> None:
    assert not is_away(DBAPIError("SELECT 1", {}, asyncpg.PostgresError.new({"C": state, "M": "the server's words"})))


async def end_connections(database: Database) -> int:
    """As a restart of the server does; says how many there were."""
    killing = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    other = Database(database.url.render_as_string(hide_password=False))
    try:
        async with other.single() as connection:
            return int((await connection.execute(killing)).scalar_one())
    finally:
        await other.close()


@contextlib.asynccontextmanager
async def lingering(host: str, port: int) -> AsyncIterator[int]:
    """The port of a way to a server that passes all on but its end, as when the network between them is gone."""
    ended = asyncio.Event()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                writer.write(piece)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pass_on(reader, server_writer), pass_on(server_reader, writer))
        await ended.wait()
        server_writer.close()
        writer.close()

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            ended.set()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_closing_does_not_wait_for_a_server_that_does_not_hang_up(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "_CLOSE_SECONDS", 0.2)
    assert database.url.host
    assert database.url.port
    async with lingering(database.url.host, database.url.port) as port:
        far = Database(database.url.set(port=port).render_as_string(hide_password=False))
        assert await count(far) == 0
        await asyncio.wait_for(far.close(), 10)
    assert "did not end its connections" in caplog.text


async def test_a_control_plane_gives_its_database_back_though_another_part_fails_to_end(
    database_url: str, tmp_path: Path
) -> None:
    plane = ControlPlane(Settings(tmp_path / "state", database_url, grpc_port=0, admin_token="kpat_" + "x" * 20))

    async def fail() -> None:
        raise RuntimeError("a part of it")

    with pytest.raises(RuntimeError, match="a part of it"):
        async with plane.running():
            plane.snapshots.close = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the database is closed"):
        await count(plane.database)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_second_look_at_the_file_leaves_the_first_its_locks(database: Database) -> None:
    """Else whoever closes it next, in another process, takes itself for the last and deletes the log in use."""
    async with database.writing() as session:
        session.add(token(1))
    path = Path(database.url.database or "")
    assert path.with_name(f"{path.name}-wal").exists()
    await Database(database.url.render_as_string()).close()
    look = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('select count(*) from tokens')"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", look, str(path))
    assert await process.wait() == 0
    assert path.with_name(f"{path.name}-wal").exists()
