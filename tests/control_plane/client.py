"""A control plane in this process and a client that talks to it without sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from control_plane.app import create_app
from control_plane.plane import ControlPlane
from control_plane.settings import Settings

TOKEN = "kpat_test-token"


class Client:
    """The API of one running control plane, and of one control plane resource in it."""

    def __init__(self, plane: ControlPlane, http: httpx.AsyncClient, control_plane_id: str = "") -> None:
        self.plane = plane
        self.http = http
        self.id = control_plane_id

    async def call(self, method: str, path: str, body: Any = None, expect: int = 200, **options: Any) -> Any:
        """Call a path below the control plane's core entities (or an absolute one) and give the decoded answer."""
        url = path if path.startswith("/") else f"/v2/control-planes/{self.id}/core-entities/{path}"
        if body is not None:
            options["json"] = body
        response = await self.http.request(method, url, **options)
        assert response.status_code == expect, f"{method} {url}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    async def get(self, path: str, query: dict[str, str] | None = None, expect: int = 200) -> Any:
        return await self.call("GET", path, expect=expect, params=query)

    async def apply(self, document: dict[str, Any], expect: int = 200, **options: Any) -> Any:
        body = {"document": document, "commit": True, **options}
        return await self.call("POST", f"/v2/control-planes/{self.id}/apply", body, expect)

    async def dump(self, tags: str = "") -> Any:
        return await self.get(f"/v2/control-planes/{self.id}/document", {"tags": tags})

    async def another(self, name: str) -> Client:
        """A client for a further control plane resource."""
        created = await self.call("POST", "/v2/control-planes", {"name": name}, 201)
        return Client(self.plane, self.http, created["id"])


@contextlib.asynccontextmanager
async def running_client(state_dir: Path, database_url: str, control_plane_id: str = "") -> AsyncIterator[Client]:
    """A control plane with one resource in it: a new one, or the one that is named."""
    settings = Settings(state_dir, database_url, grpc_port=0, admin_token=TOKEN)
    async with ControlPlane(settings).running() as plane:
        transport = httpx.ASGITransport(create_app(plane), raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://plane", headers=headers) as http:
            client = Client(plane, http, control_plane_id)
            yield client if control_plane_id else await client.another("first")
