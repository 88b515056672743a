"""The whole HTTP surface of a control plane, served from a thread of its own, with something behind every path."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert

from control_plane.ingest import Ingest, Reporter
from control_plane.models import GROUP, Node
from gateway_schema.wire import analytics_pb2
from tests.control_plane.callers import make_token
from tests.control_plane.client import Client, running_client
from tests.control_plane.deck.served import served
from tests.control_plane.everything import everything
from tests.control_plane.usage import event
from tests.pems import certificate_pem

_CORE = "/v2/control-planes/{control_plane_id}/core-entities/"
_PATIENCE = 120
_NOBODY = "00000000-0000-4000-8000-000000000000"
_BY_NAME = {"name": "key-auth", "kind": "redis-ce", "entity": "services"}
"""What is asked for by name. The schemas in JSON and the workspaces have their own."""


@dataclass
class Surface:
    """Where it is served, and ids by which paths lead to something."""

    url: str
    document: dict[str, Any] = field(default_factory=dict)
    """The OpenAPI document."""
    ids: dict[str, str] = field(default_factory=dict)
    """By parameter; those of entities by collection."""

    def known(self, method: str, path: str) -> dict[str, Any]:
        """Parameters with which a path leads somewhere. What deletes much has a control plane of its own to delete."""
        names = re.findall(r"{(\w+)}", path)
        found = {name: self.ids.get(name) or _BY_NAME.get(name) for name in names}
        if path.startswith(_CORE):
            found |= self._entities(path.removeprefix(_CORE))
        elif method == "DELETE" and names == ["control_plane_id"]:
            found["control_plane_id"] = self.ids["victim"]
        elif re.search("group-(status|memberships)", path):
            found["control_plane_id"] = self.ids["group"]
        elif re.search("apply|plans|snapshots", path):
            found["control_plane_id"] = self.ids["documents"]
        return {name: value for name, value in found.items() if value is not None}

    def _entities(self, path: str) -> dict[str, Any]:
        first, *rest = path.split("/")
        if first == "v1":
            return {"entity": "service"}
        if first == "workspaces":
            return {"name": "default"}
        if rest[:1] == ["{parent}"]:
            parent = self.ids.get(f"{first}/{rest[1]}/parent", self.ids[first])
            return {"parent": parent, "key": self.ids.get(f"{first}/{rest[1]}", _NOBODY)}
        if path.startswith("schemas/vaults"):
            return {"name": "env"}
        return {"key": self.ids.get(first, _NOBODY)}


@contextlib.contextmanager
def surface(directory: Path, database_url: str) -> Iterator[Surface]:
    ready: queue.Queue[Surface | BaseException] = queue.Queue()
    done = threading.Event()

    async def serve() -> None:
        async with running_client(directory, database_url) as client, served(client) as port:
            found = Surface(f"http://127.0.0.1:{port}")
            async with httpx.AsyncClient(timeout=_PATIENCE) as http:
                found.document = (await http.get(f"{found.url}/openapi.json")).json()
            found.ids = await _fill(client, found.document)
            ready.put(found)
            await asyncio.to_thread(done.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            ready.put(error)
            raise

    thread = threading.Thread(target=run, name="surface")
    thread.start()
    try:
        found = ready.get(timeout=_PATIENCE)
        if isinstance(found, BaseException):
            raise found
        yield found
    finally:
        done.set()
        thread.join()


async def _fill(client: Client, document: dict[str, Any]) -> dict[str, str]:
    ids = {"control_plane_id": client.id, "victim": (await client.another("victim")).id}
    documents = await client.another("documents")
    await client.apply(everything())
    ids |= await _entity_ids(client, document)
    applied = await documents.apply({"_format_version": "3.0", "services": [{"name": "s", "host": "h.test"}]})
    base = f"/v2/control-planes/{documents.id}"
    plan = await client.call("POST", f"{base}/plans", {"document": {"_format_version": "3.0"}}, 201)
    ids |= {"documents": documents.id, "version": str(applied["version"]), "plan_id": plan["id"]}
    group = await client.call("POST", "/v2/control-planes", {"name": "group", "cluster_type": GROUP}, 201)
    members = {"members": [{"id": client.id}, {"id": documents.id}]}
    await client.call("PUT", f"/v2/control-planes/{group['id']}/group-memberships", members, 204)
    base = f"/v2/control-planes/{client.id}"
    store = await client.call("POST", f"{base}/config-stores", {"name": "main"}, 201)
    await client.call("PUT", f"{base}/config-stores/{store['id']}/secrets/k", {"value": "v"}, 201)
    pem = {"cert": certificate_pem("node"), "title": "node"}
    pinned = await client.call("POST", f"{base}/dp-client-certificates", pem, 201)
    token = await make_token(client)
    await _traffic(client)
    ids |= {"group": group["id"], "store_id": store["id"], "token_id": token["id"], "node_id": await _node(client)}
    return {**ids, "certificate_id": pinned["item"]["id"], "config-stores": "k"}


async def _entity_ids(client: Client, document: dict[str, Any]) -> dict[str, str]:
    """The first of every collection, flat and under a parent that has some."""
    paths = [path.removeprefix(_CORE) for path in document["paths"] if path.startswith(_CORE)]
    ids: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: path.count("/")):
        first, _, rest = path.partition("/")
        if not rest and first != "workspaces":
            ids[first] = (await client.get(first))["data"][0]["id"]
        elif re.fullmatch(r"{parent}/[a-z_-]+", rest):
            nested = rest.removeprefix("{parent}/")
            for parent in (await client.get(first))["data"]:
                if found := (await client.get(f"{first}/{parent['id']}/{nested}"))["data"]:
                    ids[f"{first}/{nested}"] = found[0]["id"]
                    ids[f"{first}/{nested}/parent"] = parent["id"]
                    break
    return ids


async def _traffic(client: Client) -> None:
    """Some exchanges of the last minutes, with and without calls to models."""
    chance, now = random.Random(7), time.time_ns() // 1000
    events = [event(chance, started_us=now - 3_000_000, finished_us=now - 2_000_000) for _ in range(20)]
    await Ingest(client.plane.database).apply(
        Reporter(client.id, str(uuid.uuid4()), "e"), analytics_pb2.Batch(sequence=1, events=events)
    )


async def _node(client: Client) -> str:
    """A node that was here and refused what it was sent."""
    now, node_id = int(time.time()), str(uuid.uuid4())
    worker = {"index": 0, "pid": 7, "version": 1, "hash": "0" * 32, "state": "running"}
    row = {
        "control_plane_id": client.id,
        "id": node_id,
        "hostname": "node.test",
        "version": "3.9.1",
        "last_seen": now,
        "config_version": 1,
        "config_hash": "0" * 32,
        "sync_state": "rejected",
        "last_error": {"code": "plugin_set_incompatible", "message": "no such plugin", "entity": "", "version": 2},
        "workers": [worker],
        "stream": "",
        "created_at": now,
        "updated_at": now,
    }
    async with client.plane.database.writing() as session:
        await session.execute(insert(Node), [row])
    return node_id
