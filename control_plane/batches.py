"""Writing many entities at once, in few statements; the repository and the atomic apply both end here.

Constraints were checked before. Unique values may wander between the rows of a batch (a swap of names, a name taken
over from a row that goes): those that will change are set to null first, which conflicts with nothing, so that no order
of statements matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Table, Text, Update, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.bulk import insert_rows
from control_plane.database import replica_of
from control_plane.holdings import Row
from control_plane.models import (
    ENTITY_TABLES,
    ENTITY_TAGS,
    ControlPlane,
    lookup_columns,
    reference_column,
    unique_columns,
)
from control_plane.ownership import release
from control_plane.replicas import announced
from control_plane.secrets import Cipher
from gateway_schema import content
from gateway_schema.registry import ENTITY_TYPES, EntityType, children_of

_CHUNK = 500
"""Ids in one statement: drivers allow some 32,000 parameters, planners like fewer."""
_MANY = 50


@dataclass(slots=True)
class Changes:
    """Rows to write in one go. `updates` holds (before, after)."""

    creates: list[Row] = field(default_factory=list)
    updates: list[tuple[Row, Row]] = field(default_factory=list)
    deletes: list[Row] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.creates or self.updates or self.deletes)

    @property
    def puts(self) -> list[Row]:
        return [*self.creates, *(after for _, after in self.updates)]


class BatchWriter:
    """Writes to one control plane, inside one transaction that holds its lock."""

    def __init__(self, session: AsyncSession, control_plane_id: str, cipher: Cipher) -> None:
        self._session = session
        self._control_plane_id = control_plane_id
        self._cipher = cipher

    async def write(self, changes: Changes) -> int:
        """Returns the new version."""
        version = await self._next_version()
        await self._park(changes)
        created = dict(_by_type(changes.creates))
        updated = dict(_by_type(changes.puts[len(changes.creates) :]))
        for row in _in_order({*created, *updated}):
            await insert_rows(self._session, ENTITY_TABLES[row.name], await self._values(created.get(row), version))
            if changed := await self._values(updated.get(row), version):
                await self._update(ENTITY_TABLES[row.name], changed)
        await self._write_tags(changes)
        for row in reversed(_in_order({item.type for item in changes.deletes})):
            await self._delete_rows(row, [item.id for item in changes.deletes if item.type is row])
        return version

    async def _next_version(self) -> int:
        replica = replica_of(self._session)
        connection = await self._session.connection()
        given = {"b_id": self._control_plane_id} | ({"b_replica": replica} if replica is not None else {})
        version: int = (await connection.execute(_next_version(replica is not None), given)).scalar_one()
        return version

    async def _park(self, changes: Changes) -> None:
        if not changes.puts:
            return
        wandering = [before for before, after in changes.updates if _keys(before) != _keys(after)]
        leaving = [*wandering, *changes.deletes] if len(changes.updates) + len(changes.creates) else []
        for row, items in _by_type(leaving):
            table = ENTITY_TABLES[row.name]
            empty = dict.fromkeys(unique_columns(row))
            if not empty:
                continue
            for chunk in _chunks([item.id for item in items]):
                await self._session.execute(update(table).where(self._mine(table), table.c.id.in_(chunk)).values(empty))

    async def _update(self, table: Table, values: Sequence[dict[str, Any]]) -> None:
        columns = tuple(name for name in values[0] if name != "created_at")
        connection = await self._session.connection()
        given = [{f"b_{name}": row[name] for name in columns} for row in values]
        await connection.execute(_update_of(table, columns), given)

    async def _write_tags(self, changes: Changes) -> None:
        stale = [before for before, after in changes.updates if before.tags and before.tags != after.tags]
        await self._delete_tags(stale)
        fresh = [*changes.creates, *(after for before, after in changes.updates if before.tags != after.tags)]
        rows = [
            {
                "control_plane_id": self._control_plane_id,
                "tag": tag,
                "entity_type": item.type.name,
                "entity_id": item.id,
            }
            for item in fresh
            for tag in item.tags
        ]
        await insert_rows(self._session, ENTITY_TAGS, rows)

    async def _delete_tags(self, items: Iterable[Row]) -> None:
        for row, group in _by_type(items):
            await self._delete_tags_of(row, [item.id for item in group])

    async def _delete_tags_of(self, row: EntityType, ids: Sequence[str]) -> None:
        for chunk in _chunks(ids):
            await self._session.execute(
                delete(ENTITY_TAGS).where(
                    ENTITY_TAGS.c.control_plane_id == self._control_plane_id,
                    ENTITY_TAGS.c.entity_type == row.name,
                    ENTITY_TAGS.c.entity_id.in_(chunk),
                )
            )

    async def _delete_rows(self, row: EntityType, ids: Sequence[str]) -> None:
        """The rows, their tags and owners, and those of what the database deletes with them."""
        if not ids:
            return
        await self._delete_tags_of(row, ids)
        await release(self._session, self._control_plane_id, row.name, ids)
        for child, field_name, parent in children_of(row.name):
            if parent.on_delete == "cascade":
                await self._delete_rows(child, await self.children(child, field_name, ids))
        table = ENTITY_TABLES[row.name]
        for chunk in _chunks(ids):
            await self._session.execute(delete(table).where(self._mine(table), table.c.id.in_(chunk)))

    async def children(self, child: EntityType, field_name: str, ids: Sequence[str]) -> Sequence[str]:
        """Ids of the rows of a kind that refer to any of these."""
        table = ENTITY_TABLES[child.name]
        found: list[str] = []
        for chunk in _chunks(ids):
            query = select(table.c.id).where(self._mine(table), table.c[reference_column(field_name)].in_(chunk))
            found.extend((await self._session.execute(query)).scalars())
        return found

    async def _values(self, rows: Sequence[Row] | None, version: int) -> list[dict[str, Any]]:
        """The columns of rows; many are made off the loop, because secrets are encrypted one by one."""
        if rows is None or len(rows) < _MANY:
            return [self.values(row, version) for row in rows or ()]
        return await asyncio.to_thread(lambda: [self.values(row, version) for row in rows])

    def values(self, row: Row, version: int) -> dict[str, Any]:
        """The columns of a row."""
        values: dict[str, Any] = {
            "control_plane_id": self._control_plane_id,
            "id": row.id,
            "written": content.change_secrets(row.type, row.written, self._cipher.encrypt),
            "revision": version,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
        }
        if row.type.expires:
            values["expires_at"] = row.expires_at
        for name in row.type.parents:
            values[reference_column(name)] = row.reference(name)
        for column, fields in unique_columns(row.type).items():
            values[column] = self._unique_value(row, column, fields)
        for column, fields in lookup_columns(row.type).items():
            values[column] = self._unique_value(row, column, fields)
        return values

    def _unique_value(self, row: Row, column: str, fields: tuple[str, ...]) -> str | None:
        key = row.key(fields)
        if key is None:
            return None
        if len(fields) > 1:
            return orjson.dumps(key).decode()
        return self._cipher.digest(key[0]) if column != fields[0] else str(key[0])

    def _mine(self, table: Table) -> Any:
        return table.c.control_plane_id == self._control_plane_id


@cache
def _next_version(is_shared: bool) -> Update:
    """Made once: putting a statement together takes longer than running it. `is_shared`: with other replicas."""
    table: Table = ControlPlane.__table__  # type: ignore[assignment]
    theirs = bindparam("b_id", type_=Text)
    told = [announced(theirs, bindparam("b_replica", type_=Text))] if is_shared else []
    statement = update(table).where(table.c.id == theirs).values(config_version=table.c.config_version + 1)
    return statement.returning(table.c.config_version, *told)


@cache
def _update_of(table: Table, columns: tuple[str, ...]) -> Update:
    """Sets these columns of a row by those of them that are its key."""
    values: dict[str, Any] = {name: bindparam(f"b_{name}") for name in columns if not table.c[name].primary_key}
    return update(table).where(*(key == bindparam(f"b_{key.name}") for key in table.primary_key)).values(values)


def _keys(row: Row) -> list[tuple[Any, ...] | None]:
    return [row.key(fields) for fields in row.type.unique]


def _in_order(kinds: Set[EntityType]) -> list[EntityType]:
    """Parents before what refers to them."""
    return [row for row in ENTITY_TYPES.values() if row in kinds]


def _by_type(items: Iterable[Row]) -> Iterable[tuple[EntityType, list[Row]]]:
    ordered = sorted(items, key=lambda item: item.type.name)
    return [(ENTITY_TYPES[name], list(group)) for name, group in groupby(ordered, key=lambda item: item.type.name)]


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))
