"""The database: engines, units of work, migrations.

A unit of work is one `async with`: it commits when the block ends and rolls back when the block raises. Handlers close
theirs *before* they answer, so that nobody is told of a success that the commit then refuses.

SQLite has one writer. Writers of this process queue on a lock (in order, without polling), take the write lock at once
(BEGIN IMMEDIATE: a transaction that began as a reader cannot be upgraded while another writes) and wait for other
processes by SQLite's busy timeout. Readers never wait: the journal is a write-ahead log. On PostgreSQL writers of one
control plane queue on its row, see `repository.lock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import asyncpg
import orjson
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Dialect, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from control_plane.errors import CommitInDoubt, StartError

_log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 30_000
_WRITES = "tandem_writes"
_REBUILDS = "tandem_rebuilds"
_SINGLE = "tandem_single"
_REPLICA = "tandem_replica"
_USED = "tandem_used"
_START_LOCK = 0x7A4D_DE11
"""PostgreSQL's advisory lock under which one replica prepares the database while the others wait."""

_READ_ONLY = "25006"
_CLOSE_SECONDS = 5.0
_TRUSTED_SECONDS = 1.0
"""A pooled connection that was in use so lately is taken for alive: asking it costs as much as a statement."""
_WRITERS = 4
"""Transactions of this process that write to PostgreSQL at a time. The others wait here, in their order and without a
connection: fifty that wait for one row's lock would hold the whole pool, and some would wait longer than clients do."""


_EXPECTED = "sqlite:///… or postgresql://…"
_ARGUMENTS = frozenset(
    ("host", "port", "user", "password", "database", "passfile", "service", "ssl", "prepared_statement_cache_size")
)
_FILES = frozenset(("sslrootcert", "sslcert", "sslkey", "sslcrl"))
_NOT_FOR_US = frozenset(
    (
        *("connect_timeout", "fallback_application_name", "client_encoding", "gssencmode", "sslcompression", "sslsni"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    )
)
"""libpq's words that tune what the driver sees to in its own way (`connect_timeout`: `_connect_seconds`)."""


class Database:
    """One database. `reading()` and `writing()` are its units of work."""

    def __init__(self, url: str) -> None:
        self.url = driver_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _engine(self.url, _connect_seconds(url))
        self._writer_engine = self.engine.execution_options(**{_WRITES: True})
        readers = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ")
        self.replica = secrets.token_hex(8)
        """Tells this process from the others on the same database, until it ends."""
        self._readers = async_sessionmaker(readers, expire_on_commit=False)
        alone = {_SINGLE: True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._singles = self.engine.execution_options(**alone)
        others = {} if self.is_sqlite else {_REPLICA: self.replica}
        self._writers = async_sessionmaker(self._writer_engine, expire_on_commit=False, info=others)
        self._writer: contextlib.AbstractAsyncContextManager[Any] = (
            asyncio.Lock() if self.is_sqlite else asyncio.Semaphore(_WRITERS)
        )
        self._units = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A consistent view; nothing is committed."""
        with self._unit():
            async with self._readers() as session:
                yield session

    @contextlib.asynccontextmanager
    async def single(self) -> AsyncIterator[AsyncConnection]:
        """For statements that need no transaction around them, each its own: begin and end cost as much as one.

        Not to write to SQLite with, whose writers queue in `writing`.
        """
        with self._unit():
            async with self._singles.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits at the end of the block, or leaves no trace.

        Raises CommitInDoubt when PostgreSQL went away while it committed.
        """
        committing = False
        with self._unit():
            try:
                async with self._writer, self._writers() as session, session.begin():
                    yield session
                    await session.flush()
                    committing = not self.is_sqlite
            except Exception as error:
                if committing and is_away(error):
                    raise CommitInDoubt from error
                raise

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only one replica at a time is in: for what is done once, when the process starts."""
        async with self.writing() as session:
            if not self.is_sqlite:
                await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _START_LOCK})
            yield session

    async def migrate(self) -> None:
        """Bring the tables to the newest revision. Safe when several replicas start at once."""
        if self.is_sqlite:
            await self._migrate_sqlite()
            return
        async with self.starting() as session:
            connection = await session.connection()
            await connection.run_sync(_upgrade)

    async def _migrate_sqlite(self) -> None:
        """SQLite changes a table by making it anew; dropping the old one must not take along what refers to it."""
        engine = self._writer_engine.execution_options(**{_REBUILDS: True})
        async with self._writer, engine.connect() as connection:
            try:
                async with connection.begin():
                    await connection.run_sync(_upgrade)
                    broken = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).first()
                    if broken is not None:
                        raise RuntimeError(f"a migration left table {broken[0]} with a reference to nothing")
            finally:
                raw = await connection.get_raw_connection()
                await raw.driver_connection.execute("PRAGMA foreign_keys = ON")  # type: ignore[union-attr]

    def connect_options(self, name: str) -> dict[str, Any]:
        """Arguments of asyncpg.connect for a connection outside the pool, which the server shows under that name."""
        _, options = self.engine.dialect.create_connect_args(self.url)
        for ours in ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback"):
            options.pop(ours, None)  # these are for SQLAlchemy
        return {**options, "server_settings": {"application_name": name}}

    @contextlib.contextmanager
    def at_start(self) -> Iterator[None]:
        """What goes wrong in the block, or with the connection that it needs, becomes a StartError for the operator."""
        try:
            yield
        except (SQLAlchemyError, OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # Without the query, in which a password may stand too.
            shown = self.url.set(drivername=self.url.get_backend_name(), query={}).render_as_string(hide_password=True)
            said = str(error) or "it does not answer"
            raise StartError(f"the database {shown} (DATABASE_URL) cannot be used: {said}") from error

    async def close(self) -> None:
        """Give the connections back, once the units of work have ended (a stream that was cut may still be in one).

        A connection that returns to a pool which is gone would stay open until the process ends.
        """
        self._closed = True
        try:
            await asyncio.wait_for(self._idle.wait(), _CLOSE_SECONDS)
        except TimeoutError:
            _log.warning("the database is closed while %d transactions still run", self._units)
        finally:
            await self._dispose()

    async def _dispose(self) -> None:
        try:
            # Each connection waits for its server to hang up, and one that cannot be reached any more never does.
            await asyncio.wait_for(self.engine.dispose(), _CLOSE_SECONDS)
        except TimeoutError:
            _log.warning("the database did not end its connections within %g s: they are left to it", _CLOSE_SECONDS)

    @contextlib.contextmanager
    def _unit(self) -> Iterator[None]:
        if self._closed:
            raise RuntimeError("the database is closed: a transaction that began now would leave its connection open")
        self._units += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._units -= 1
            if not self._units:
                self._idle.set()


def is_away(error: BaseException) -> bool:
    """Whether the database cannot be worked with now: another moment, or another server, and the same would succeed.

    SQLite gives a statement that it cannot read the same class as a file that it cannot reach: that one is ours.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    driver = getattr(error, "orig", None) or error
    if state := getattr(driver, "sqlstate", None):
        return _state_means_away(state)
    if isinstance(error, OperationalError):
        code: int | None = getattr(driver, "sqlite_errorcode", None)
        return code != sqlite3.SQLITE_ERROR
    return isinstance(error, _NO_ANSWER)


_NO_ANSWER = (
    InterfaceError,
    asyncpg.InterfaceError,
    ConnectionError,
    TimeoutError,  # of a connection that is not made in its time
    PoolTimeout,
    socket.gaierror,
)


def _state_means_away(state: str) -> bool:
    """PostgreSQL's own word: connection, resources, an operator's intervention (a start or an end), the system; or it
    takes no writes, for the one that does is another by now."""
    return state == _READ_ONLY or state[:2] in ("08", "53", "57", "58")


def _leave_read_only(context: ExceptionContext) -> None:
    """The pool gives up connections to a server that takes no writes any more: new ones may lead to another."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def replica_of(session: AsyncSession) -> str | None:
    """`Database.replica` of a writing session when there may be other replicas; None on SQLite."""
    return session.info.get(_REPLICA)


async def take_turns(session: AsyncSession, subject: str) -> None:
    """Wait until nobody else, on any replica, is in a transaction about this subject; to the end of one's own, nobody
    then is. SQLite has one writer anyway."""
    if replica_of(session) is not None:
        lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:subject, 0))")
        await session.execute(lock, {"subject": subject})


def driver_url(url: str) -> URL:
    """The URL with its asynchronous driver. Raises ValueError for a database that is not supported."""
    parsed = _parsed(url)
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
    name = parsed.drivername.split("+")[0]
    if name not in drivers:
        raise ValueError(f"DATABASE_URL: expected {_EXPECTED}, not {parsed.drivername}://…")
    query = dict(parsed.query)
    return parsed.set(drivername=drivers[name], query=query if name == "sqlite" else _driver_words(query))


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # Their texts may hold the password.
        raise ValueError(f"DATABASE_URL: expected {_EXPECTED}, and this is no such URL") from None


def _driver_words(query: Mapping[str, str | tuple[str, ...]]) -> dict[str, str]:
    """libpq's words for a connection, which hosts put into the URL, as asyncpg takes them: some are arguments of its
    own, most it knows from a URL of libpq's only. What it does not know goes to the server as a setting."""
    given = {key: value if isinstance(value, str) else value[-1] for key, value in query.items()}
    if given.pop("channel_binding", "prefer") == "require":
        raise ValueError(
            "DATABASE_URL: channel_binding=require is more than the driver can do: leave it out, and let "
            "sslmode=verify-full with sslrootcert say who the server is"
        )
    for word in _FILES & given.keys():
        if given[word] != "system" and not Path(given[word]).is_file():
            raise ValueError(f"DATABASE_URL: {word} names no file: {given[word]}")
    if "sslmode" in given:
        given["ssl"] = given.pop("sslmode")
    ours = {key: value for key, value in given.items() if key in _ARGUMENTS}
    theirs = {key: value for key, value in given.items() if key not in _ARGUMENTS and key not in _NOT_FOR_US}
    return {**ours, "dsn": f"postgresql://?{urlencode(theirs, quote_via=quote)}"} if theirs else ours


def _connect_seconds(url: str) -> dict[str, float]:
    """libpq's `connect_timeout`, which is a number and so none of a driver's URL."""
    text = _parsed(url).query.get("connect_timeout")
    if text is None:
        return {}
    if not isinstance(text, str) or not text.isdecimal():
        raise ValueError("DATABASE_URL: connect_timeout must be a number of seconds")
    return {"timeout": float(text)} if int(text) else {}


_ENGINE_OPTIONS: dict[str, Any] = {
    "json_serializer": lambda value: orjson.dumps(value).decode(),
    "json_deserializer": orjson.loads,
    "hide_parameters": True,  # bound values may be credentials; error texts and logs must not show them
}


def _engine(url: URL, arguments: dict[str, float]) -> AsyncEngine:
    pool = {"pool_size": 10, "max_overflow": 10, "pool_use_lifo": True}
    engine = create_async_engine(url, connect_args=arguments, **pool, **_ENGINE_OPTIONS)
    event.listen(engine.sync_engine, "handle_error", _leave_read_only)
    event.listen(engine.sync_engine, "checkin", _note_use)
    event.listen(engine.sync_engine, "checkout", partial(_check_alive, engine.sync_engine.dialect))
    return engine


def _sqlite_engine(url: URL) -> AsyncEngine:
    if url.database and url.database != ":memory:":
        try:
            _make_file(Path(url.database))
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"the database file {url.database} (DATABASE_URL) cannot be used: {error}") from error
    engine = create_async_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, **_ENGINE_OPTIONS)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _make_file(path: Path) -> None:
    """The file, readable by its owner only (SQLite gives its journals the same mode), with a write-ahead log.

    The log is a property of the file. Turning it on needs the file alone, and SQLite does not wait for that whatever
    the busy timeout: when several processes begin at once, all but one must try again.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Only one that is new is opened here. With any descriptor of a file that is closed, a process loses its locks on
    # it, SQLite's among them; the next to close the database would take itself for the last, and delete the log.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    with contextlib.closing(sqlite3.connect(path, timeout=1)) as connection:
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin_sqlite` does
    cursor = connection.cursor()
    for pragma in (
        "synchronous = NORMAL",  # a crash of the process loses nothing, a power cut at most the last commits
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _note_use(_connection: Any, record: Any) -> None:
    record.info[_USED] = time.monotonic()


def _check_alive(dialect: Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    """Raises DisconnectionError, upon which the pool makes another connection in its place."""
    if time.monotonic() - record.info.get(_USED, math.inf) < _TRUSTED_SECONDS:
        return
    try:
        dialect.do_ping(connection)
    except Exception as error:
        # Whatever it says: a connection that does not even answer is of no use.
        raise DisconnectionError(str(error)) from error


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_SINGLE):
        return
    if options.get(_REBUILDS):
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")  # without effect once a transaction has begun
    writes = options.get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
