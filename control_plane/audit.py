"""Who changed what, when, from where: one table, written in the transaction of the change itself.

So a change without its line cannot exist, nor a line without its change. A line says which fields changed, never what
they hold. A large apply writes one line for itself, with counts, and one for each of its first `MAX_ENTITY_LINES`
entities. What the database deletes along with a parent has no line of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.models import AUDIT_LOG
from gateway_schema.base import is_secret

if TYPE_CHECKING:
    from control_plane.auth import Principal
    from control_plane.batches import Changes
    from control_plane.database import Database
    from control_plane.holdings import Row

MAX_ENTITY_LINES = 500
"""Lines about single entities that one transaction writes; the rest is only counted."""
MAX_FIELDS = 40
_MAX_NAME = 256
_PRUNED_AT_ONCE = 1000
_NAMES = ("instance_name", "name", "username", "custom_id", "prefix", "target", "group", "description")
"""Fields that a person knows an entity by, the most telling first."""


async def record(
    session: AsyncSession,
    principal: Principal,
    action: str,
    entity_type: str = "",
    entity_id: str = "",
    entity_name: str = "",
    *,
    control_plane_id: str = "",
    details: Mapping[str, Any] | None = None,
    outcome: str = "done",
) -> None:
    """One line. `action` is a verb (`create`, `update`, `delete`, `apply`, `revoke`, …), `details` holds no secrets."""
    what = (entity_type, entity_id, entity_name)
    line = _line(principal, action, what, control_plane_id, dict(details or {}), outcome)
    await session.execute(insert(AUDIT_LOG), [line])


async def record_changes(session: AsyncSession, principal: Principal, control_plane_id: str, changes: Changes) -> None:
    """A line for each entity of a batch, and one for those that are too many."""
    told = [
        *(("create", row, sorted(row.written)) for row in changes.creates),
        *(("update", after, changed_fields(before.written, after.written)) for before, after in changes.updates),
        *(("delete", row, []) for row in changes.deletes),
    ]
    lines = [
        _line(principal, action, (row.type.name, row.id, label(row)), control_plane_id, _fields(fields), "done")
        for action, row, fields in told[:MAX_ENTITY_LINES]
    ]
    if (rest := len(told) - len(lines)) > 0:
        lines.append(_line(principal, "change", ("", "", ""), control_plane_id, {"further_entities": rest}, "done"))
    if lines:
        await session.execute(insert(AUDIT_LOG), lines)


async def prune(database: Database, before_us: int) -> None:
    """Forget the lines from before a time (Unix microseconds), a few at a time, so that no transaction is long."""
    old = select(AUDIT_LOG.c.id).where(AUDIT_LOG.c.at_us < before_us).order_by(AUDIT_LOG.c.id).limit(_PRUNED_AT_ONCE)
    while True:
        async with database.writing() as session:
            ids = (await session.execute(old)).scalars().all()
            if not ids:
                return
            await session.execute(delete(AUDIT_LOG).where(AUDIT_LOG.c.id.in_(ids)))


def _line(
    principal: Principal, action: str, what: tuple[str, str, str], control_plane_id: str, details: Any, outcome: str
) -> dict[str, Any]:
    entity_type, entity_id, entity_name = what
    return {
        "at_us": time.time_ns() // 1000,
        "principal_id": principal.id,
        "principal_name": principal.name[:_MAX_NAME],
        "client_address": principal.address[:_MAX_NAME],
        "action": action,
        "outcome": outcome,
        "control_plane_id": control_plane_id,
        "entity_type": entity_type,
        "entity_id": entity_id,
        "entity_name": entity_name[:_MAX_NAME].replace("\0", ""),
        "details": details,
    }


def label(row: Row) -> str:
    """What a person calls an entity, if it has such a name and that is no secret."""
    fields = row.type.model.model_fields
    for name in _NAMES:
        value = row.written.get(name)
        if isinstance(value, str) and name in fields and not is_secret(fields[name]):
            return value
    return ""


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the fields that differ, those of a record one level down: `tags`, `config.targets`."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += [f"{key}.{name}" for name in sorted(before.keys() | after.keys()) if _differ(before, after, name)]
        else:
            found.append(key)
    return found


def _differ(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    return name not in before or name not in after or before[name] != after[name]


def _fields(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    shown: dict[str, Any] = {"fields": listed[:MAX_FIELDS]} if listed else {}
    if len(listed) > MAX_FIELDS:
        shown["further_fields"] = len(listed) - MAX_FIELDS
    return shown


# -- reading


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which lines, newest first. `equals` goes by column; times are Unix microseconds, the end is exclusive."""

    equals: Mapping[str, str] = field(default_factory=dict)
    control_plane_id: str | None = None
    principal: str | None = None
    """Id or name."""
    start_us: int | None = None
    end_us: int | None = None
    before: int | None = None
    """The line behind which a page starts."""
    size: int = 100


async def read(session: AsyncSession, query: AuditQuery) -> tuple[list[dict[str, Any]], int | None]:
    """A page of lines, and where the next one starts."""
    found = [dict(line) for line in (await session.execute(_select(query))).mappings()]
    page = found[: query.size]
    return page, int(page[-1]["id"]) if len(found) > query.size else None


def _select(query: AuditQuery) -> Select[Any]:
    log = AUDIT_LOG.c
    statement = select(AUDIT_LOG)
    for name, value in query.equals.items():
        statement = statement.where(log[name] == value)
    if query.control_plane_id is not None:
        statement = statement.where(log.control_plane_id == query.control_plane_id)
    if query.principal is not None:
        statement = statement.where((log.principal_id == query.principal) | (log.principal_name == query.principal))
    if query.start_us is not None:
        statement = statement.where(log.at_us >= query.start_us)
    if query.end_us is not None:
        statement = statement.where(log.at_us < query.end_us)
    if query.before is not None:
        statement = statement.where(log.id < query.before)
    return statement.order_by(log.id.desc()).limit(query.size + 1)
