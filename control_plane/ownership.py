"""Who owns an entity: the select tags under which a declarative document last wrote it.

Tags say what a document may see; owners say whose an entity is. Two teams whose tags overlap, or a file without tags,
would otherwise change and delete each other's entities without a word. An entity that was written without tags, or one
at a time through the other faces, is nobody's, and a document that declares it makes it its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import orjson
from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.bulk import insert_rows
from control_plane.models import ENTITY_OWNERS
from control_plane.rollups import chunks

if TYPE_CHECKING:
    from control_plane.holdings import Holdings, Row
    from gateway_schema.registry import EntityType

OwnerSet = frozenset[str]
NOBODY: OwnerSet = frozenset()
_NONE: Mapping[str, OwnerSet] = {}

_CHUNK = 500
"""Ids in one statement: drivers allow some 32,000 parameters, planners like fewer."""


class Owners:
    """The owner sets of one control plane's entities, as one transaction sees them."""

    def __init__(self, known: Mapping[str, Mapping[str, OwnerSet]] | None = None) -> None:
        """`known`: owner sets by kind and id."""
        self._known = known or {}

    def of(self, row: Row) -> OwnerSet:
        return self.among(row.type).get(row.id, NOBODY)

    def among(self, row: EntityType) -> Mapping[str, OwnerSet]:
        """The owner sets of a kind, by id."""
        return self._known.get(row.name, _NONE)

    def after(self, assigned: Iterable[tuple[Row, OwnerSet]]) -> Owners:
        """The owners once a plan's assignments are made."""
        known: dict[str, Mapping[str, OwnerSet]] = dict(self._known)
        changed: dict[str, dict[str, OwnerSet]] = {}
        for row, owner in assigned:
            if (ours := changed.get(row.type.name)) is None:
                ours = known[row.type.name] = changed[row.type.name] = dict(known.get(row.type.name, {}))
            ours[row.id] = owner
        return Owners(known)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a document written under these select tags may change and delete; all, when there are none."""

    tags: OwnerSet
    owners: Owners
    holdings: Holdings
    lookup_tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By kind: what carries all of these may be referred to."""

    def governs(self, row: Row) -> bool:
        """Whether a row is in reach: it carries the tags, or was last written under them.

        What joins two others is in the reach of who may change one of them and sees the other, as long as it is
        nobody's: decK and the API write it without tags.
        """
        if not self.tags or self.owners.of(row) == self.tags or self.tags <= set(row.tags):
            return True
        if not row.type.is_link or self.owners.of(row):
            return False
        ends = self.holdings.parents(row)
        return any(map(self.governs, ends)) and all(self.looks_up(end) or self.governs(end) for end in ends)

    def looks_up(self, row: Row) -> bool:
        tags = self.lookup_tags.get(row.type.name)
        return tags is not None and tags <= set(row.tags)


def words(owner: OwnerSet) -> str:
    """An owner set as people read it."""
    if not owner:
        return "nobody"
    listed = ", ".join(f"'{tag}'" for tag in sorted(owner))
    return f"the tag {listed}" if len(owner) == 1 else f"the tags {listed}"


_OWNED = (
    select(
        ENTITY_OWNERS.c.entity_type,
        ENTITY_OWNERS.c.owner,
        func.aggregate_strings(ENTITY_OWNERS.c.entity_id, ","),
    )
    .where(ENTITY_OWNERS.c.control_plane_id == bindparam("control_plane_id"))
    .group_by(ENTITY_OWNERS.c.entity_type, ENTITY_OWNERS.c.owner)
)


async def load(session: AsyncSession, control_plane_id: str) -> Owners:
    """Few rows, however many entities there are: a team's ids of a kind come together, as one text."""
    known: dict[str, dict[str, OwnerSet]] = {}
    for entity_type, owner, listed in (await session.execute(_OWNED, {"control_plane_id": control_plane_id})).all():
        known.setdefault(entity_type, {}).update(dict.fromkeys(listed.split(","), frozenset(orjson.loads(owner))))
    return Owners(known)


async def assign(session: AsyncSession, control_plane_id: str, assigned: Iterable[tuple[Row, OwnerSet]]) -> None:
    """Write owners; an entity that is nobody's has no row."""
    pairs = list(assigned)
    texts = {owner: orjson.dumps(sorted(owner)).decode() for _, owner in pairs}
    fresh = [
        {
            "control_plane_id": control_plane_id,
            "entity_type": row.type.name,
            "entity_id": row.id,
            "owner": texts[owner],
        }
        for row, owner in pairs
        if owner
    ]
    await insert_rows(session, ENTITY_OWNERS, fresh, overwrite=True)
    left = sorted((row.type.name, row.id) for row, owner in pairs if not owner)
    for name, group in groupby(left, key=lambda key: key[0]):
        await release(session, control_plane_id, name, [entity_id for _, entity_id in group])


async def release(session: AsyncSession, control_plane_id: str, entity_type: str, ids: Sequence[str]) -> None:
    """These entities are nobody's from now on, or no more."""
    for chunk in chunks(ids, _CHUNK):
        await session.execute(
            delete(ENTITY_OWNERS).where(
                ENTITY_OWNERS.c.control_plane_id == control_plane_id,
                ENTITY_OWNERS.c.entity_type == entity_type,
                ENTITY_OWNERS.c.entity_id.in_(chunk),
            )
        )
