"""Plans that wait to be applied, kept here and not in a file: they hold secrets.

A saved plan is the changes themselves, not the document they came from: what was looked at is what will be written, ids
included. It fits the version it was made against and no other.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.errors import Conflict, NotFound, StaleEntity
from control_plane.history import State
from control_plane.holdings import Row
from control_plane.models import SAVED_PLANS
from control_plane.ownership import NOBODY, OwnerSet, words
from control_plane.planned import Plan, title
from control_plane.sealed import seal, unseal
from control_plane.secrets import Cipher
from gateway_schema.registry import ENTITY_TYPES

LIFETIME_SECONDS = 7 * 24 * 3600
MAX_SAVED = 100
"""Plans kept per control plane; the oldest go first."""


@dataclass(frozen=True, slots=True)
class SavedPlan:
    id: str
    version: int
    author: str
    created_ms: int
    expires_ms: int
    applied_version: int | None
    action: str
    tags: OwnerSet
    body: Mapping[str, Any]

    def restore(self, now: State) -> Plan:
        """The plan again. Raises Conflict when what it was made against is no more."""
        if self.applied_version is not None:
            raise Conflict(f"this plan was applied already, as version {self.applied_version}")
        if now.version != self.version:
            raise Conflict(
                f"the state has moved since this plan was made: it is for version {self.version}, the control plane "
                f"is at version {now.version}. Nothing was written; make the plan again",
                plan_version=self.version,
                version=now.version,
            )
        plan = _decoded(self.body, now)
        self._check(plan, now)
        return plan

    def _check(self, plan: Plan, now: State) -> None:
        """Ownership can move without a version, schemas with an upgrade."""
        adopted = {(row.type.name, row.id): owner for row, owner in plan.adopted}
        taken = [row for row, _ in plan.assigned]  # also what changes in nothing but its owner
        for row in [*(before for before, _ in plan.updates), *plan.deletes, *taken]:
            owner = now.owners.of(row)
            if owner not in (NOBODY, self.tags, adopted.get((row.type.name, row.id), NOBODY)):
                raise Conflict(
                    f"{row.type.kind} {title(row, plan.names)} has another owner since this plan was made, "
                    f"{words(owner)}; make the plan again"
                )
        for row in [*plan.creates, *(after for _, after in plan.updates)]:
            try:
                _ = row.complete
            except StaleEntity as error:
                raise Conflict(
                    f"{row.type.kind} {row.id} is not valid any more: {error}; make the plan again"
                ) from None


async def save(
    session: AsyncSession,
    cipher: Cipher,
    now: State,
    plan: Plan,
    *,
    action: str,
    tags: OwnerSet,
    author: str,
) -> SavedPlan:
    control_plane_id = now.holdings.control_plane_id
    created = time.time_ns() // 1_000_000
    body = {"action": action, "tags": sorted(tags), **_encoded(plan)}
    values = {
        "id": str(uuid.uuid4()),
        "control_plane_id": control_plane_id,
        "version": now.version,
        "author": author,
        "created_ms": created,
        "expires_ms": created + LIFETIME_SECONDS * 1000,
        "applied_version": None,
        "payload": seal(cipher, body),
    }
    await session.execute(insert(SAVED_PLANS), [values])
    await _prune(session, control_plane_id, created)
    return _plan(values, body)


async def load(session: AsyncSession, cipher: Cipher, control_plane_id: str, plan_id: str) -> SavedPlan:
    """Raises NotFound."""
    query = select(SAVED_PLANS).where(
        SAVED_PLANS.c.control_plane_id == control_plane_id,
        SAVED_PLANS.c.id == plan_id.lower(),
        SAVED_PLANS.c.expires_ms > time.time_ns() // 1_000_000,
    )
    found = (await session.execute(query)).mappings().first()
    if found is None:
        raise NotFound("there is no such plan: it never was one, or it has expired")
    return _plan(dict(found), unseal(cipher, found["payload"]))


async def mark_applied(session: AsyncSession, plan_id: str, version: int) -> None:
    await session.execute(update(SAVED_PLANS).where(SAVED_PLANS.c.id == plan_id).values(applied_version=version))


async def _prune(session: AsyncSession, control_plane_id: str, now_ms: int) -> None:
    await session.execute(delete(SAVED_PLANS).where(SAVED_PLANS.c.expires_ms <= now_ms))
    mine = SAVED_PLANS.c.control_plane_id == control_plane_id
    newest = select(SAVED_PLANS.c.created_ms).where(mine).order_by(SAVED_PLANS.c.created_ms.desc()).limit(MAX_SAVED)
    kept = list((await session.execute(newest)).scalars())
    await session.execute(delete(SAVED_PLANS).where(mine, SAVED_PLANS.c.created_ms < kept[-1]))


def _plan(values: Mapping[str, Any], body: Mapping[str, Any]) -> SavedPlan:
    return SavedPlan(
        id=values["id"],
        version=values["version"],
        author=values["author"],
        created_ms=values["created_ms"],
        expires_ms=values["expires_ms"],
        applied_version=values["applied_version"],
        action=body["action"],
        tags=frozenset(body["tags"]),
        body=body,
    )


def _encoded(plan: Plan) -> dict[str, Any]:
    def owned(pairs: Iterable[tuple[Row, OwnerSet]]) -> list[Any]:
        return [[row.type.name, row.id, sorted(owner)] for row, owner in pairs]

    def whole(rows: Iterable[Row]) -> list[Any]:
        return [[row.type.name, row.id, row.written, row.created_at, row.updated_at] for row in rows]

    return {
        "creates": whole(plan.creates),
        "updates": whole(after for _, after in plan.updates),
        "deletes": [[row.type.name, row.id] for row in plan.deletes],
        "assigned": owned(plan.assigned),
        "adopted": owned(plan.adopted),
        "governed": plan.governed,
        "names": plan.names,
    }


def _decoded(body: Mapping[str, Any], now: State) -> Plan:
    def whole(listed: Iterable[list[Any]]) -> list[Row]:
        return [Row(ENTITY_TYPES[name], *rest) for name, *rest in listed]

    def held(name: str, entity_id: str) -> Row:
        return now.holdings.of(name)[entity_id]

    creates = whole(body["creates"])
    fresh = {(row.type.name, row.id): row for row in creates}

    def owned(listed: Iterable[list[Any]]) -> list[tuple[Row, OwnerSet]]:
        return [(fresh.get((name, key)) or held(name, key), frozenset(owner)) for name, key, owner in listed]

    return Plan(
        creates=creates,
        updates=[(held(row.type.name, row.id), row) for row in whole(body["updates"])],
        deletes=[held(name, key) for name, key in body["deletes"]],
        names=body["names"],
        assigned=owned(body["assigned"]),
        adopted=owned(body["adopted"]),
        governed=body["governed"],
    )
