"""Receipts: who runs a version and who does not, with a wait for the answers; and how long it takes to get there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

from fastapi import Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import bindparam, select
from starlette.requests import ClientDisconnect

from control_plane.api import own_answers
from control_plane.api.exchange import AnyReader, Plane, Reader, answer
from control_plane.api.konnect import find
from control_plane.api.nodes import is_offline
from control_plane.api.openapi import shows
from control_plane.api.stems import StemRouter
from control_plane.clock import DatabaseTime
from control_plane.errors import NotFound
from control_plane.holdings import NO_CONTROL_PLANE
from control_plane.models import ControlPlane, Node
from gateway_schema.base import canonical_id

router = StemRouter(tags=["receipts"])

MAX_WAIT_SECONDS = 300.0
_ELSEWHERE_SECONDS = 0.25
"""How often the nodes table is read for nodes that are connected to another replica."""
_FEW = 16
"""So many that wait read it as often as that, each for itself; the more they are, the less often each of them."""
_BREATH_SECONDS = 0.002
_VERSION = select(ControlPlane.id, ControlPlane.config_version).where(ControlPlane.id == bindparam("id"))
_NODES = (
    select(Node.__table__, DatabaseTime().label("read_at"))
    .where(Node.control_plane_id == bindparam("control_plane_id"))
    .order_by(Node.id)
)

_BASE = "/v2/control-planes/{control_plane_id}"


@router.get(_BASE + "/snapshots/{version}/receipts", responses=shows(own_answers.ReceiptsShown))
async def get_receipts(
    request: Request,
    control_plane_id: str,
    version: Annotated[int, Path(ge=0, lt=1 << 63)],
    plane: Plane,
    _: Reader,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for missing answers")] = 0,
) -> Response:
    """Per node and worker. With `wait`, the answer comes as soon as every connected node has applied or refused."""
    deadline = time.monotonic() + wait
    found, committed = await _known(plane, control_plane_id)
    async with _client_of(request) as gone:
        if version <= committed:
            await _made(plane, found, version, deadline, gone)
        return await _complete(plane, found, version, deadline, gone)


async def _complete(plane: Plane, found: str, version: int, deadline: float, gone: asyncio.Task[None]) -> Response:
    """The receipts once they are complete, or when the time is up. Raises ClientDisconnect when nobody waits."""
    hash_ = await _hash_of(plane, found, version)
    with plane.receipts.waiting(found) as waiting:
        while True:
            changed = plane.receipts.changed(found)
            began = time.monotonic()
            receipts = await _read(plane, found, version, hash_)
            if not receipts["items"]:
                await _known(plane, found)  # a control plane that is deleted meanwhile has no nodes either
            now = time.monotonic()
            if receipts["complete"] or now >= deadline:
                return answer(receipts)
            await _change(changed, min(deadline - now, _ELSEWHERE_SECONDS * max(1, waiting() / _FEW)), gone)
            # Hundreds of nodes answer within a moment: between two looks passes as long as one takes. The first of
            # them, and a node that is alone, need not wait for that.
            await asyncio.sleep(now + max(_BREATH_SECONDS, now - began) - time.monotonic())


@router.get(_BASE + "/propagation", responses=shows(own_answers.PropagationShown))
async def get_propagation(control_plane_id: str, plane: Plane, _: Reader) -> Response:
    """Milliseconds from the making of a snapshot to each receipt, since this process started."""
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
    return answer(plane.receipts.propagation(control_plane.id).shown())


@router.get("/metrics", response_class=PlainTextResponse)
async def get_metrics(plane: Plane, caller: AnyReader) -> Response:
    """The same for all control planes, for Prometheus."""
    name = "tandem_config_propagation_seconds"
    lines = [
        f"# HELP {name} Time from the making of a snapshot to a node's receipt of it.",
        f"# TYPE {name} histogram",
    ]
    for control_plane_id, propagation in sorted(plane.receipts.propagations().items()):
        if caller.control_plane_id not in (None, control_plane_id):
            continue
        label = f'control_plane="{control_plane_id}"'
        total = 0
        for bound, total in propagation.cumulative():
            limit = "+Inf" if bound is None else f"{bound / 1000:g}"
            lines.append(f'{name}_bucket{{{label},le="{limit}"}} {total}')
        lines.append(f"{name}_sum{{{label}}} {propagation.sum_ms / 1000:.6f}")
        lines.append(f"{name}_count{{{label}}} {total}")
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


async def _known(plane: Plane, control_plane_id: str) -> tuple[str, int]:
    """The id as it is written, and the version. Raises NotFound."""
    async with plane.database.single() as connection:
        row = (await connection.execute(_VERSION, {"id": canonical_id(control_plane_id)})).first()
    if row is None:
        raise NotFound(NO_CONTROL_PLANE)
    return row.id, row.config_version


async def _made(plane: Plane, control_plane_id: str, version: int, deadline: float, gone: asyncio.Task[None]) -> None:
    """Wait for the snapshot of a version that was committed just now, here or through another replica."""
    await plane.snapshots.get(control_plane_id)
    while (plane.snapshots.covered(control_plane_id) or 0) < version and (pause := deadline - time.monotonic()) > 0:
        changed = plane.receipts.changed(control_plane_id)
        await _change(changed, min(pause, _ELSEWHERE_SECONDS), gone)


@contextlib.asynccontextmanager
async def _client_of(request: Request) -> AsyncIterator[asyncio.Task[None]]:
    """A task that ends when the client is gone."""
    gone = asyncio.create_task(_leaving(request), name="receipts: the client leaves")
    try:
        yield gone
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _change(changed: asyncio.Event, seconds: float, gone: asyncio.Task[None]) -> None:
    """Wait for it, not for longer than that. Raises ClientDisconnect."""
    waiting = asyncio.create_task(changed.wait(), name="receipts: a change")
    try:
        await asyncio.wait((waiting, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if gone.done():
        raise ClientDisconnect


async def _hash_of(plane: Plane, control_plane_id: str, version: int) -> str:
    """Raises NotFound for a version that is neither current nor kept."""
    current = (await plane.snapshots.get(control_plane_id)).snapshot
    if current.version == version:
        return current.hash
    if known := plane.receipts.hash_of(control_plane_id, version):
        return known
    async with plane.database.reading() as session:
        return (await plane.history.entry(session, control_plane_id, version)).hash


async def _read(plane: Plane, control_plane_id: str, version: int, hash_: str) -> dict[str, Any]:
    async with plane.database.single() as connection:
        rows = (await connection.execute(_NODES, {"control_plane_id": control_plane_id})).all()
    snapshot = (await plane.snapshots.get(control_plane_id)).snapshot
    current = (snapshot.hash,) if (plane.snapshots.covered(control_plane_id) or 0) >= version else ()
    # They have a node's columns as attributes, and are quicker to make.
    nodes = [(cast("Node", row), not is_offline(cast("Node", row), row.read_at)) for row in rows]
    return plane.receipts.view(control_plane_id, version, (hash_, *current), nodes)
