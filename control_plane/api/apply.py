"""The atomic apply: a whole declarative document in, one plan, one transaction, one snapshot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api import own_answers
from control_plane.api.exchange import Body, Plane, Reader, answer, parameters
from control_plane.api.konnect import find
from control_plane.api.openapi import CONFLICT, accepts, shows
from control_plane.api.stems import StemRouter
from control_plane.applying import Undertaking, publish, undertaking
from control_plane.auth import Principal, insist
from control_plane.errors import BadRequest, DocumentRefused, fault
from control_plane.holdings import Holdings, Row
from control_plane.ownership import words
from control_plane.plan import Mode, make_plan
from control_plane.planned import Plan, parent_names, title
from control_plane.secrets import mask
from gateway_schema.content import change_secrets
from gateway_schema.document import Declaration, read_declaration
from gateway_schema.dump import Homeless, write_declaration
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import SchemaViolation, Violation

router = StemRouter(prefix="/v2/control-planes/{control_plane_id}", tags=["documents"])

EMPTY_DOCUMENT = {"_format_version": "3.0"}


class PlanRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    document: dict[str, Any] = Field(default_factory=lambda: dict(EMPTY_DOCUMENT))
    """decK's format 3.0; a reset needs none."""
    select_tags: list[str] | None = None
    mode: Mode = "sync"
    adopt: bool = False
    """Take over what other sets of select tags own, where the plan would change or delete it."""
    spare: bool = False
    """Leave what other sets of select tags own to them, where the plan would delete it."""


class ApplyRequest(PlanRequest):
    commit: bool = False
    include_secrets: bool = False
    """Whether bodies of the plan show secrets in clear."""
    force: bool = False
    """Delete an alarming share of what the document governs."""


@router.post("/apply", responses=shows(own_answers.Applied) | CONFLICT, openapi_extra=accepts(ApplyRequest))
async def apply(control_plane_id: str, body: Body, plane: Plane, caller: Reader, asked: Request) -> Response:
    """Make the control plane hold what the document says, all of it or nothing; without `commit`, only say how.

    Only what is to be committed needs the scope `write`.
    """
    request = parameters(ApplyRequest, body)
    if request.commit:
        insist(asked, caller, "write")
    if request.include_secrets:
        insist(asked, caller, "reveal")
    declaration = await asyncio.to_thread(_read, request)
    async with undertaking(plane, control_plane_id, caller, commit=request.commit) as work:
        plan = await _plan(work, declaration, request)
        await work.carry_out(plan, request.mode, force=request.force)
    said = await publish(work)
    return answer({"plan": await asyncio.to_thread(plan.shown, request.include_secrets), **said})


async def plan_declared(work: Undertaking, request: PlanRequest) -> tuple[Plan, tuple[str, ...]]:
    """The plan for a document, and the select tags it was made under. Raises DocumentRefused."""
    declaration = await asyncio.to_thread(_read, request)
    return await _plan(work, declaration, request), declaration.select_tags


@router.get("/document", responses=shows(own_answers.DocumentShown))
async def dump(
    control_plane_id: str,
    plane: Plane,
    caller: Reader,
    tags: Annotated[str, Query(description="Only what carries all of these, separated by commas")] = "",
) -> Response:
    """What was written, as a declarative document: it applies to nothing where it came from.

    Secrets are in clear for a token with the scope `reveal`; with masks in their place the document can be read, but
    not applied. What a file says only inside its parent is refused where the parent does not carry the tags.
    """
    wanted = [tag for tag in tags.split(",") if tag]
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        holdings = (await plane.holdings.load(session, control_plane.id)).living(time.time())
    entities = {
        name: [{"id": row.id, **_written(row, caller)} for row in rows] for name, rows in _carrying(wanted, holdings)
    }
    try:
        document = write_declaration(entities, select_tags=wanted, control_plane_name=control_plane.name)
    except Homeless as error:
        raise _left_out(
            [holdings.of(name)[entity_id] for name, entity_id in error.entities], holdings, wanted
        ) from None
    return answer(document)


def _carrying(tags: Sequence[str], holdings: Holdings) -> Iterator[tuple[str, list[Row]]]:
    """By kind, what carries the tags; what joins two others, and carries none, is taken with them as decK does."""
    taken: set[tuple[str, str]] = set()
    for row in ENTITY_TYPES.values():
        rows = [
            held
            for held in holdings.of(row.name).values()
            if set(tags) <= set(held.tags)
            or (row.is_link and all((end.type.name, end.id) in taken for end in holdings.parents(held)))
        ]
        taken.update((row.name, held.id) for held in rows)
        yield row.name, rows


def _left_out(rows: Sequence[Row], holdings: Holdings, tags: Sequence[str]) -> BadRequest:
    """A dump without them would delete them when it is synced."""
    said = words(frozenset(tags))
    names = parent_names(rows, lambda kind, target: holdings.of(kind).get(target))
    errors = []
    for row in rows:
        parents = " or ".join(
            f"{ENTITY_TYPES[parent.type].kind} {names[parent.type][target]}"
            for name, parent in row.type.parents.items()
            if parent.nested_key and (target := row.reference(name)) is not None
        )
        text = f"a file says it inside {parents}, which does not carry {said}"
        errors.append(fault((), f"{row.type.kind} {title(row, names)}", Violation((), text)))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    first = f"{errors[0]['entity']}: {errors[0]['message']}{more}"
    tag = "tag" if len(tags) == 1 else "tags"
    return BadRequest(f"{first}; tag the parent too, or dump without the {tag}", errors=errors)


def _written(row: Row, caller: Principal) -> dict[str, Any]:
    return row.written if caller.may("reveal") else change_secrets(row.type, row.written, mask)


def _read(request: PlanRequest) -> Declaration:
    try:
        return read_declaration(request.document, request.select_tags or ())
    except SchemaViolation as error:
        raise DocumentRefused([_document_fault(violation) for violation in error.violations]) from None
    except RecursionError:
        raise BadRequest("the document is nested too deeply") from None


async def _plan(work: Undertaking, declaration: Declaration, request: PlanRequest) -> Plan:
    _check_name(declaration, work.name)
    return await asyncio.to_thread(
        make_plan,
        work.holdings,
        declaration,
        mode=request.mode,
        select_tags=declaration.select_tags,
        owners=work.owners,
        adopt=request.adopt,
        spare=request.spare,
        now=int(time.time()),
    )


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
