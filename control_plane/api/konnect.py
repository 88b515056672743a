"""Control planes as resources, and the few calls by which Konnect's clients find their way to one."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.api import answers
from control_plane.api.exchange import WITHOUT_NUL, Admin, AnyReader, Body, Plane, Reader, answer, parameters, rfc3339
from control_plane.api.openapi import CONFLICT, accepts, queries, shows
from control_plane.api.paging import read_number
from control_plane.api.stems import StemRouter
from control_plane.errors import Conflict, InvalidParameters, NotFound
from control_plane.holdings import NO_CONTROL_PLANE
from control_plane.models import ControlPlane
from control_plane.replicas import announce_gone
from gateway_schema.base import canonical_id

router = StemRouter(tags=["control planes"])
open_to_all = StemRouter(tags=["control planes"])
"""Paths that ask for no token."""

ORGANIZATION_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "urn:tandem:organization"))
REGION = "local"
_MAX_PAGE = 2**31
_NAME_TAKEN = "Control Plane with provided name already exists."
_RESERVED = ("kong", "konnect", "mesh", "kic", "_")
_LABEL_VALUE = re.compile(r"[a-z0-9A-Z]([a-z0-9A-Z\-._]*[a-z0-9A-Z])?")

ClusterType = Literal[
    "CLUSTER_TYPE_CONTROL_PLANE",
    "CLUSTER_TYPE_K8S_INGRESS_CONTROLLER",
    "CLUSTER_TYPE_CONTROL_PLANE_GROUP",
    "CLUSTER_TYPE_SERVERLESS",
    "CLUSTER_TYPE_SERVERLESS_V1",
    "CLUSTER_TYPE_KAFKA_NATIVE_EVENT_PROXY",
]
AuthType = Literal["pinned_client_certs", "pki_client_certs"]


def _check_labels(labels: dict[str, str | None]) -> dict[str, str | None]:
    for key, value in labels.items():
        if not 1 <= len(key) <= 63 or key.startswith(_RESERVED):
            raise ValueError(
                f"label '{key}': keys have 1 to 63 characters and do not start with {', '.join(_RESERVED)}"
            )
        if "\0" in key:
            raise ValueError(f"label '{key}': keys must not contain NUL characters")
        if value is not None and not (len(value) <= 63 and _LABEL_VALUE.fullmatch(value)):
            raise ValueError(
                f"label '{key}': values have 1 to 63 letters, digits, '-', '_', '.', no sign at either end"
            )
    return labels


Name = Annotated[str, Field(min_length=2, max_length=256, pattern=WITHOUT_NUL)]
Description = Annotated[str, Field(max_length=2048, pattern=WITHOUT_NUL)]
Labels = Annotated[dict[str, str | None], AfterValidator(_check_labels)]


class ProxyUrl(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    host: Annotated[str, Field(min_length=1, max_length=120, pattern=WITHOUT_NUL)]
    port: Annotated[int, Field(ge=1, le=65_535)]
    protocol: Annotated[str, Field(min_length=1, max_length=32, pattern=WITHOUT_NUL)]


ProxyUrls = Annotated[list[ProxyUrl], Field(max_length=5)]


class CreateControlPlane(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    description: Description | None = None
    labels: Labels | None = None
    cluster_type: ClusterType = "CLUSTER_TYPE_CONTROL_PLANE"
    auth_type: AuthType = "pinned_client_certs"
    cloud_gateway: bool = False
    proxy_urls: ProxyUrls | None = None


class UpdateControlPlane(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    """Replaces the whole map; a null value removes its key."""
    auth_type: AuthType | None = None
    proxy_urls: ProxyUrls | None = None


_ORDERS = {"": False, "created_at": False, "created_at asc": False, "created_at desc": True}
_TEXT = {"type": "string"}
_OPERATORS = {"id": ("eq", "oeq"), "name": ("eq", "contains", "neq"), "cluster_type": ("eq", "neq", "oeq")}
_QUERIES: Mapping[str, Mapping[str, Any]] = {
    "page[size]": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    "page[number]": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE, "default": 1},
    **{f"filter[{field}][{operator}]": _TEXT for field, operators in _OPERATORS.items() for operator in operators},
    "filter[cloud_gateway]": {"type": "boolean"},
    "labels": {"type": "string", "description": "`key:value,key`: all of them"},
    "sort": {"type": "string", "enum": [order for order in _ORDERS if order]},
}


@router.get(
    "/v2/control-planes",
    responses=shows(answers.ControlPlanes),
    openapi_extra=queries(**_QUERIES),
)
async def list_control_planes(request: Request, plane: Plane, caller: AnyReader) -> Response:
    """All control planes, in pages: `page[size]`, `page[number]`, `filter[…]`, `labels`, `sort`."""
    query = request.query_params
    size = _number(query.get("page[size]"), "page[size]", 100, 1000)
    number = _number(query.get("page[number]"), "page[number]", 1, _MAX_PAGE)
    async with plane.database.reading() as session:
        found = list((await session.execute(select(ControlPlane))).scalars())
    found.sort(key=lambda item: (item.created_at, item.id), reverse=_newest_first(query))
    accepted = [lambda item: caller.sees(item.id), *_filters(query)]
    found = [item for item in found if all(accept(item) for accept in accepted)]
    page = found[(number - 1) * size : number * size]
    meta = {"page": {"number": number, "size": size, "total": len(found)}}
    return answer({"data": [shown(item, plane.grpc_address) for item in page], "meta": meta})


@router.post(
    "/v2/control-planes",
    status_code=201,
    responses=shows(answers.ControlPlaneShown, 201) | CONFLICT,
    openapi_extra=accepts(CreateControlPlane),
)
async def create_control_plane(body: Body, plane: Plane, caller: Admin) -> Response:
    given = parameters(CreateControlPlane, body)
    now = time.time_ns() // 1_000_000
    created = ControlPlane(
        id=str(uuid.uuid4()),
        name=given.name,
        description=given.description or "",
        labels=_without_nulls(given.labels or {}),
        cluster_type=given.cluster_type,
        auth_type=given.auth_type,
        proxy_urls=[item.model_dump() for item in given.proxy_urls or ()],
        cloud_gateway=given.cloud_gateway,
        config_version=0,
        created_at=now,
        updated_at=now,
    )
    async with plane.database.writing() as session:
        await _check_name(session, given.name)
        session.add(created)
        await _flush(session)
        await audit.record(session, caller, "create", *_subject(created), control_plane_id=created.id)
    return answer(shown(created, plane.grpc_address), 201)


@router.get("/v2/control-planes/{control_plane_id}", responses=shows(answers.ControlPlaneShown))
async def get_control_plane(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        found = await find(session, control_plane_id)
    return answer(shown(found, plane.grpc_address))


@router.patch(
    "/v2/control-planes/{control_plane_id}",
    responses=shows(answers.ControlPlaneShown) | CONFLICT,
    openapi_extra=accepts(UpdateControlPlane),
)
async def update_control_plane(control_plane_id: str, body: Body, plane: Plane, caller: Admin) -> Response:
    given = parameters(UpdateControlPlane, body)
    async with plane.database.writing() as session:
        found = await find(session, control_plane_id, lock=True)
        if given.name is not None and given.name != found.name:
            await _check_name(session, given.name)
            found.name = given.name
        if "description" in given.model_fields_set:
            found.description = given.description or ""
        if "labels" in given.model_fields_set:
            found.labels = _without_nulls(given.labels or {})
        if given.auth_type is not None:
            found.auth_type = given.auth_type
        if "proxy_urls" in given.model_fields_set:
            found.proxy_urls = [item.model_dump() for item in given.proxy_urls or ()]
        found.updated_at = time.time_ns() // 1_000_000
        await _flush(session)
        details = {"fields": sorted(given.model_fields_set)}
        await audit.record(session, caller, "update", *_subject(found), control_plane_id=found.id, details=details)
    return answer(shown(found, plane.grpc_address))


@router.delete("/v2/control-planes/{control_plane_id}", status_code=204)
async def delete_control_plane(control_plane_id: str, plane: Plane, caller: Admin) -> Response:
    """With everything in it."""
    async with plane.database.writing() as session:
        found = await find(session, control_plane_id, lock=True)
        await audit.record(session, caller, "delete", *_subject(found), control_plane_id=found.id)
        await session.delete(found)
        await announce_gone(session, found.id)
    await plane.forget(control_plane_id)
    return Response(status_code=204)


@router.get("/konnect-api/api/runtime_groups", responses=shows(answers.RuntimeGroups))
async def list_runtime_groups(
    plane: Plane,
    caller: AnyReader,
    page: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 1,
    size: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """The look-up by name with which decK begins every command."""
    async with plane.database.reading() as session:
        query = select(ControlPlane.id, ControlPlane.name).order_by(ControlPlane.created_at, ControlPlane.id)
        found = [item for item in (await session.execute(query)).all() if caller.sees(item.id)]
    data = [{"id": item.id, "name": item.name} for item in found[(page - 1) * size : page * size]]
    return answer({"data": data, "page": page, "pageCount": max(1, -(-len(found) // size))})


@router.get("/v2/organizations/me", responses=shows(answers.Organization))
@router.get("/v3/organizations/me", responses=shows(answers.Organization))
@router.get("//{address}/v2/organizations/me", include_in_schema=False)
async def get_organization(principal: AnyReader) -> Response:
    """decK's ping puts our address in front of the path when that address is no name of Konnect's."""
    created = rfc3339(principal.created_at * 1000)
    return answer(
        {
            "id": ORGANIZATION_ID,
            "name": "Tandem",
            "owner_id": principal.id,
            "login_path": "tandem",
            "state": "active",
            "retention_period_days": 14,
            "created_at": created,
            "updated_at": created,
        }
    )


@router.get("/v3/users/me", responses=shows(answers.User))
async def get_user(principal: AnyReader) -> Response:
    created = rfc3339(principal.created_at * 1000)
    return answer(
        {
            "id": principal.id,
            "email": "admin@tandem.invalid",
            "full_name": principal.name,
            "preferred_name": principal.name,
            "active": True,
            "inferred_region": REGION,
            "created_at": created,
            "updated_at": created,
        }
    )


@open_to_all.get("/v3/available-regions", responses=shows(answers.Regions))
async def list_regions() -> Response:
    """There is one region: here. Open to all, for kongctl asks without a token."""
    return answer({"regions": {"stable": [REGION], "beta": []}})


async def find(session: AsyncSession, control_plane_id: str, *, lock: bool = False) -> ControlPlane:
    """`lock`: and be the only one to write it until the transaction ends. Whoever writes a row that belongs to it asks
    for that: a deletion beside it comes before or after, not between. Raises NotFound."""
    found = await session.get(ControlPlane, canonical_id(control_plane_id) or "", with_for_update=lock)
    if found is None:
        raise NotFound(NO_CONTROL_PLANE)
    return found


def shown(item: ControlPlane, grpc_address: str) -> dict[str, Any]:
    """As Konnect shows it. Both endpoints are this process's gRPC listener."""
    endpoint = f"https://{grpc_address}"
    return {
        "id": item.id,
        "name": item.name,
        "description": item.description,
        "labels": item.labels,
        "config": {
            "control_plane_endpoint": endpoint,
            "telemetry_endpoint": endpoint,
            "cluster_type": item.cluster_type,
            "auth_type": item.auth_type,
            "cloud_gateway": item.cloud_gateway,
            "proxy_urls": item.proxy_urls,
        },
        "created_at": rfc3339(item.created_at),
        "updated_at": rfc3339(item.updated_at),
    }


def _subject(item: ControlPlane) -> tuple[str, str, str]:
    """What the audit log calls it."""
    return "control_planes", item.id, item.name


async def _check_name(session: AsyncSession, name: str) -> None:
    if (await session.execute(select(ControlPlane.id).where(ControlPlane.name == name))).first() is not None:
        raise Conflict(_NAME_TAKEN)


async def _flush(session: AsyncSession) -> None:
    """Another replica may have taken the name since it was looked up: the constraint is the judge."""
    try:
        await session.flush()
    except IntegrityError:
        raise Conflict(_NAME_TAKEN) from None


def _without_nulls(labels: Mapping[str, str | None]) -> dict[str, Any]:
    return {key: value for key, value in labels.items() if value is not None}


def _number(text: str | None, name: str, default: int, maximum: int) -> int:
    if text is None:
        return default
    number = read_number(text)
    if number is None or not 1 <= number <= maximum:
        raise _invalid(name, "is_integer", f"must be an integer between 1 and {maximum}")
    return number


def _newest_first(query: Mapping[str, str]) -> bool:
    """Raises InvalidParameters for an order that is not known."""
    order = " ".join(query.get("sort", "").split())
    if order not in _ORDERS:
        raise _invalid("sort", "enum", f"must be one of {', '.join(filter(None, _ORDERS))}")
    return _ORDERS[order]


def _invalid(name: str, rule: str, reason: str) -> InvalidParameters:
    return InvalidParameters([{"field": name, "rule": rule, "reason": reason, "source": "query"}])


_Accept = Callable[[ControlPlane], bool]


def _filters(query: Mapping[str, str]) -> list[_Accept]:
    accepted: list[_Accept] = []
    for key, value in query.items():
        matched = re.fullmatch(r"filter\[(id|name|cluster_type|cloud_gateway)\](?:\[(eq|oeq|neq|contains)\])?", key)
        if matched:
            accepted.append(_filter(matched[1], matched[2] or "eq", value))
        elif key.startswith("filter"):
            raise _invalid(key, "invalid", "unknown filter")
        elif key == "labels":
            accepted.extend(_label_filter(part) for part in value.split(",") if part.strip())
    return accepted


def _filter(field: str, operator: str, value: str) -> _Accept:
    def text(item: ControlPlane) -> str:
        found = getattr(item, field)
        return str(found).lower() if isinstance(found, bool) else str(found)

    operations: dict[str, _Accept] = {
        "eq": lambda item: text(item) == value,
        "neq": lambda item: text(item) != value,
        "oeq": lambda item: text(item) in value.split(","),
        "contains": lambda item: value in text(item),
    }
    return operations[operator]


def _label_filter(part: str) -> _Accept:
    key, colon, value = part.strip().partition(":")
    return lambda item: key in item.labels and (not colon or item.labels[key] == value)
