"""A control plane is deleted while something of it is written: the writer comes after, and hears that it is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, text

from control_plane.models import GROUP, ControlPlane
from tests.control_plane.client import Client
from tests.pems import certificate_pem

_PATIENCE = 30
_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


async def beside_deletion(client: Client, doomed: str, method: str, path: str, body: Any) -> Any:
    """The answer to a call that comes when the control plane has been deleted and the deletion is not committed."""
    async with client.plane.database.writing() as session:
        await session.execute(delete(ControlPlane).where(ControlPlane.id == doomed))
        call = asyncio.create_task(client.http.request(method, path, json=body), name="beside")
        await _until_it_waits(client, call)
    return await call


async def _until_it_waits(client: Client, call: asyncio.Task[Any]) -> None:
    """On SQLite the writer's turn has not come, whether it has begun or not."""
    if client.plane.database.is_sqlite:
        return
    async with asyncio.timeout(_PATIENCE):
        while not call.done():
            async with client.plane.database.single() as connection:
                if (await connection.execute(_WAITING)).scalar_one():
                    return
            await asyncio.sleep(0.01)


WRITES: list[tuple[str, str, Any]] = [
    ("POST", "{base}/plans", {"document": {"_format_version": "3.0"}}),
    ("POST", "{base}/config-stores", {"name": "s"}),
    ("PUT", "{base}/config-stores/{store}", {"name": "t"}),
    ("PUT", "{base}/config-stores/{store}/secrets/k", {"value": "v"}),
    ("DELETE", "{base}/config-stores/{store}", None),
    ("POST", "{base}/dp-client-certificates", {"cert": certificate_pem("other")}),
    ("PUT", "{base}/dp-client-certificates/{certificate}", {"cert": certificate_pem("third")}),
    ("DELETE", "{base}/dp-client-certificates/{certificate}", None),
    ("POST", "{base}/core-entities/services", {"host": "h.test"}),
    ("POST", "{base}/apply", {"document": {"_format_version": "3.0"}, "commit": True}),
    ("PATCH", "{base}", {"description": "d"}),
    ("DELETE", "{base}", None),
    ("POST", "/v2/tokens", {"name": "t", "control_plane_id": "{id}"}),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=[f"{method} {path}" for method, path, _ in WRITES])
async def test_what_is_written_into_a_control_plane_that_goes_is_answered_404(
    client: Client, method: str, path: str, body: Any
) -> None:
    doomed = (await client.another("doomed")).id
    base = f"/v2/control-planes/{doomed}"
    store = await client.call("POST", f"{base}/config-stores", {"name": "main"}, 201)
    pinned = await client.call("POST", f"{base}/dp-client-certificates", {"cert": certificate_pem("node")}, 201)
    filled = path.format(base=base, store=store["id"], certificate=pinned["item"]["id"])
    if body and "control_plane_id" in body:
        body = {**body, "control_plane_id": doomed}
    response = await beside_deletion(client, doomed, method, filled, body)
    assert response.status_code == 404, response.text
    assert response.json()["message"]


@pytest.mark.parametrize("call", ["add", "remove", ""])
@pytest.mark.parametrize("goes", ["group", "member"])
async def test_neither_a_group_nor_a_member_goes_unnoticed(client: Client, call: str, goes: str) -> None:
    group = await client.call("POST", "/v2/control-planes", {"name": "group", "cluster_type": GROUP}, 201)
    ids = {"group": group["id"], "member": (await client.another("member")).id}
    path = f"/v2/control-planes/{group['id']}/group-memberships/{call}".rstrip("/")
    body = {"members": [{"id": ids["member"]}]}
    response = await beside_deletion(client, ids[goes], "POST" if call else "PUT", path, body)
    assert response.status_code == {"group": 404, "member": 400}[goes], response.text
