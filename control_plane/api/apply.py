"""The atomic apply: a whole declarative document in, one plan, one transaction, one snapshot."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.exchange import Body, Plane, Writer, answer, parameters
from control_plane.api.konnect import find
from control_plane.batches import Changes
from control_plane.errors import BadRequest, DocumentRefused, fault
from control_plane.holdings import Holdings
from control_plane.plan import Plan, make_plan
from control_plane.repository import Repository
from gateway_schema.document import Declaration, read_declaration, write_declaration
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, Violation

router = APIRouter(prefix="/v2/control-planes/{control_plane_id}", tags=["documents"])

EMPTY_DOCUMENT = {"_format_version": "3.0"}


class ApplyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    document: dict[str, Any] = Field(default_factory=lambda: dict(EMPTY_DOCUMENT))
    """decK's format 3.0; a reset needs none."""
    select_tags: list[str] | None = None
    mode: Literal["sync", "apply", "reset"] = "sync"
    commit: bool = False
    include_secrets: bool = False
    """Whether bodies of the plan show secrets in clear."""


@router.post("/apply")
async def apply(control_plane_id: str, body: Body, plane: Plane, _: Writer) -> Response:
    """Make the control plane hold what the document says, all of it or nothing; without `commit`, only say how."""
    request = parameters(ApplyRequest, body)
    declaration = await asyncio.to_thread(_read, request)
    unit_of_work = plane.database.writing if request.commit else plane.database.reading
    written: Holdings | None = None
    async with unit_of_work() as session:
        repository = Repository(session, (await find(session, control_plane_id)).id, plane.cipher)
        if request.commit:
            await repository.lock()
        control_plane = await find(session, control_plane_id)
        _check_name(declaration, control_plane.name)
        holdings = await plane.holdings.load(session, control_plane.id)
        plan = await asyncio.to_thread(_plan, holdings, declaration, request)
        if plan and request.commit:
            changes = Changes(plan.creates, plan.updates, plan.deletes)
            version = await repository.write(changes)
            written = holdings.after(version, changes.puts, changes.deletes)
    if written is not None:
        plane.holdings.keep(written)
    snapshot = await plane.snapshots.refresh(control_plane.id)
    shown = await asyncio.to_thread(plan.shown, request.include_secrets)
    return answer({"plan": shown, "committed": request.commit, "version": snapshot.version, "hash": snapshot.hash})


@router.get("/document")
async def dump(
    control_plane_id: str,
    plane: Plane,
    _: Writer,
    tags: Annotated[str, Query(description="Only what carries all of these, separated by commas")] = "",
) -> Response:
    """What was written, as a declarative document, secrets in clear: it applies to nothing where it came from."""
    wanted = [tag for tag in tags.split(",") if tag]
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        holdings = await plane.holdings.load(session, control_plane.id)
    entities = {
        name: [{"id": row.id, **row.written} for row in holdings.of(name).values() if set(wanted) <= set(row.tags)]
        for name in ENTITY_TYPES
    }
    return answer(write_declaration(entities, select_tags=wanted, control_plane_name=control_plane.name))


def _read(request: ApplyRequest) -> Declaration:
    try:
        return read_declaration(request.document, request.select_tags or ())
    except SchemaViolation as error:
        raise DocumentRefused([_document_fault(violation) for violation in error.violations]) from None
    except RecursionError:
        raise BadRequest("the document is nested too deeply") from None


def _plan(holdings: Holdings, declaration: Declaration, request: ApplyRequest) -> Plan:
    tags = declaration.select_tags
    return make_plan(holdings, declaration, mode=request.mode, select_tags=tags, now=int(time.time()))


def _check_name(declaration: Declaration, name: str) -> None:
    """A file that names its control plane is not applied to another one."""
    if declaration.control_plane_name not in (None, name):
        text = f"the file is for control plane '{declaration.control_plane_name}', this one is '{name}'"
        raise DocumentRefused([fault(("_konnect", "control_plane_name"), "", Violation((), text))])


def _document_fault(violation: Violation) -> dict[str, Any]:
    """A fault of nesting and references: the path says all, the entity's own fields were not looked at."""
    entity = ""
    if violation.path and (kinds := [row for row in ENTITY_TYPES.values() if row.file_key == violation.path[0]]):
        entity = kinds[0].kind
    field = violation.path[-1] if violation.path and isinstance(violation.path[-1], str) else ""
    return {"path": list(violation.path), "entity": entity, "field": field, "message": str(violation)}
