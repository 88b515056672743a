"""Entities in the database: read in pages, written one at a time, each write checked against all that is there.

Every write locks its control plane first, so that whoever writes it is alone: what was checked stays true until the
commit, and versions are given out in the order of commits. Constraints of the database stand behind that as a net.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Table, Text, bindparam, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.auth import Principal
from control_plane.batches import BatchWriter, Changes
from control_plane.errors import (
    BadRequest,
    ForeignKeyMissing,
    ForeignKeyUnresolved,
    InvalidPrimaryKey,
    ListedByOthers,
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
    GROUP,
    ControlPlane,
    digest_column,
    lookup_columns,
    reference_column,
    unique_columns,
)
from control_plane.partials import displaced, link_faults
from control_plane.protocols import mismatch
from control_plane.secrets import Cipher
from gateway_schema import content
from gateway_schema.base import MASK, canonical_id, is_secret
from gateway_schema.registry import ENTITY_TYPES, PARTIALS, PLUGINS, ROUTES, EntityType, Listed, children_of, lists_of
from gateway_schema.violations import SchemaViolation, Violation

_CHUNK = 500
"""Ids in one statement: drivers allow some 32,000 parameters, planners like fewer."""
_EXISTS = select(ControlPlane.id).where(ControlPlane.id == bindparam("id"))
_LOCK = select(ControlPlane.name, ControlPlane.cluster_type).where(ControlPlane.id == bindparam("id")).with_for_update()
_CLOCK = Principal(id="", name="expiry", scopes=frozenset(), created_at=0)
"""Who deletes what is over."""


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


class Repository:
    """The entities of one control plane, inside one transaction."""

    def __init__(
        self, session: AsyncSession, control_plane_id: str, cipher: Cipher, author: Principal | None = None
    ) -> None:
        """`author`: who stands in the audit log for what is written; who only reads needs none."""
        self._session = session
        self._control_plane_id = control_plane_id
        self._cipher = cipher
        self._author = author
        self._batch = BatchWriter(session, control_plane_id, cipher)
        self._locked = False
        self._now = int(time.time())
        """What was over when the transaction began is not there for it."""
        self.written: list[tuple[int, Changes]] = []
        """What was written by this repository, each with the version that it made."""

    # -- reading

    async def exists(self) -> None:
        """Raises NotFound when there is no such control plane."""
        if (await self._session.execute(_EXISTS, {"id": self._control_plane_id})).first() is None:
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
        if "\0" in key:  # nothing stored has one, and PostgreSQL does not even take the question
            return None
        table = ENTITY_TABLES[row.name]
        entity_id = canonical_id(key)
        if entity_id is not None:
            column, value = "id", entity_id
        elif row.endpoint_key is not None:
            column, value = self._place(row, row.endpoint_key, _as_kept(row, key))
        else:
            return None
        query = _finding(table, column, reference_column(scope.field) if scope is not None else None)
        given: dict[str, Any] = {"control_plane_id": self._control_plane_id, "value": value}
        if row.expires:
            given["now"] = self._now
        if scope is not None:
            given["parent"] = scope.parent_id
        found = (await self._session.execute(query, given)).all()
        return decoded(row, found, self._cipher)[0] if found else None

    async def referring(self, row: EntityType, field_name: str, ids: Sequence[str]) -> Sequence[Row]:
        """The rows of a kind that refer to any of these, in the order of ids."""
        table = ENTITY_TABLES[row.name]
        found: list[Row] = []
        for start in range(0, len(ids), _CHUNK):
            condition = table.c[reference_column(field_name)].in_(ids[start : start + _CHUNK])
            query = _columns(table).where(self._mine(table), condition).order_by(table.c.id)
            found += decoded(row, (await self._session.execute(query)).all(), self._cipher)
        return found

    async def of_ids(self, row: EntityType, ids: Sequence[str]) -> Sequence[Row]:
        """The rows with these ids, as far as there are such; ids in order give rows in order."""
        table = ENTITY_TABLES[row.name]
        found: list[Row] = []
        for start in range(0, len(ids), _CHUNK):
            query = _columns(table).where(self._mine(table), table.c.id.in_(ids[start : start + _CHUNK]))
            rows = (await self._session.execute(query.order_by(table.c.id))).all()
            found += decoded(row, rows, self._cipher)
        return found

    async def joining(self, row: EntityType, ends: Mapping[str, str]) -> Row | None:
        """The row of a kind that joins others: `ends` are its foreign keys, by field."""
        table = ENTITY_TABLES[row.name]
        conditions = [table.c[reference_column(field_name)] == entity_id for field_name, entity_id in ends.items()]
        found = (await self._session.execute(_columns(table).where(self._mine(table), *conditions))).all()
        return decoded(row, found, self._cipher)[0] if found else None

    async def listing(self, row: EntityType, field_name: str, entity_id: str) -> Sequence[Row]:
        """The rows of a kind that have this id in a field that is a list of references, in the order of ids."""
        table = ENTITY_TABLES[row.name]
        mentions = func.lower(cast(table.c.written, Text)).contains(entity_id)
        query = _columns(table).where(self._mine(table), mentions).order_by(table.c.id)
        found = decoded(row, (await self._session.execute(query)).all(), self._cipher)
        return [held for held in found if entity_id in row.lists[field_name].ids(held.written.get(field_name))]

    def _conditions(self, row: EntityType, table: Table, filters: Filters) -> Iterable[Any]:
        if filters.scope is not None:
            yield table.c[reference_column(filters.scope.field)] == filters.scope.parent_id
        for name, value in filters.equals.items():
            yield self._equals(row, table, name, value)
        for name, value in filters.contains.items():
            # Not LIKE, for which SQLite's letters are the same whatever their case.
            yield func.replace(table.c[name], value, "") != table.c[name]
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
        column, kept = self._place(row, name, value)
        return table.c[column] == kept

    def _place(self, row: EntityType, name: str, value: str) -> tuple[str, str]:
        """The column that a unique field is looked up in, and what stands there for a value."""
        column = digest_column(row, (name,))
        return (column, self._cipher.digest(value)) if column else (name, value)

    def _mine(self, table: Table) -> Any:
        mine = table.c.control_plane_id == self._control_plane_id
        return mine & _living(table, self._now) if "expires_at" in table.c else mine

    # -- writing one

    async def lock(self) -> None:
        """Be the only writer of this control plane until the transaction ends. Raises NotFound when there is none, and
        BadRequest when it holds no entities."""
        if self._locked:
            return
        found = (await self._session.execute(_LOCK, {"id": self._control_plane_id})).first()
        if found is None:
            raise NotFound(NO_CONTROL_PLANE)
        check_may_hold_entities(*found)
        self._locked = True

    async def create(self, row: EntityType, body: Mapping[str, Any], scope: Scope | None = None) -> Row:
        """POST. Raises an EntityError."""
        await self.lock()
        entity_id = _own_id(body)
        if entity_id is not None and await self.find(row, entity_id) is not None:
            raise PrimaryKeyTaken(entity_id)
        return await self._put(row, entity_id or str(uuid.uuid4()), row.model.settle(dict(body)), None, scope)

    async def replace(self, row: EntityType, key: str, body: Mapping[str, Any], scope: Scope | None = None) -> Row:
        """PUT: the entity is what `body` says and nothing else. One under another parent moves here."""
        await self.lock()
        entity_id = canonical_id(key)
        if entity_id is None and row.endpoint_key is None:
            raise InvalidPrimaryKey(key)
        before = await self.find(row, key, scope if entity_id is None and lookup_columns(row) else None)
        if entity_id is None and row.endpoint_key is not None:
            named = body if body.get(row.endpoint_key) is not None and before is not None else {row.endpoint_key: key}
            body = {**body, **named}
        new_id = before.id if before else entity_id or _own_id(body) or str(uuid.uuid4())
        return await self._put(row, new_id, row.model.settle(dict(body)), before, scope)

    async def merge(self, row: EntityType, key: str, body: Mapping[str, Any], scope: Scope | None = None) -> Row:
        """PATCH. Raises NotFound. Of what is over some day, only writing the `ttl` starts its period anew."""
        await self.lock()
        before = await self.get(row, key, scope)
        since = before.updated_at if row.expires and "ttl" not in body else None
        return await self._put(row, before.id, content.merge(row, before.written, body), before, scope, since)

    async def delete(self, row: EntityType, key: str, scope: Scope | None = None) -> bool:
        """Whether there was something to delete. Raises StillReferenced."""
        await self.lock()
        found = await self.find(row, key, scope)
        if found is None:
            return False
        for child, field_name, parent in children_of(row.name):
            if parent.on_delete == "refuse" and await self._batch.children(child, field_name, [found.id]):
                raise StillReferenced(child.name, row.name)
        await self._check_not_listed(found)
        await self.write(Changes(deletes=[found]))
        return True

    async def delete_expired(self, row: EntityType) -> None:
        """Delete what is over of a kind, in a version of its own. The caller holds the lock."""
        table = ENTITY_TABLES[row.name]
        mine = table.c.control_plane_id == self._control_plane_id
        found = (await self._session.execute(_columns(table).where(mine, table.c.expires_at <= self._now))).all()
        if found:
            await self.write(Changes(deletes=decoded(row, found, self._cipher)), _CLOCK)

    async def write(self, changes: Changes, author: Principal | None = None) -> int:
        """Write a batch that was checked. The caller holds the lock. Returns the new version."""
        version = await self._batch.write(changes)
        self.written.append((version, changes))
        if (author := author or self._author) is not None:
            await audit.record_changes(self._session, author, self._control_plane_id, changes)
        return version

    async def _put(
        self,
        row: EntityType,
        entity_id: str,
        body: Mapping[str, Any],
        before: Row | None,
        scope: Scope | None,
        since: float | None = None,
    ) -> Row:
        """`since`: what is kept as its `updated_at`, if that is not now."""
        if row.expires:
            await self.delete_expired(row)  # its id and its unique values are free
        if scope is not None:
            body = {**body, scope.field: {"id": scope.parent_id}}
        written = content.generate(row, content.written_form(row, await self._resolved(row, body)))
        try:
            written = content.admitted(row, written, before.written if before else None)
            complete = content.complete(row, written)
        except SchemaViolation as error:
            raise SchemaFault(error.violations) from None
        now = row.time(time.time())
        created_at = before.created_at if before else row.time(_given_time(body) or now)
        after = Row(row, entity_id, written, created_at, now if since is None else since, complete)
        await self._check_references(after)
        await self._check_partials(after, before)
        if row is PLUGINS:
            await self._check_protocols(after)
        await self._check_unique(after, before)
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
            for key in dict.fromkeys(("name", *target.match)):
                value = given.get(key)
                if isinstance(value, str) and key not in target.match:
                    raise ForeignKeyUnresolved(name, key, value, target.name)
                if isinstance(value, str):
                    found = await self._id_by(target, key, value)
                    if found is None:
                        raise ForeignKeyUnresolved(name, key, value, target.name)
                    result[name] = {"id": found}
                    break
        for name, listed in row.lists.items():
            if listed.key is not None and isinstance(entries := body.get(name), list):
                result[name] = [await self._resolved_entry(name, listed, entry) for entry in entries]
        return result

    async def _id_by(self, target: EntityType, field_name: str, value: str) -> str | None:
        """The id of what has this value in a unique field."""
        if "\0" in value:
            return None
        table = ENTITY_TABLES[target.name]
        query = select(table.c.id).where(self._mine(table), self._equals(target, table, field_name, value))
        found: str | None = (await self._session.execute(query)).scalar_one_or_none()
        return found

    async def _resolved_entry(self, name: str, listed: Listed, entry: Any) -> Any:
        """An entry of a list of references, by id."""
        if not isinstance(entry, Mapping) or not isinstance(given := entry.get("name"), str):
            return entry
        rest = {key: value for key, value in entry.items() if key != "name"}
        if entry.get("id") is not None:
            return rest
        target = ENTITY_TYPES[listed.type]
        found = await self.find(target, given) if canonical_id(given) is None else None
        if found is None:
            raise ForeignKeyUnresolved(name, "name", given, target.name)
        return {**rest, str(listed.key): found.id}

    async def _check_not_listed(self, row: Row) -> None:
        for lister, name, _ in lists_of(row.type.name):
            if holders := await self.listing(lister, name, row.id):
                raise ListedByOthers(row.type.kind, row.id, lister.name, holders[0].id)

    async def _check_references(self, row: Row) -> None:
        for name, listed in row.type.lists.items():
            ids = sorted(listed.ids(row.written.get(name)))
            known = {held.id for held in await self.of_ids(ENTITY_TYPES[listed.type], ids)}
            if missing := [entity_id for entity_id in ids if entity_id not in known]:
                raise ForeignKeyMissing(name, missing[0], listed.type)
        for name, parent in row.type.parents.items():
            target_id = row.reference(name)
            if target_id is None:
                continue
            table = ENTITY_TABLES[parent.type]
            query = select(table.c.id).where(self._mine(table), table.c.id == target_id)
            if (await self._session.execute(query)).scalar_one_or_none() is None:
                raise ForeignKeyMissing(name, target_id, parent.type)

    async def _check_partials(self, row: Row, before: Row | None) -> None:
        """A plugin's partials stand where it takes them, also once one of them has another type."""
        if row.type is PARTIALS and before is not None and before.written["type"] != row.written["type"]:
            faults = displaced(await self.listing(PLUGINS, "partials", row.id), row)
        elif row.type is PLUGINS:
            linked = await self.of_ids(PARTIALS, sorted(PLUGINS.lists["partials"].ids(row.written.get("partials"))))
            faults = link_faults(row.written, {partial.id: partial.written["type"] for partial in linked}.get)
        else:
            return
        if faults:
            raise SchemaFault(faults)

    async def _check_protocols(self, plugin: Row) -> None:
        routes: Sequence[Row] = ()
        if (route := plugin.reference("route")) is not None:
            routes = await self.of_ids(ROUTES, [route])
        elif (service := plugin.reference("service")) is not None:
            routes = await self.referring(ROUTES, "service", [service])
        if violation := mismatch(plugin, routes):
            raise SchemaFault([violation])

    async def _check_unique(self, row: Row, before: Row | None) -> None:
        """A value that the row has already is nobody else's."""
        table = ENTITY_TABLES[row.type.name]
        columns = {
            column: fields
            for column, fields in unique_columns(row.type).items()
            if before is None or before.key(fields) != row.key(fields)
        }
        values = self._batch.values(row, 0) if columns else {}
        for column, fields in columns.items():
            if values[column] is None:
                continue
            query = select(table.c.id).where(self._mine(table), table.c[column] == values[column], table.c.id != row.id)
            if (await self._session.execute(query)).first() is not None:
                raise UniqueTaken(shown_key(row, fields))


def check_may_hold_entities(name: str, cluster_type: str) -> None:
    """Raises BadRequest for a group of control planes."""
    if cluster_type == GROUP:
        raise BadRequest(
            f"the control plane '{name}' is a group ({GROUP}): it has members instead of entities. Write to the member "
            "that shall hold them"
        )


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
    found = canonical_id(given) if isinstance(given, str) else None
    if found is None:
        raise SchemaFault([Violation(("id",), "expected a valid UUID")])
    return found


def _given_time(body: Mapping[str, Any]) -> float | None:
    given = body.get("created_at")
    return given if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < 2**53 else None


def _as_kept(row: EntityType, key: str) -> str:
    """An endpoint key as it is stored: a target's text gets its port."""
    return str(row.model.expand({str(row.endpoint_key): key})[str(row.endpoint_key)])


@cache
def _finding(table: Table, column: str, parent: str | None) -> Select[Any]:
    """Made once for each: putting a statement together takes longer than running it."""
    query = _columns(table).where(table.c.control_plane_id == bindparam("control_plane_id"))
    query = query.where(table.c[column] == bindparam("value"))
    if "expires_at" in table.c:
        query = query.where(_living(table, bindparam("now", type_=BigInteger)))
    return query.where(table.c[parent] == bindparam("parent")) if parent is not None else query


def _living(table: Table, now: Any) -> ColumnElement[bool]:
    return or_(table.c.expires_at.is_(None), table.c.expires_at > now)


def _columns(table: Table) -> Select[Any]:
    return select(table.c.id, table.c.written, table.c.created_at, table.c.updated_at)
