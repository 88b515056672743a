"""What a control plane holds, in memory: every entity, decrypted, with its indexes.

The plan and the snapshot need all of it; reading ten thousand rows for each small change would be their whole cost. A
row carries the version that wrote it, so whoever has the holdings of an older version reads only what is newer, and
looks for deletions only when the counts disagree. Holdings never change: a newer version is a new value that shares
what stayed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import orjson
from sqlalchemy import BigInteger, CompoundSelect, bindparam, exists, func, literal_column, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.errors import NotFound, StaleEntity
from control_plane.models import ENTITY_TABLES, ControlPlane, Id
from control_plane.secrets import Cipher
from gateway_schema import content
from gateway_schema.delta import Catalogue, Section
from gateway_schema.registry import ENTITY_TYPES, EntityType
from gateway_schema.violations import SchemaViolation

NO_CONTROL_PLANE = "The requested control plane was not found."
_KEPT_CONTROL_PLANES = 64


class Row:
    """One entity that exists, or will. Immutable; its complete form and bytes are made when first asked for."""

    __slots__ = ("_canonical", "_complete", "created_at", "id", "type", "updated_at", "written")

    def __init__(
        self,
        type: EntityType,
        id: str,
        written: dict[str, Any],
        created_at: float,
        updated_at: float,
        complete: dict[str, Any] | None = None,
    ) -> None:
        self.type = type
        self.id = id
        self.written = written
        self.created_at = created_at
        self.updated_at = updated_at
        self._complete = complete
        self._canonical: bytes | None = None

    def __repr__(self) -> str:
        return f"<{self.type.kind} {self.id}>"

    @property
    def complete(self) -> dict[str, Any]:
        """Every field, defaults filled; without id and times. Do not change it. Raises StaleEntity."""
        if self._complete is None:
            try:
                self._complete = content.complete(self.type, self.written)
            except SchemaViolation as error:
                name = self.written.get("name") or self.written.get("username") or ""  # no key of a credential
                raise StaleEntity(self.type.kind, name, self.id, error.violations) from None
        return self._complete

    def entity(self) -> dict[str, Any]:
        """The whole entity, as the API shows it and a snapshot carries it."""
        times: dict[str, Any] = {"created_at": self.created_at}
        if "updated_at" in self.type.model.model_fields:
            times["updated_at"] = self.updated_at
        return {"id": self.id, **self.complete, **times}

    @property
    def expires_at(self) -> int | None:
        """When it is over, if it says a `ttl`: so many seconds after that was last written.

        That moment is `updated_at`, which for these kinds is moved by nothing else (`Repository.merge`): it is stored
        for every kind, in history and saved plans too, and of these it is not shown.
        """
        ttl = self.written.get("ttl") if self.type.expires else None
        return int(self.updated_at) + ttl if ttl else None

    def is_over(self, now: float) -> bool:
        return (moment := self.expires_at) is not None and moment <= now

    @property
    def canonical(self) -> bytes:
        """The entity's bytes in a canonical document, as nodes read it.

        Nodes count a `ttl` from `created_at`, so there that is the start of the period. A field of its own would be
        refused by the nodes of before.
        """
        if self._canonical is None:
            entity = self.entity()
            if self.expires_at is not None:
                entity["created_at"] = self.updated_at
            self._canonical = orjson.dumps(entity, option=orjson.OPT_SORT_KEYS)
        return self._canonical

    @property
    def is_encoded(self) -> bool:
        """Whether `canonical` is made already."""
        return self._canonical is not None

    @property
    def tags(self) -> list[str]:
        return list(self.written.get("tags") or ())

    def reference(self, field: str) -> str | None:
        """The id that a foreign key holds."""
        value = self.written.get(field)
        return str(value["id"]) if value else None

    def key(self, fields: Sequence[str]) -> tuple[Any, ...] | None:
        """The values of fields that are unique together; None when one of a single field is not set."""
        return content.unique_key(self.type, self.written, fields)


class Holdings:
    """All rows of one control plane at one version."""

    def __init__(self, control_plane_id: str, version: int, rows: Mapping[str, dict[str, Row]]) -> None:
        self.control_plane_id = control_plane_id
        self.version = version
        self._rows = dict(rows)
        self._indexes: dict[tuple[str, tuple[str, ...]], dict[tuple[Any, ...], Row]] = {}
        self._canonical: dict[str, Section] = {}
        self._catalogue: Catalogue | None = None
        """Of these rows, or of former ones, which the next has much in common with."""
        self._plugins: frozenset[str] | None = None

    def of(self, name: str) -> Mapping[str, Row]:
        """The rows of a kind by id."""
        return self._rows.get(name, {})

    def all(self) -> Iterable[Row]:
        return (row for rows in self._rows.values() for row in rows.values())

    def parents(self, row: Row) -> list[Row]:
        """What its foreign keys point to."""
        found = [self.of(parent.type).get(row.reference(name) or "") for name, parent in row.type.parents.items()]
        return [parent for parent in found if parent is not None]

    def by(self, row: EntityType, fields: tuple[str, ...]) -> Mapping[tuple[Any, ...], Row]:
        """The rows of a kind by the values of a unique set of fields."""
        index = self._indexes.get((row.name, fields))
        if index is None:
            index = {key: held for held in self.of(row.name).values() if (key := held.key(fields)) is not None}
            self._indexes[row.name, fields] = index
        return index

    def expired(self, now: float) -> list[Row]:
        """What is over, but not deleted yet."""
        kinds = [row.name for row in ENTITY_TYPES.values() if row.expires]
        return [held for name in kinds for held in self.of(name).values() if held.is_over(now)]

    def living(self, now: float) -> Holdings:
        """Without what is over: as it will be once that is deleted."""
        over = self.expired(now)
        return self.after(self.version, (), over) if over else self

    def canonical(self, name: str) -> Section:
        """The canonical bytes of each row of a kind, by id, ids in order. The same value while the kind stays."""
        found = self._canonical.get(name)
        if found is None:
            rows = self.of(name)
            found = Section((entity_id, rows[entity_id].canonical) for entity_id in sorted(rows))
            self._canonical[name] = found
        return found

    @property
    def unbuilt(self) -> int:
        """Microseconds that `catalogue` takes, roughly: one for a row to be put in order, twenty for one without bytes,
        one for two kilobytes to be hashed."""
        stale = [rows.values() for name, rows in self._rows.items() if name not in self._canonical]
        rows = sum(len(rows) + 20 * sum(not row.is_encoded for row in rows) for rows in stale)
        return rows + (self._catalogue.size // 2000 if self._catalogue is not None else 0)

    def encode(self) -> None:
        """Make the bytes of every row. Raises StaleEntity."""
        for name in ENTITY_TYPES:
            self.canonical(name)

    def catalogue(self) -> tuple[Catalogue, str]:
        """The document that the rows make, and its hash."""
        former = self._catalogue
        made = Catalogue(self.control_plane_id, {name: self.canonical(name) for name in sorted(ENTITY_TYPES)})
        hash_ = made.hash(former)
        self._catalogue = made
        return made, hash_

    def plugins_in_use(self) -> frozenset[str]:
        """Names of the plugins that are switched on."""
        if self._plugins is None:
            plugins = [row.complete for row in self.of("plugins").values()]
            self._plugins = frozenset(plugin["name"] for plugin in plugins if plugin.get("enabled", True))
        return self._plugins

    def after(self, version: int, puts: Iterable[Row], deletes: Iterable[Row]) -> Holdings:
        """The holdings of a later version."""
        puts, deletes = list(puts), list(deletes)
        changed = {row.type.name for row in (*puts, *deletes)}
        rows = {name: dict(held) if name in changed else held for name, held in self._rows.items()}
        gone = [*deletes, *(held for row in puts if (held := self.of(row.type.name).get(row.id)) is not None)]
        for row in deletes:
            rows[row.type.name].pop(row.id, None)
        for row in puts:
            rows.setdefault(row.type.name, {})[row.id] = row
        later = Holdings(self.control_plane_id, version, rows)
        later._catalogue = self._catalogue
        later._plugins = self._plugins if "plugins" not in changed else None
        later._canonical = {name: held for name, held in self._canonical.items() if name not in changed}
        later._indexes = {
            place: _reindexed(index, place, gone, puts) if place[0] in changed else index
            for place, index in self._indexes.items()
        }
        return later


def _reindexed(
    index: dict[tuple[Any, ...], Row], place: tuple[str, tuple[str, ...]], gone: Iterable[Row], puts: Iterable[Row]
) -> dict[tuple[Any, ...], Row]:
    """A copy of an index without the rows that went and with those that came."""
    name, fields = place
    copy = dict(index)
    for row in gone:
        if row.type.name == name and (key := row.key(fields)) is not None:
            copy.pop(key, None)
    for row in puts:
        if row.type.name == name and (key := row.key(fields)) is not None:
            copy[key] = row
    return copy


class HoldingsCache:
    """The last known holdings of each control plane that was lately in use."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher
        self._known: OrderedDict[str, Holdings] = OrderedDict()

    async def load(self, session: AsyncSession, control_plane_id: str, version: int | None = None) -> Holdings:
        """The holdings as this transaction sees them, `version` if it knows that already. Raises NotFound."""
        if version is None:
            query = select(ControlPlane.config_version).where(ControlPlane.id == control_plane_id)
            version = (await session.execute(query)).scalar_one_or_none()
        if version is None:
            self.forget(control_plane_id)
            raise NotFound(NO_CONTROL_PLANE)
        known = self._known.get(control_plane_id)
        if known is None or known.version != version:
            if known is None or known.version > version:
                known = Holdings(control_plane_id, -1, {})
            known = await _newer(session, known, version, self._cipher)
            self.keep(known)
        return known

    def known(self, control_plane_id: str, version: int) -> Holdings | None:
        """What is remembered, if it is of that very version."""
        known = self._known.get(control_plane_id)
        return known if known is not None and known.version == version else None

    def keep(self, holdings: Holdings) -> None:
        """Remember committed holdings; an older version never replaces a newer one."""
        known = self._known.get(holdings.control_plane_id)
        if known is None or known.version <= holdings.version:
            self._known[holdings.control_plane_id] = holdings
        self._known.move_to_end(holdings.control_plane_id)
        while len(self._known) > _KEPT_CONTROL_PLANES:
            self._known.popitem(last=False)

    def follow(self, control_plane_id: str, version: int, puts: Iterable[Row]) -> None:
        """A transaction committed that made this version of the one before, by nothing but putting these rows."""
        known = self._known.get(control_plane_id)
        if known is not None and known.version == version - 1:
            self.keep(known.after(version, puts, ()))

    def forget(self, control_plane_id: str) -> None:
        self._known.pop(control_plane_id, None)


async def _newer(session: AsyncSession, known: Holdings, version: int, cipher: Cipher) -> Holdings:
    puts: list[Row] = []
    deletes: list[Row] = []
    values = {"control_plane_id": known.control_plane_id, "version": known.version}
    for name, count, changed in (await session.execute(_census(), values)).all():
        row, table, held = ENTITY_TYPES[name], ENTITY_TABLES[name], known.of(name)
        mine = table.c.control_plane_id == known.control_plane_id
        fresh: list[Row] = []
        if changed:
            query = select(table.c.id, table.c.written, table.c.created_at, table.c.updated_at)
            found = (await session.execute(query.where(mine, table.c.revision > known.version))).all()
            large = len(found) > 200
            fresh = await asyncio.to_thread(decoded, row, found, cipher) if large else decoded(row, found, cipher)
            puts.extend(fresh)
        if count != len(held) + sum(item.id not in held for item in fresh):
            living = set((await session.execute(select(table.c.id).where(mine))).scalars())
            deletes.extend(item for item in held.values() if item.id not in living)
    return known.after(version, puts, deletes)


@cache
def _census() -> CompoundSelect[Any]:
    """Of each kind, how many there are and whether any is newer than a version: one question instead of fifty."""
    control_plane_id, version = bindparam("control_plane_id", type_=Id), bindparam("version", type_=BigInteger)
    kinds = []
    for name, table in ENTITY_TABLES.items():
        mine = table.c.control_plane_id == control_plane_id
        count = select(func.count()).select_from(table).where(mine).scalar_subquery()
        newer = exists().where(mine, table.c.revision > version)
        kinds.append(select(literal_column(f"'{name}'").label("name"), count.label("count"), newer.label("newer")))
    return union_all(*kinds)


def decoded(row: EntityType, found: Iterable[Sequence[Any]], cipher: Cipher) -> list[Row]:
    """Rows from (id, written, created_at, updated_at), secrets decrypted."""
    return [
        Row(row, entity_id, content.change_secrets(row, written, cipher.decrypt), created_at, updated_at)
        for entity_id, written, created_at, updated_at in found
    ]
