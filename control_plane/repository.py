"""Entities in the database: read in pages, written in batches, one at a time or ten thousand.

Every write locks its control plane first, so that whoever writes it is alone: what was checked stays true until the
commit, and versions are given out in the order of commits. Constraints of the database stand behind that as a net.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Table, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import content
from control_plane.errors import (
    ForeignKeyMissing,
    ForeignKeyUnresolved,
    NotFound,
    PrimaryKeyTaken,
    SchemaFault,
    StillReferenced,
    UniqueTaken,
)
from control_plane.holdings import NO_CONTROL_PLANE, Row, decoded
from control_plane.models import (
    ENTITY_TABLES,
    ENTITY_TAGS,
    ControlPlane,
    digest_column,
    reference_column,
    unique_columns,
)
from control_plane.secrets import MASK, Cipher
from gateway_schema.base import is_secret
from gateway_schema.registry import ENTITY_TYPES, EntityType, children_of
from gateway_schema.violations import SchemaViolation, Violation

_CHUNK = 500
"""Ids in one statement: drivers allow some 32,000 parameters, planners like fewer."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A parent that a list or an item is reached through: the child's field and the parent's id."""

    field: str
    parent_id: str


@dataclass(frozen=True, slots=True)
class Filters:
    """What narrows a list. `tags` all or any of them; `equals` and `contains` go by unique fields."""

    tags: tuple[str, ...] = ()
    any_tag: bool = False
    equals: Mapping[str, str] = field(default_factory=dict)
    contains: Mapping[str, str] = field(default_factory=dict)
    scope: Scope | None = None


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


class Repository:
    """The entities of one control plane, inside one transaction."""

    def __init__(self, session: AsyncSession, control_plane_id: str, cipher: Cipher) -> None:
        self._session = session
        self._control_plane_id = control_plane_id
        self._cipher = cipher

    # -- reading

    async def exists(self) -> None:
        """Raises NotFound when there is no such control plane."""
        query = select(ControlPlane.id).where(ControlPlane.id == self._control_plane_id)
        if (await self._session.execute(query)).first() is None:
            raise NotFound(NO_CONTROL_PLANE)

    async def list(self, row: EntityType, size: int, after: str | None, filters: Filters) -> tuple[list[Row], bool]:
        """A page in the order of ids, and whether there is more behind it. Deletions between pages move nothing."""
        table = ENTITY_TABLES[row.name]
        query = _columns(table).where(self._mine(table), *self._conditions(row, table, filters))
        if after is not None:
            query = query.where(table.c.id > after)
        found = (await self._session.execute(query.order_by(table.c.id).limit(size + 1))).all()
        return decoded(row, found[:size], self._cipher), len(found) > size

    async def get(self, row: EntityType, key: str, scope: Scope | None = None) -> Row:
        """By id, or by the endpoint key when `key` is no UUID. Raises NotFound."""
        found = await self.find(row, key, scope)
        if found is None:
            raise NotFound
        return found

    async def find(self, row: EntityType, key: str, scope: Scope | None = None) -> Row | None:
        table = ENTITY_TABLES[row.name]
        entity_id = as_id(key)
        if entity_id is not None:
            condition = table.c.id == entity_id
        elif row.endpoint_key is not None:
            condition = self._equals(row, table, row.endpoint_key, key)
        else:
            return None
        query = _columns(table).where(self._mine(table), condition)
        if scope is not None:
            query = query.where(table.c[reference_column(scope.field)] == scope.parent_id)
        found = (await self._session.execute(query)).all()
        return decoded(row, found, self._cipher)[0] if found else None

    def _conditions(self, row: EntityType, table: Table, filters: Filters) -> Iterable[Any]:
        if filters.scope is not None:
            yield table.c[reference_column(filters.scope.field)] == filters.scope.parent_id
        for name, value in filters.equals.items():
            yield self._equals(row, table, name, value)
        for name, value in filters.contains.items():
            yield table.c[name].contains(value, autoescape=True)
        if filters.tags:
            tagged = select(ENTITY_TAGS.c.entity_id).where(
                ENTITY_TAGS.c.control_plane_id == self._control_plane_id,
                ENTITY_TAGS.c.entity_type == row.name,
                ENTITY_TAGS.c.tag.in_(filters.tags),
            )
            if not filters.any_tag:
                count = len(set(filters.tags))
                tagged = tagged.group_by(ENTITY_TAGS.c.entity_id).having(func.count() == count)
            yield table.c.id.in_(tagged)

    def _equals(self, row: EntityType, table: Table, name: str, value: str) -> Any:
        column = digest_column(row, (name,))
        return table.c[column] == self._cipher.digest(value) if column else table.c[name] == value

    def _mine(self, table: Table) -> Any:
        return table.c.control_plane_id == self._control_plane_id

    # -- writing one

    async def lock(self) -> int:
        """Be the only writer of this control plane until the transaction ends. Returns its version."""
        query = select(ControlPlane.config_version).where(ControlPlane.id == self._control_plane_id).with_for_update()
        version = (await self._session.execute(query)).scalar_one_or_none()
        if version is None:
            raise NotFound(NO_CONTROL_PLANE)
        return version

    async def create(self, row: EntityType, body: Mapping[str, Any], scope: Scope | None = None) -> Row:
        """POST. Raises an EntityError."""
        await self.lock()
        entity_id = _own_id(body)
        if entity_id is not None and await self.find(row, entity_id) is not None:
            raise PrimaryKeyTaken(entity_id)
        return await self._put(row, entity_id or str(uuid.uuid4()), body, None, scope)

    async def replace(self, row: EntityType, key: str, body: Mapping[str, Any], scope: Scope | None = None) -> Row:
        """PUT: the entity is what `body` says and nothing else. One under another parent moves here."""
        await self.lock()
        before = await self.find(row, key)
        entity_id = as_id(key)
        if entity_id is None and before is None and row.endpoint_key is not None:
            body = {**body, row.endpoint_key: key}
        new_id = before.id if before else entity_id or _own_id(body) or str(uuid.uuid4())
        return await self._put(row, new_id, body, before, scope)

    async def merge(self, row: EntityType, key: str, body: Mapping[str, Any], scope: Scope | None = None) -> Row:
        """PATCH. Raises NotFound."""
        await self.lock()
        before = await self.get(row, key, scope)
        return await self._put(row, before.id, content.merge(row, before.written, body), before, scope)

    async def delete(self, row: EntityType, key: str, scope: Scope | None = None) -> bool:
        """Whether there was something to delete. Raises StillReferenced."""
        await self.lock()
        found = await self.find(row, key, scope)
        if found is None:
            return False
        for child, field_name, parent in children_of(row.name):
            if parent.on_delete == "refuse" and await self._children(child, field_name, [found.id]):
                raise StillReferenced(child.name, row.name)
        await self.write(Changes(deletes=[found]))
        return True

    async def _put(
        self, row: EntityType, entity_id: str, body: Mapping[str, Any], before: Row | None, scope: Scope | None
    ) -> Row:
        if scope is not None:
            body = {**body, scope.field: {"id": scope.parent_id}}
        written = content.generate(row, content.written_form(row, await self._resolved(row, body)))
        try:
            complete = content.complete(row, written)
        except SchemaViolation as error:
            raise SchemaFault(error.violations) from None
        now = int(time.time())
        created_at = before.created_at if before else _given_time(body) or now
        after = Row(row, entity_id, written, created_at, now, complete)
        await self._check_references(after)
        await self._check_unique(after)
        if before is not None:
            await self.write(Changes(updates=[(before, after)]))
        else:
            await self.write(Changes(creates=[after]))
        return after

    async def _resolved(self, row: EntityType, body: Mapping[str, Any]) -> dict[str, Any]:
        """References by natural key become references by id."""
        result = dict(body)
        for name, parent in row.parents.items():
            given = body.get(name)
            if not isinstance(given, Mapping) or given.get("id") is not None:
                continue
            target = ENTITY_TYPES[parent.type]
            for key in target.match:
                value = given.get(key)
                if isinstance(value, str):
                    table = ENTITY_TABLES[target.name]
                    query = select(table.c.id).where(self._mine(table), self._equals(target, table, key, value))
                    found = (await self._session.execute(query)).scalar_one_or_none()
                    if found is None:
                        raise ForeignKeyUnresolved(name, key, value, target.name)
                    result[name] = {"id": found}
                    break
        return result

    async def _check_references(self, row: Row) -> None:
        for name, parent in row.type.parents.items():
            target_id = row.reference(name)
            if target_id is None:
                continue
            table = ENTITY_TABLES[parent.type]
            query = select(table.c.id).where(self._mine(table), table.c.id == target_id)
            if (await self._session.execute(query)).scalar_one_or_none() is None:
                raise ForeignKeyMissing(name, target_id, parent.type)

    async def _check_unique(self, row: Row) -> None:
        table = ENTITY_TABLES[row.type.name]
        values = self._values(row, 0)
        for column, fields in unique_columns(row.type).items():
            if values[column] is None:
                continue
            query = select(table.c.id).where(self._mine(table), table.c[column] == values[column], table.c.id != row.id)
            if (await self._session.execute(query)).first() is not None:
                raise UniqueTaken(shown_key(row, fields))

    # -- writing many

    async def write(self, changes: Changes) -> int:
        """Write a batch that was checked. The caller holds the lock. Returns the new version.

        Unique values may wander between rows of the batch: those that will change are set to null first, which no
        row's null conflicts with, so that swaps and take-overs need no order.
        """
        version = await self._next_version()
        await self._park(changes)
        for row in ENTITY_TYPES.values():
            table = ENTITY_TABLES[row.name]
            new = [self._values(item, version) for item in changes.creates if item.type is row]
            if new:
                await self._session.execute(insert(table), new)
            changed = [self._values(after, version) for _, after in changes.updates if after.type is row]
            if changed:
                await self._update(table, changed)
        await self._write_tags(changes)
        for row in reversed(list(ENTITY_TYPES.values())):
            await self._delete_rows(row, [item.id for item in changes.deletes if item.type is row])
        return version

    async def _next_version(self) -> int:
        statement = (
            update(ControlPlane)
            .where(ControlPlane.id == self._control_plane_id)
            .values(config_version=ControlPlane.config_version + 1)
            .returning(ControlPlane.config_version)
        )
        return (await self._session.execute(statement)).scalar_one()

    async def _park(self, changes: Changes) -> None:
        if not changes.puts:
            return
        wandering = [before for before, after in changes.updates if _keys(before) != _keys(after)]
        leaving = [*wandering, *changes.deletes] if len(changes.updates) + len(changes.creates) else []
        for row, items in _by_type(leaving):
            table = ENTITY_TABLES[row.name]
            empty = dict.fromkeys(unique_columns(row))
            for chunk in _chunks([item.id for item in items]):
                await self._session.execute(update(table).where(self._mine(table), table.c.id.in_(chunk)).values(empty))

    async def _update(self, table: Table, values: Sequence[dict[str, Any]]) -> None:
        columns = [name for name in values[0] if name not in {"control_plane_id", "id", "created_at"}]
        statement = (
            update(table)
            .where(table.c.control_plane_id == self._control_plane_id, table.c.id == bindparam("b_id"))
            .values({name: bindparam(f"b_{name}") for name in columns})
        )
        connection = await self._session.connection()
        await connection.execute(statement, [{f"b_{name}": row[name] for name in ("id", *columns)} for row in values])

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
        if rows:
            await self._session.execute(insert(ENTITY_TAGS), rows)

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
        """The rows, their tags, and the tags of what the database deletes with them."""
        if not ids:
            return
        await self._delete_tags_of(row, ids)
        for child, field_name, parent in children_of(row.name):
            if parent.on_delete == "cascade":
                await self._delete_rows(child, await self._children(child, field_name, ids))
        table = ENTITY_TABLES[row.name]
        for chunk in _chunks(ids):
            await self._session.execute(delete(table).where(self._mine(table), table.c.id.in_(chunk)))

    async def _children(self, child: EntityType, field_name: str, ids: Sequence[str]) -> Sequence[str]:
        table = ENTITY_TABLES[child.name]
        found: list[str] = []
        for chunk in _chunks(ids):
            query = select(table.c.id).where(self._mine(table), table.c[reference_column(field_name)].in_(chunk))
            found.extend((await self._session.execute(query)).scalars())
        return found

    def _values(self, row: Row, version: int) -> dict[str, Any]:
        values: dict[str, Any] = {
            "control_plane_id": self._control_plane_id,
            "id": row.id,
            "written": content.change_secrets(row.type, row.written, self._cipher.encrypt),
            "revision": version,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
        }
        for name in row.type.parents:
            values[reference_column(name)] = row.reference(name)
        for column, fields in unique_columns(row.type).items():
            values[column] = self._unique_value(row, column, fields)
        return values

    def _unique_value(self, row: Row, column: str, fields: tuple[str, ...]) -> str | None:
        key = row.key(fields)
        if key is None:
            return None
        if len(fields) > 1:
            return orjson.dumps(key).decode()
        return self._cipher.digest(key[0]) if column != fields[0] else str(key[0])


def as_id(key: str) -> str | None:
    """The canonical id when `key` is a UUID; a name that looks like one cannot be asked for."""
    if len(key) != 36:
        return None
    try:
        return str(uuid.UUID(key))
    except ValueError:
        return None


def shown_key(row: Row, fields: Sequence[str]) -> dict[str, Any]:
    """The values of unique fields as an error may show them: references as records, secrets masked."""
    shown: dict[str, Any] = {}
    for name in fields:
        value = row.written.get(name)
        shown[name] = MASK if value is not None and is_secret(row.type.model.model_fields[name]) else value
    return shown


def _own_id(body: Mapping[str, Any]) -> str | None:
    """The id that a client chose. A malformed one is a fault of the schema."""
    given = body.get("id")
    if given is None:
        return None
    found = as_id(given) if isinstance(given, str) else None
    if found is None:
        raise SchemaFault([Violation(("id",), "expected a valid UUID")])
    return found


def _given_time(body: Mapping[str, Any]) -> int | None:
    given = body.get("created_at")
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else None


def _columns(table: Table) -> Any:
    return select(table.c.id, table.c.written, table.c.created_at, table.c.updated_at)


def _keys(row: Row) -> list[tuple[Any, ...] | None]:
    return [row.key(fields) for fields in row.type.unique]


def _by_type(items: Iterable[Row]) -> Iterable[tuple[EntityType, list[Row]]]:
    ordered = sorted(items, key=lambda item: item.type.name)
    return [(ENTITY_TYPES[name], list(group)) for name, group in groupby(ordered, key=lambda item: item.type.name)]


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))
