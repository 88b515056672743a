"""Groups of control planes: who is in one, and whether the members' entities get in one another's way.

Only a control plane of the type `CLUSTER_TYPE_CONTROL_PLANE_GROUP` has members, and no group is a member.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, Table, func, insert, select
from sqlalchemy import delete as delete_rows
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.api import answers
from control_plane.api.exchange import Admin, Body, Plane, Reader, answer, parameters, rfc3339
from control_plane.api.konnect import find, shown
from control_plane.api.openapi import REFUSED, accepts, shows
from control_plane.api.paging import Page
from control_plane.api.stems import StemRouter
from control_plane.auth import Principal, beyond
from control_plane.errors import InvalidParameters
from control_plane.models import ENTITY_TABLES, GROUP, ControlPlane, ControlPlaneMember, unique_columns
from gateway_schema.base import canonical_id
from gateway_schema.registry import ENTITY_TYPES, EntityType

router = StemRouter(prefix="/v2/control-planes/{control_plane_id}", tags=["control planes"])

MAX_CONFLICTS = 100
_MAY_BE_IN_GROUPS = ("CLUSTER_TYPE_CONTROL_PLANE", "CLUSTER_TYPE_K8S_INGRESS_CONTROLLER")
_LINKS: Any = ControlPlaneMember.__table__
_AGAINST_DELETION: Any = {"read": True, "key_share": True}
"""A lock that any number of transactions may have at a time."""


class Member(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str


class MembersBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    members: Annotated[list[Member], Field(max_length=1000)]


@router.get("/group-memberships", responses=shows(answers.Members))
async def list_members(control_plane_id: str, plane: Plane, page: Page, caller: Reader) -> Response:
    """The members, or the ids of those that the caller must not see; how many in all is said on the first page."""
    async with plane.database.reading() as session:
        group = await _group(session, control_plane_id)
        ids = _member_ids(group.id)
        query = select(ControlPlane.id).where(ControlPlane.id.in_(ids))
        rows, meta = await page.rows(session, query, ControlPlane.__table__.c.id)
        found = select(ControlPlane).where(ControlPlane.id.in_([row.id for row in rows])).order_by(ControlPlane.id)
        members = (await session.execute(found)).scalars().all()
        counted: dict[str, Any] = {}
        if page.after is None and page.before is None:
            total = select(func.count()).select_from(_LINKS).where(_LINKS.c.group_id == group.id)
            counted["total"] = (await session.execute(total)).scalar_one()
    shown_page = {"size": meta["size"], "next": meta["next"], **counted}
    data = [shown(item, plane.grpc_address) if caller.sees(item.id) else {"id": item.id} for item in members]
    return answer({"data": data, "meta": {"page": shown_page}})


@router.put("/group-memberships", status_code=204, openapi_extra=accepts(MembersBody))
async def replace_members(control_plane_id: str, body: Body, plane: Plane, caller: Admin) -> Response:
    given = parameters(MembersBody, body)
    async with plane.database.writing() as session:
        group = await _group(session, control_plane_id, lock=True)
        wanted = await _wanted(session, caller, given)
        known = await _members(session, group)
        _check_reach(caller, known - set(wanted))
        await _remove(session, group, known - set(wanted))
        await _add(session, group, [one for one in wanted if one not in known])
        await _tell(session, caller, "update", group, {"members": len(wanted)})
    return Response(status_code=204)


@router.post("/group-memberships/add", status_code=204, openapi_extra=accepts(MembersBody))
async def add_members(control_plane_id: str, body: Body, plane: Plane, caller: Admin) -> Response:
    """Adding one twice changes nothing."""
    given = parameters(MembersBody, body)
    async with plane.database.writing() as session:
        group = await _group(session, control_plane_id, lock=True)
        wanted = await _wanted(session, caller, given)
        known = await _members(session, group)
        added = [one for one in wanted if one not in known]
        await _add(session, group, added)
        await _tell(session, caller, "update", group, {"members_added": len(added)})
    return Response(status_code=204)


@router.post("/group-memberships/remove", status_code=204, openapi_extra=accepts(MembersBody))
async def remove_members(control_plane_id: str, body: Body, plane: Plane, caller: Admin) -> Response:
    """Removing one that is no member changes nothing."""
    given = parameters(MembersBody, body)
    async with plane.database.writing() as session:
        group = await _group(session, control_plane_id, lock=True)
        wanted = await _wanted(session, caller, given)
        known = await _members(session, group)
        await _remove(session, group, known & set(wanted))
        await _tell(session, caller, "update", group, {"members_removed": len(known & set(wanted))})
    return Response(status_code=204)


@router.get("/group-member-status", responses=shows(answers.MemberStatus))
async def get_member_status(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    """Whether the control plane is in a group."""
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        query = select(_LINKS.c.group_id).where(_LINKS.c.member_id == control_plane.id).limit(1)
        is_member = (await session.execute(query)).first() is not None
    return answer({"is_member": is_member})


@router.get("/group-status", responses=shows(answers.GroupStatusItem) | REFUSED)
async def get_group_status(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    """Whether entities of several members would be taken for one another: the first hundred of them."""
    async with plane.database.reading() as session:
        group = await _group(session, control_plane_id)
        conflicts = await _conflicts(session, _member_ids(group.id))
    item = {
        "id": group.id,
        "created_at": rfc3339(group.created_at),
        "updated_at": rfc3339(group.updated_at),
        "state": "CONFLICT" if conflicts else "OK",
        "conflicts": conflicts,
    }
    return answer({"item": item})


# -- members


async def _group(session: AsyncSession, control_plane_id: str, *, lock: bool = False) -> ControlPlane:
    """Raises NotFound, and InvalidParameters for a control plane that is no group."""
    found = await find(session, control_plane_id, lock=lock)
    if found.cluster_type != GROUP:
        raise _invalid("control_plane_id", "invalid", "is not a group of control planes", "path")
    return found


def _member_ids(group_id: str) -> Select[Any]:
    return select(_LINKS.c.member_id).where(_LINKS.c.group_id == group_id)


async def _members(session: AsyncSession, group: ControlPlane) -> set[str]:
    return set((await session.execute(_member_ids(group.id))).scalars().all())


def _check_reach(caller: Principal, ids: Iterable[str]) -> None:
    """Raises Forbidden."""
    if not all(caller.sees(one) for one in ids):
        raise beyond(str(caller.control_plane_id))


async def _wanted(session: AsyncSession, caller: Principal, given: MembersBody) -> Sequence[str]:
    """The ids that a body names, each once. Raises InvalidParameters, or Forbidden for what the caller must not see."""
    wanted: list[str] = []
    for index, member in enumerate(given.members):
        place = f"members.{index}.id"
        member_id = canonical_id(member.id)
        if member_id is None:
            raise _invalid(place, "is_uuid", "must be a UUID")
        _check_reach(caller, [member_id])
        found = await session.get(ControlPlane, member_id, with_for_update=_AGAINST_DELETION)
        if found is None:
            raise _invalid(place, "missing_reference", "there is no such control plane")
        if found.cluster_type not in _MAY_BE_IN_GROUPS:
            raise _invalid(place, "invalid", f"a control plane of type {found.cluster_type} cannot be in a group")
        wanted.append(member_id)
    return list(dict.fromkeys(wanted))


async def _add(session: AsyncSession, group: ControlPlane, ids: Sequence[str]) -> None:
    now = time.time_ns() // 1_000_000
    rows = [{"group_id": group.id, "member_id": one, "created_at": now} for one in ids]
    if rows:
        await session.execute(insert(_LINKS), rows)


async def _remove(session: AsyncSession, group: ControlPlane, ids: set[str]) -> None:
    of_group = _LINKS.c.group_id == group.id
    await session.execute(delete_rows(_LINKS).where(of_group, _LINKS.c.member_id.in_(sorted(ids))))


def _invalid(field: str, rule: str, reason: str, source: str = "body") -> InvalidParameters:
    return InvalidParameters([{"field": field, "rule": rule, "reason": reason, "source": source}])


async def _tell(
    session: AsyncSession, caller: Principal, action: str, group: ControlPlane, details: dict[str, Any]
) -> None:
    what = ("control_planes", group.id, group.name)
    await audit.record(session, caller, action, *what, control_plane_id=group.id, details=details)


# -- conflicts


async def _conflicts(session: AsyncSession, members: Select[Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, table in ENTITY_TABLES.items():
        row = ENTITY_TYPES[name]
        for column, fields in {"id": ("id",), **unique_columns(row)}.items():
            found += await _clashes(session, row, table, column, fields, members)
            if len(found) >= MAX_CONFLICTS:
                return found[:MAX_CONFLICTS]
    return found


async def _clashes(
    session: AsyncSession,
    row: EntityType,
    table: Table,
    column: str,
    fields: Sequence[str],
    members: Select[Any],
) -> list[dict[str, Any]]:
    """Entities of one kind whose unique value another member holds too."""
    mine = table.c.control_plane_id.in_(members)
    shared = select(table.c[column]).where(mine, table.c[column].is_not(None)).group_by(table.c[column])
    shared = shared.having(func.count() > 1)
    query = select(table.c.control_plane_id, table.c.id).where(mine, table.c[column].in_(shared))
    query = query.order_by(table.c[column], table.c.control_plane_id).limit(MAX_CONFLICTS)
    text = f"another member has a {row.kind} with the same {' and '.join(fields)}"
    return [
        {"cluster_id": found.control_plane_id, "description": text, "resource": {"id": found.id, "type": row.kind}}
        for found in (await session.execute(query)).all()
    ]
