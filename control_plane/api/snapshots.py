"""History: what a control plane held at each version, what changed between two, and the way back."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import Path, Query, Response
from pydantic import BaseModel, ConfigDict

from control_plane.api import own_answers
from control_plane.api.exchange import Body, Plane, Reader, Writer, answer, parameters, rfc3339
from control_plane.api.konnect import find
from control_plane.api.openapi import CONFLICT, accepts, shows
from control_plane.api.stems import StemRouter
from control_plane.applying import publish, undertaking
from control_plane.history import Entry, State
from control_plane.holdings import Holdings
from control_plane.ownership import Owners
from control_plane.planned import Plan, parent_names, row_changes
from control_plane.restoring import restoring_plan
from gateway_schema.registry import ENTITY_TYPES

router = StemRouter(prefix="/v2/control-planes/{control_plane_id}/snapshots", tags=["history"])

MAX_VERSION = (1 << 63) - 1
Version = Annotated[int, Path(ge=0, le=MAX_VERSION)]


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    commit: bool = False
    select_tags: list[str] | None = None
    """For whom: only what carries these tags or was last written under them goes back, and what of it other sets own
    stops the rollback. Without them all goes back, for whoever owns all that would change."""
    adopt: bool = False
    """Change also what other sets own."""
    force: bool = False


@router.get("", responses=shows(own_answers.SnapshotEntries))
async def list_snapshots(
    control_plane_id: str,
    plane: Plane,
    _: Reader,
    size: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=0, le=MAX_VERSION, description="`next` of the page before")] = None,
) -> Response:
    """Newest first. `next` is where the next page starts."""
    await plane.history.settled(control_plane_id)
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        entries = await plane.history.entries(session, control_plane.id, before, size + 1)
    more = len(entries) > size
    return answer(
        {"data": [_shown(entry) for entry in entries[:size]], "next": entries[size - 1].version if more else None}
    )


@router.get("/{version}", responses=shows(own_answers.SnapshotShown))
async def get_snapshot(control_plane_id: str, version: Version, plane: Plane, _: Reader) -> Response:
    """One entry, with how many entities of each kind were held."""
    await plane.history.settled(control_plane_id)
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        entry = await plane.history.entry(session, control_plane.id, version)
        state = await plane.history.state(session, control_plane.id, version)
    counts = {name: len(state.holdings.of(name)) for name in ENTITY_TYPES if state.holdings.of(name)}
    return answer({**_shown(entry), "entities": counts})


@router.get("/{version}/diff", responses=shows(own_answers.SnapshotDifference))
async def diff_snapshot(
    control_plane_id: str,
    version: Version,
    plane: Plane,
    _: Reader,
    against: Annotated[
        int | None, Query(ge=0, le=MAX_VERSION, description="An earlier version; by default the one kept before")
    ] = None,
) -> Response:
    """What changed, in the shape of a plan, secrets masked."""
    await plane.history.settled(control_plane_id)
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        new = await plane.history.state(session, control_plane.id, version)
        if against is None:
            found = await plane.history.entries(session, control_plane.id, version, 1)
            against = found[0].version if found else 0
        old = State(Holdings(control_plane.id, 0, {}), Owners())
        if against:
            old = await plane.history.state(session, control_plane.id, against)
    return answer({"from": against, "to": version, "plan": await asyncio.to_thread(_difference, old, new)})


@router.post(
    "/{version}/rollback",
    responses=shows(own_answers.Applied) | CONFLICT,
    openapi_extra=accepts(RollbackRequest),
)
async def roll_back(control_plane_id: str, version: Version, body: Body, plane: Plane, caller: Writer) -> Response:
    """Hold again what was held at that version, as a new one; without `commit`, only say how."""
    request = parameters(RollbackRequest, body)
    await plane.history.settled(control_plane_id)
    async with undertaking(plane, control_plane_id, caller, commit=request.commit) as work:
        now = State(work.holdings, work.owners)
        then = _without_expired(await plane.history.state(work.session, work.control_plane_id, version), now)
        acting = None if request.select_tags is None else frozenset(request.select_tags)
        plan = await asyncio.to_thread(restoring_plan, now, then, acting=acting, adopt=request.adopt, time=time.time())
        await work.carry_out(plan, f"rollback to {version}", force=request.force)
    said = await publish(work)
    return answer({"plan": await asyncio.to_thread(plan.shown), **said})


def _without_expired(then: State, now: State) -> State:
    """A way back revives no key whose time is over; one that has a new period since then lives on."""
    over = [row for row in then.holdings.expired(time.time()) if row.id not in now.holdings.of(row.type.name)]
    return State(then.holdings.after(then.version, (), over), then.owners)


def _difference(old: State, new: State) -> dict[str, Any]:
    creates, updates, deletes = row_changes(old.holdings, new.holdings)
    plan = Plan(creates, updates, deletes)
    changed = [*creates, *deletes, *(after for _, after in updates)]
    plan.names = parent_names(changed, lambda kind, target: new.holdings.of(kind).get(target))
    return plan.shown()


def _shown(entry: Entry) -> dict[str, Any]:
    summary = {**entry.summary, "total": sum(entry.summary.values())}
    return {
        "version": entry.version,
        "hash": entry.hash,
        "author": entry.author,
        "action": entry.action,
        "created_at": rfc3339(entry.created_ms),
        "summary": summary,
    }
