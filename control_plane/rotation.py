"""`python -m control_plane rotate-key`: everything that is encrypted comes under a new key.

With the key file: the command puts a new key in front of the file's, and control planes on the same file take it up by
themselves. With TANDEM_ENCRYPTION_KEY: `STEPS`. None may write under the new key before all can read it, for one that
cannot shows no secret and builds no snapshot; so the new key stands behind the old one first. (Where each control plane
has a file of its own, with equal keys, the steps are the same, with the files in place of the variable.)

Rows are renewed in small transactions, each under the lock that writers of its control plane take. What is under the
first key already stays as it is: a pass that was interrupted is simply run again. `--finish`, once every control plane
knows the new key, makes one more pass, for what was written meanwhile, and forgets the old keys.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from sqlalchemy import Table, bindparam, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.auth import Principal
from control_plane.database import Database
from control_plane.errors import StartError
from control_plane.models import (
    CONFIG_STORE_SECRETS,
    ENTITY_TABLES,
    SAVED_PLANS,
    SNAPSHOTS,
    ControlPlane,
    Keyring,
)
from control_plane.sealed import reseal
from control_plane.secrets import Cipher, key_path, open_cipher, parse_keys, read_keys
from control_plane.settings import Settings, make_state_dir
from gateway_schema import content
from gateway_schema.registry import ENTITY_TYPES

STEPS = (
    "To rotate TANDEM_ENCRYPTION_KEY, let each step reach every control plane before the next begins (restarts may be "
    "one by one): set it to OLD,NEW and restart; set it to NEW,OLD and restart; run rotate-key once, with "
    "NEW,OLD; set it to NEW and restart."
)

BATCH = 200
"""Rows in one transaction."""
_SEALED = (SNAPSHOTS, SAVED_PLANS, CONFIG_STORE_SECRETS)
"""Tables whose `payload` is a sealed document."""
_MOST_PASSES = 10
_COMMAND = Principal(id="", name="rotate-key", scopes=frozenset(), created_at=0)
"""Who stands in the audit log: whoever may run the command on this machine."""

_Renew = Callable[[Any], Any]


async def rotate_key(settings: Settings, *, finish: bool = False, say: Callable[[str], None] = print) -> None:
    """Raises StartError for what the operator can mend."""
    make_state_dir(settings)
    with _alone(settings.state_dir / "rotation.lock"):
        in_file = not settings.encryption_key
        keys = read_keys(settings)
        if in_file and not finish and len(keys) == 1:
            keys = add_key(key_path(settings))
        renewed = await _reencrypt(settings, keys)
        say(f"{renewed} rows renewed; everything is under the first key now")
        if in_file and finish and len(keys) > 1:
            write_keys(key_path(settings), keys[:1])
            say(f"{key_path(settings)}: the old keys are gone")
        elif in_file and not finish:
            say(f"{key_path(settings)}: holds the new key and the old; run this again with --finish to drop the old")
        elif len(keys) > 1:
            say("TANDEM_ENCRYPTION_KEY: set it to the first key alone, if every control plane had that in front before")
        elif not in_file:
            say(f"TANDEM_ENCRYPTION_KEY: holds one key, so there was none to replace. {STEPS}")


async def _reencrypt(settings: Settings, keys: Sequence[str]) -> int:
    database = Database(settings.database_url)
    try:
        with database.at_start():
            async with database.starting() as session:
                cipher = await open_cipher(session, keys)
            renewed = await reencrypt(database, cipher)
            if renewed:
                async with database.writing() as session:
                    await audit.record(session, _COMMAND, "rotate-key", "keyring", details={"rows": renewed})
            return renewed
    finally:
        await database.close()


async def reencrypt(database: Database, cipher: Cipher) -> int:
    """Bring all that is encrypted under the cipher's first key. Returns how many rows it renewed."""
    total = 0
    for _ in range(_MOST_PASSES):
        renewed = await _pass(database, cipher)
        total += renewed
        if not renewed:
            return total
    raise StartError(
        "something still writes under the old key: restart every control plane with the new key in front, then again"
    )


async def _pass(database: Database, cipher: Cipher) -> int:
    renewed = await _renew_keyring(database, cipher)
    async with database.reading() as session:
        ids = (await session.execute(select(ControlPlane.id).order_by(ControlPlane.id))).scalars().all()
    for control_plane_id in ids:
        for name, table in ENTITY_TABLES.items():
            row = ENTITY_TYPES[name]

            def renew(written: Any, row: Any = row) -> Any:
                return content.change_secrets(row, written, cipher.rotate)

            renewed += await _renew_column(database, table, "written", control_plane_id, renew)
        for table in _SEALED:
            renewed += await _renew_column(
                database, table, "payload", control_plane_id, lambda sealed: reseal(cipher, sealed)
            )
    return renewed


async def _renew_keyring(database: Database, cipher: Cipher) -> int:
    renewed = 0
    async with database.writing() as session:
        for key in (await session.execute(select(Keyring).with_for_update())).scalars():
            value = cipher.rotate(key.value)
            value = value if value != key.value or value.startswith("fernet:") else cipher.rotate_token(value)
            renewed += value != key.value
            key.value = value
    return renewed


async def _renew_column(database: Database, table: Table, column: str, control_plane_id: str, renew: _Renew) -> int:
    """One column of a control plane's rows, batch by batch, in the order of the key."""
    renewed = 0
    after: tuple[Any, ...] | None = None
    while True:
        async with database.writing() as session:
            lock = select(ControlPlane.id).where(ControlPlane.id == control_plane_id).with_for_update()
            if (await session.execute(lock)).first() is None:
                return renewed  # deleted meanwhile, with all it held
            found = await _batch(session, table, column, control_plane_id, after)
            changed = [(*key, new) for *key, old in found if (new := renew(old)) != old]
            await _write(session, table, column, changed)
        renewed += len(changed)
        if len(found) < BATCH:
            return renewed
        after = tuple(found[-1][:-1])


async def _batch(
    session: AsyncSession, table: Table, column: str, control_plane_id: str, after: tuple[Any, ...] | None
) -> Sequence[Any]:
    key = list(table.primary_key.columns)
    query = select(*key, table.c[column]).where(table.c.control_plane_id == control_plane_id)
    if after is not None:
        query = query.where(tuple_(*key) > after)
    return (await session.execute(query.order_by(*key).limit(BATCH))).all()


async def _write(session: AsyncSession, table: Table, column: str, changed: Sequence[tuple[Any, ...]]) -> None:
    if not changed:
        return
    key = [one.name for one in table.primary_key.columns]
    statement = update(table).values({column: bindparam("b_new")})
    for name in key:
        statement = statement.where(table.c[name] == bindparam(f"b_{name}"))
    names = [*(f"b_{name}" for name in key), "b_new"]
    connection = await session.connection()
    await connection.execute(statement, [dict(zip(names, row, strict=True)) for row in changed])


# -- the key file


def add_key(path: Path) -> list[str]:
    """Put a new key in front of a key file's."""
    keys = [Fernet.generate_key().decode(), *parse_keys(path.read_text(), str(path))]
    write_keys(path, keys)
    return keys


def write_keys(path: Path, keys: Sequence[str]) -> None:
    """Whole or not at all, and on the disk before anything is encrypted: a key that is lost takes the data along."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(",".join(keys))
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One rotation at a time: two would each make a key, and one of them would be lost."""
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError("another rotation is under way in this state directory") from None
        yield
