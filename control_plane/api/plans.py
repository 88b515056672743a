"""Saved plans: made now, looked at, applied later to the very state they were made against, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict

from control_plane import saved_plans
from control_plane.api import own_answers
from control_plane.api.apply import PlanRequest, plan_declared
from control_plane.api.exchange import Body, Plane, Writer, answer, parameters, rfc3339
from control_plane.api.konnect import find
from control_plane.api.openapi import CONFLICT, accepts, shows
from control_plane.api.stems import StemRouter
from control_plane.applying import publish, undertaking
from control_plane.errors import Conflict
from control_plane.history import State
from control_plane.planned import Plan
from control_plane.saved_plans import SavedPlan

router = StemRouter(prefix="/v2/control-planes/{control_plane_id}/plans", tags=["plans"])


class ApplyPlanRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    force: bool = False


@router.post(
    "",
    status_code=201,
    responses=shows(own_answers.SavedPlanShown, 201) | CONFLICT,
    openapi_extra=accepts(PlanRequest),
)
async def save_plan(control_plane_id: str, body: Body, plane: Plane, caller: Writer) -> Response:
    """Make a plan and keep it, with its secrets, here; the answer shows it masked."""
    request = parameters(PlanRequest, body)
    async with undertaking(plane, control_plane_id, caller, commit=False) as work:
        plan, tags = await plan_declared(work, request)
        now = State(work.holdings, work.owners)
    async with plane.database.writing() as session:
        await find(session, control_plane_id, lock=True)
        saved = await saved_plans.save(
            session, plane.cipher, now, plan, action=request.mode, tags=frozenset(tags), author=caller.name
        )
    return answer(await asyncio.to_thread(_shown, saved, plan), 201)


@router.get("/{plan_id}", responses=shows(own_answers.SavedPlanShown))
async def get_plan(control_plane_id: str, plan_id: str, plane: Plane, caller: Writer) -> Response:
    """The plan, masked; without its changes once it cannot be applied any more."""
    async with undertaking(plane, control_plane_id, caller, commit=False) as work:
        saved = await saved_plans.load(work.session, plane.cipher, work.control_plane_id, plan_id)
        try:
            plan = saved.restore(State(work.holdings, work.owners))
        except Conflict as conflict:
            return answer({**_shown(saved, None), "conflict": conflict.message})
    return answer(await asyncio.to_thread(_shown, saved, plan))


@router.post(
    "/{plan_id}/apply", responses=shows(own_answers.Applied) | CONFLICT, openapi_extra=accepts(ApplyPlanRequest)
)
async def apply_plan(control_plane_id: str, plan_id: str, body: Body, plane: Plane, caller: Writer) -> Response:
    """Write what the plan says. 409 when the state has moved since it was made."""
    request = parameters(ApplyPlanRequest, body)
    async with undertaking(plane, control_plane_id, caller, commit=True) as work:
        saved = await saved_plans.load(work.session, plane.cipher, work.control_plane_id, plan_id)
        plan = saved.restore(State(work.holdings, work.owners))
        await work.carry_out(plan, saved.action, force=request.force)
        version = work.written.version if work.written else work.holdings.version
        await saved_plans.mark_applied(work.session, saved.id, version)
    said = await publish(work)
    return answer({"plan": await asyncio.to_thread(plan.shown), **said})


def _shown(saved: SavedPlan, plan: Plan | None) -> dict[str, Any]:
    return {
        "id": saved.id,
        "version": saved.version,
        "mode": saved.action,
        "select_tags": sorted(saved.tags),
        "author": saved.author,
        "created_at": rfc3339(saved.created_ms),
        "expires_at": rfc3339(saved.expires_ms),
        "applied_version": saved.applied_version,
        "plan": plan.shown() if plan is not None else None,
    }
