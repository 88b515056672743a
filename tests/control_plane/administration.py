"""A control plane with one registered client certificate, and its HTTP API: what tests with scripted nodes need."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from control_plane.app import create_app
from control_plane.plane import ControlPlane
from tests.control_plane.scripted_node import PATIENCE, KeyPair, key_pair

TOKEN = "kpat_test"


class Admin:
    """The HTTP API, for one control plane with one registered certificate."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(plane)),
            base_url="http://control-plane",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        self.pair = key_pair()
        self.path = ""
        self.certificate_id = ""

    async def prepare(self) -> None:
        created = await self.http.post("/v2/control-planes", json={"name": "first"})
        assert created.status_code == 201, created.text
        self.path = f"/v2/control-planes/{created.json()['id']}"
        self.certificate_id = await self.register(self.pair)

    async def register(self, pair: KeyPair) -> str:
        answer = await self.http.post(f"{self.path}/dp-client-certificates", json={"cert": pair.cert, "title": "t"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["item"]["id"])

    async def change(self, name: str) -> None:
        """Make another configuration, as a client does that waits for its snapshot."""
        body = {"name": name, "host": f"{name}.internal"}
        answer = await self.http.post(f"{self.path}/core-entities/services", json=body)
        assert answer.status_code == 201, answer.text
        await self.plane.snapshots.refresh(self.path.rsplit("/", 1)[1])

    async def node(self, node_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"{self.path}/nodes/{node_id}")
        assert answer.status_code == 200, answer.text
        item: dict[str, Any] = answer.json()["item"]
        return item

    async def until(self, node_id: str, state: str) -> dict[str, Any]:
        """The node's row once it is in that state; the test fails when that does not come."""
        async with asyncio.timeout(PATIENCE):
            while (node := await self.node(node_id))["sync_state"] != state:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return node
