"""Data planes of a control plane: their client certificates, the nodes that connected, what they should run.

Konnect's older envelope: `item`, `items` with `page`, times in Unix seconds. Nodes carry more than Konnect's: whether
each runs what it should, per worker, and why not.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.api import answers
from control_plane.api.exchange import WITHOUT_NUL, Body, Plane, Reader, Writer, answer, parameters
from control_plane.api.konnect import find
from control_plane.api.openapi import CONFLICT, accepts, shows
from control_plane.api.stems import StemRouter
from control_plane.auth import Principal
from control_plane.clock import DatabaseTime
from control_plane.database import take_turns
from control_plane.discovery import Pace, version_problem
from control_plane.errors import BadRequest, Conflict, NotFound
from control_plane.models import REVOKED_CERTIFICATES, DataPlaneCertificate, Node
from control_plane.pins import read_certificate
from control_plane.replicas import announce_certificates
from control_plane.rollups import upsert
from control_plane.settings import VERSION
from gateway_schema.document import hash_of

if TYPE_CHECKING:
    from control_plane.plane import ControlPlane

router = StemRouter(prefix="/v2/control-planes/{control_plane_id}", tags=["data planes"])

_OFFLINE_AFTER_SECONDS = 3 * Pace().heartbeat + 5
_SEEN = select(Node, DatabaseTime())
"""Nodes, each with the database's time."""
_CERTIFICATES = "dp-client-certificates"
"""What transactions that change them take turns about: on PostgreSQL two could each find that nobody has one."""
_NO_CERTIFICATE = "The requested certificate was not found."
_COMPATIBILITY = {
    "kong_version_incompatible": "COMPATIBILITY_STATE_INCOMPATIBLE",
    "plugin_set_incompatible": "COMPATIBILITY_STATE_INCOMPATIBLE",
}
_RESOLUTIONS = {
    "kong_version_incompatible": f"Run a data plane of version {VERSION} or of an earlier minor version.",
    "plugin_set_incompatible": "Upgrade the data plane, or remove the plugin from the configuration.",
}


class CertificateBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    cert: Annotated[str, Field(min_length=1, max_length=65_536)]
    title: Annotated[str, Field(max_length=256, pattern=WITHOUT_NUL)] | None = None


# -- client certificates


@router.get("/dp-client-certificates", responses=shows(answers.DataPlaneCertificates))
async def list_certificates(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        rows = (await session.execute(_certificates(control_plane.id).order_by("created_at", "id"))).scalars().all()
    return answer({"items": [_certificate(row) for row in rows], "page": {"total_count": len(rows)}})


@router.post(
    "/dp-client-certificates",
    status_code=201,
    responses=shows(answers.DataPlaneCertificateItem, 201) | CONFLICT,
    openapi_extra=accepts(CertificateBody),
)
async def create_certificate(control_plane_id: str, body: Body, plane: Plane, caller: Writer) -> Response:
    """Pin a certificate: nodes that present it are nodes of this control plane. Doing it twice changes nothing."""
    given = parameters(CertificateBody, body)
    async with plane.database.writing() as session:
        control_plane = await find(session, control_plane_id, lock=True)
        await take_turns(session, _CERTIFICATES)
        row = await _pin(session, caller, control_plane.id, given, None)
    await plane.pins.refresh()
    return answer({"item": _certificate(row)}, 201)


@router.get("/dp-client-certificates/{certificate_id}", responses=shows(answers.DataPlaneCertificateItem))
async def get_certificate(control_plane_id: str, certificate_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        row = await _find_certificate(session, (await find(session, control_plane_id)).id, certificate_id)
    return answer({"item": _certificate(row)})


@router.put(
    "/dp-client-certificates/{certificate_id}",
    responses=shows(answers.DataPlaneCertificateItem) | CONFLICT,
    openapi_extra=accepts(CertificateBody),
)
async def put_certificate(
    control_plane_id: str, certificate_id: str, body: Body, plane: Plane, caller: Writer
) -> Response:
    """Replace a certificate; the one it replaces is revoked."""
    given = parameters(CertificateBody, body)
    async with plane.database.writing() as session:
        control_plane = await find(session, control_plane_id, lock=True)
        await take_turns(session, _CERTIFICATES)
        row = await _find_certificate(session, control_plane.id, certificate_id)
        row = await _pin(session, caller, control_plane.id, given, row)
    await plane.pins.refresh()
    return answer({"item": _certificate(row)})


@router.delete("/dp-client-certificates/{certificate_id}", status_code=204)
async def delete_certificate(control_plane_id: str, certificate_id: str, plane: Plane, caller: Writer) -> Response:
    """Revoke a certificate: connections that use it end now."""
    async with plane.database.writing() as session:
        control_plane = await find(session, control_plane_id, lock=True)
        await take_turns(session, _CERTIFICATES)
        row = await _find_certificate(session, control_plane.id, certificate_id)
        await _revoke(session, row)
        await _tell(session, caller, "revoke", row)
        await session.delete(row)
        await announce_certificates(session)
    await plane.pins.refresh()
    return Response(status_code=204)


async def _tell(session: AsyncSession, caller: Principal, action: str, row: DataPlaneCertificate) -> None:
    what = ("dp_client_certificates", row.id, row.title or "")
    details = {"fingerprint": row.fingerprint}
    await audit.record(session, caller, action, *what, control_plane_id=row.control_plane_id, details=details)


async def _pin(
    session: AsyncSession,
    caller: Principal,
    control_plane_id: str,
    given: CertificateBody,
    row: DataPlaneCertificate | None,
) -> DataPlaneCertificate:
    """The transaction has its turn: whether a certificate is registered is asked of all control planes."""
    pem, fingerprint = _read(given.cert)
    same = select(DataPlaneCertificate).where(DataPlaneCertificate.fingerprint == fingerprint)
    known = (await session.execute(same.order_by("created_at", "id"))).scalars().first()
    if known is not None and known.control_plane_id != control_plane_id:
        raise Conflict("this certificate is registered with another control plane: a node can belong to one only")
    if known is not None and row is not None and known.id != row.id:
        raise Conflict("this certificate is registered already, under another id")
    row = row or known
    title = given.title if "title" in given.model_fields_set or row is None else row.title
    if row is not None and (row.fingerprint, row.title) == (fingerprint, title):
        return row
    now = int(time.time())
    action = "create" if row is None else "update"
    if row is None:
        row = DataPlaneCertificate(id=str(uuid.uuid4()), control_plane_id=control_plane_id, created_at=now)
        session.add(row)
    elif row.fingerprint != fingerprint:
        await _revoke(session, row)
    row.title, row.cert, row.fingerprint, row.updated_at = title, pem, fingerprint, now
    await session.execute(
        delete(REVOKED_CERTIFICATES).where(
            REVOKED_CERTIFICATES.c.control_plane_id == control_plane_id,
            REVOKED_CERTIFICATES.c.fingerprint == fingerprint,
        )
    )
    await _tell(session, caller, action, row)
    await announce_certificates(session)
    return row


async def _revoke(session: AsyncSession, row: DataPlaneCertificate) -> None:
    revoked = {
        "control_plane_id": row.control_plane_id,
        "fingerprint": row.fingerprint,
        "title": row.title,
        "cert": row.cert,
        "revoked_at": int(time.time()),
    }
    await upsert(session, REVOKED_CERTIFICATES, [revoked])


def _read(pem: str) -> tuple[str, str]:
    try:
        certificate, text, fingerprint = read_certificate(pem)
    except ValueError as error:
        raise BadRequest(f"cert: {error}") from None
    if certificate.serial_number <= 0:
        # Later versions of the library will not read it. One that was stored before is read for as long as it can be.
        raise BadRequest("cert: its serial number must be positive (RFC 5280)")
    return text, fingerprint


def _certificates(control_plane_id: str) -> Any:
    return select(DataPlaneCertificate).where(DataPlaneCertificate.control_plane_id == control_plane_id)


async def _find_certificate(session: AsyncSession, control_plane_id: str, certificate_id: str) -> DataPlaneCertificate:
    row = await session.get(DataPlaneCertificate, _uuid(certificate_id, _NO_CERTIFICATE))
    if row is None or row.control_plane_id != control_plane_id:
        raise NotFound(_NO_CERTIFICATE)
    return row


def _certificate(row: DataPlaneCertificate) -> dict[str, Any]:
    return {
        "id": row.id,
        "title": row.title,
        "cert": row.cert,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


# -- nodes


@router.get("/nodes", responses=shows(answers.Nodes))
async def list_nodes(
    request: Request,
    control_plane_id: str,
    plane: Plane,
    _: Reader,
    size: Annotated[int, Query(alias="page[size]", ge=1, le=1000)] = 100,
    after: Annotated[str, Query(alias="page[after]", max_length=64)] = "",
) -> Response:
    """In order of id; `page.next` is the address of the next page."""
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        of_this = Node.control_plane_id == control_plane.id
        total = (await session.execute(select(func.count()).select_from(Node).where(of_this))).scalar_one()
        page = _SEEN.where(of_this, Node.id > after.replace("\0", "")).order_by(Node.id).limit(size + 1)
        found = list(await session.execute(page))
    shown: dict[str, Any] = {"total_count": total}
    if len(found) > size:
        shown["next"] = str(request.url.include_query_params(**{"page[after]": found[size - 1][0].id}))
    current = await _current_hash(plane, control_plane.id, [row for row, _ in found])
    return answer({"items": [_node(row, now, current) for row, now in found[:size]], "page": shown})


@router.get("/nodes/eol", responses=shows(answers.OutdatedNodes))
async def list_outdated_nodes(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    """Nodes whose version this control plane cannot serve."""
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        query = select(Node).where(Node.control_plane_id == control_plane.id).order_by(Node.id)
        rows = list((await session.execute(query)).scalars())
    items = [
        {"node_id": row.id, "node_version": row.version, "message": problem}
        for row in rows
        if (problem := version_problem(row.version, VERSION))
    ]
    return answer({"items": items})


@router.get("/nodes/{node_id}", responses=shows(answers.NodeItem))
async def get_node(control_plane_id: str, node_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        row, now = await _find_node(session, (await find(session, control_plane_id)).id, node_id)
    return answer({"item": _node(row, now, await _current_hash(plane, row.control_plane_id, [row]))})


@router.delete("/nodes/{node_id}", status_code=204)
async def delete_node(control_plane_id: str, node_id: str, plane: Plane, caller: Writer) -> Response:
    """Forget a node. One that is still connected says hello again, and is back."""
    async with plane.database.writing() as session:
        control_plane = await find(session, control_plane_id, lock=True)
        row, _ = await _find_node(session, control_plane.id, node_id, lock=True)
        what = ("nodes", row.id, row.hostname)
        await audit.record(session, caller, "delete", *what, control_plane_id=row.control_plane_id)
        await session.delete(row)
    if plane.wire is not None:
        plane.wire.forget(row.control_plane_id, row.id)
    return Response(status_code=204)


async def _find_node(
    session: AsyncSession, control_plane_id: str, node_id: str, *, lock: bool = False
) -> tuple[Node, int]:
    """A row of `_SEEN`. `lock`: nobody deletes it meanwhile."""
    missing = "The requested node was not found."
    query = _SEEN.where(Node.control_plane_id == control_plane_id, Node.id == _uuid(node_id, missing))
    query = query.with_for_update(of=Node) if lock else query
    found = (await session.execute(query)).first()
    if found is None:
        raise NotFound(missing)
    return found


async def _current_hash(plane: ControlPlane, control_plane_id: str, rows: Sequence[Node]) -> str:
    """What nodes should run; empty when none of these claims to, and nobody needs to know."""
    if all(row.sync_state != "in_sync" for row in rows):
        return ""
    return (await plane.snapshots.get(control_plane_id)).snapshot.hash


def _node(row: Node, now: int, current: str) -> dict[str, Any]:
    error = row.last_error
    return {
        "id": row.id,
        "version": row.version,
        "hostname": row.hostname,
        "last_ping": row.last_seen,
        "type": "kong-proxy",
        "config_hash": row.config_hash or hash_of(b""),
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "compatibility_status": _compatibility(error),
        "sync_state": _sync_state(row, now, current),
        "config_version": row.config_version,
        "workers": row.workers,
        "last_error": error,
    }


def _sync_state(row: Node, now: int, current: str) -> str:
    if is_offline(row, now):
        return "offline"
    if row.sync_state == "in_sync" and row.config_hash != current:
        return "pending"  # what it runs was current when the row was written, and no longer is
    return row.sync_state


def is_offline(row: Node, now: int) -> bool:
    """No stream, or one that has been silent for longer than streams live: its replica may have been killed.

    `now`: the database's, from the statement that read the row.
    """
    return row.sync_state == "offline" or row.last_seen < now - _OFFLINE_AFTER_SECONDS


def _compatibility(error: dict[str, Any] | None) -> dict[str, Any]:
    code = error.get("code", "") if error else ""
    if error is None or code not in _COMPATIBILITY:
        return {"state": "COMPATIBILITY_STATE_FULLY_COMPATIBLE", "issues": []}
    issue = {
        "code": code,
        "severity": "error",
        "description": error["message"],
        "resolution": _RESOLUTIONS[code],
        "documentation_url": "",
        "affected_resources": [],
    }
    return {"state": _COMPATIBILITY[code], "issues": [issue]}


def _uuid(text: str, missing: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise NotFound(missing) from None


# -- what they should run


@router.get("/expected-config-hash", responses=shows(answers.ExpectedHash))
async def get_expected_hash(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
    snapshot = (await plane.snapshots.get(control_plane.id)).snapshot
    seconds = {"created_at": control_plane.created_at // 1000, "updated_at": control_plane.updated_at // 1000}
    return answer({"expected_hash": snapshot.hash, "config_version": snapshot.version, **seconds})


@router.get("/expected-config-version", responses=shows(answers.ExpectedVersion))
async def get_expected_version(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
    snapshot = (await plane.snapshots.get(control_plane.id)).snapshot
    created = control_plane.created_at // 1000
    return answer({"expected_config_version": snapshot.version, "created_at": created})
