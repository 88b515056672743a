"""What data plane tests are built from: documents, a gateway on a free port, services behind it.

    async with service(answer) as backend, gateway(document(...)) as node:
        reply = await node.send("GET", "/path")

Everything runs in the test's own event loop, on 127.0.0.1 and on ports the system picks.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_plane.app import Worker
from data_plane.exchange import Exchange, Supplies
from data_plane.http1.client import Client, Origin, Timeouts
from data_plane.http1.server import Sent, Server
from data_plane.messages import BufferedBody, Headers, Request, Response
from data_plane.settings import Settings
from gateway_schema.document import canonical
from gateway_schema.entities import Consumer, KeyAuthCredential
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import parse
from gateway_schema.wire import analytics_pb2

NAMESPACE = uuid.UUID("00000000-0000-0000-0000-00000000beef")


def entity_id(name: str) -> str:
    """A stable id for a name, so that tests can refer to entities before they exist."""
    return str(uuid.uuid5(NAMESPACE, name))


def document(**kinds: list[dict[str, Any]]) -> bytes:
    """The canonical bytes of a document: `document(services=[…], routes=[…], …)`.

    Entities without `id` get one from their name (`entity_id`). References may be names: `service="x"`,
    `route="x"`, `consumer="alice"`. Credentials may be called by key.
    """
    entities: dict[str, list[dict[str, Any]]] = {}
    for kind, rows in kinds.items():
        row = ENTITY_TYPES[kind]
        entities[kind] = []
        for number, body in enumerate(rows):
            body = {**body}
            name = body.get("instance_name") or body.get("username") or body.get("key") or body.get("name")
            unique = f"{kind}/{name}/{number}" if kind == "plugins" and "instance_name" not in body else f"{name}"
            body.setdefault("id", entity_id(unique))
            body.setdefault("created_at", 1_700_000_000)
            for parent in row.parents:
                if isinstance(body.get(parent), str):
                    body[parent] = {"id": entity_id(body[parent])}
            entities[kind].append(parse(row.model, row.model.expand(body)).model_dump(exclude_none=True))
    return canonical(entity_id("control plane"), entities)


@dataclass
class Reply:
    """An answer, whole."""

    status: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Events:
    """A reporter that keeps what it is given, parsed."""

    list: list[analytics_pb2.RequestEvent] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, event: bytes) -> None:
        self.list.append(analytics_pb2.RequestEvent.FromString(event))
        self.arrived.set()


class Gateway:
    """A running worker, seen from outside; `worker` and `events` show its inside."""

    def __init__(self, worker: Worker, events: Events, port: int) -> None:
        self.worker = worker
        self.events = events.list
        self._reported = events.arrived
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._client = Client()

    async def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        body: bytes = b"",
    ) -> Reply:
        response = await self.open(method, target, headers, body)
        try:
            return Reply(response.status, response.headers, await response.read())
        finally:
            await response.close()

    async def open(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        body: bytes = b"",
    ) -> Response:
        """Like `send`, for streams: read `body` in pieces, and close."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers or ())
        request = Request(method, target, Headers(pairs), BufferedBody(body))
        return await self._client.send(Origin("http", "127.0.0.1", self.port), request, Timeouts(5, 5, 5))

    async def apply(self, payload: bytes, version: int) -> None:
        await self.worker.apply(payload, version)

    async def ended(self, count: int) -> None:
        """Wait until so many exchanges have been reported: that is after their answers' last byte."""
        async with asyncio.timeout(5):
            while len(self.events) < count:
                self._reported.clear()
                await self._reported.wait()

    async def close(self) -> None:
        await self._client.close()
        await self.worker.stop(2.0)


@asynccontextmanager
async def gateway(payload: bytes | None = None, **settings: Any) -> AsyncIterator[Gateway]:
    """A worker on a free port that runs a document (none: not configured yet)."""
    events = Events()
    settings.setdefault("state_dir", Path("/nonexistent"))
    settings.setdefault("loopback_ports", frozenset({8000}))
    worker = Worker(Settings(**{"proxy_port": 0, **settings}), events, node_id=entity_id("node"))
    node = Gateway(worker, events, await worker.listen(reuse_port=False))
    try:
        if payload is not None:
            await node.apply(payload, 1)
        yield node
    finally:
        await node.close()


Answer = Callable[[Request], Awaitable[Response]]


class Service:
    """A service behind the gateway: remembers what it was asked, answers as it is told."""

    def __init__(self, answer: Answer | None) -> None:
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.port = 0
        self._answer = answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: Request) -> tuple[Response, None]:
        self.requests.append(request)
        self.bodies.append(await request.body.read())
        if self._answer is not None:
            return await self._answer(request), None
        return Response(200, Headers([("Content-Type", "text/plain")]), b"hello"), None

    def finished(self, token: None, response: Response, sent: Sent) -> None:
        """Nothing to count."""

    def open_line(self) -> None:
        return None

    def refused(self, error: Exception, request: Request | None, peer: tuple[str, int]) -> Response:
        return Response(400)


@asynccontextmanager
async def service(answer: Answer | None = None) -> AsyncIterator[Service]:
    """A service on a free port; without `answer` it says hello."""
    backend = Service(answer)
    server = Server(backend)
    backend.port = await server.listen("127.0.0.1", 0, False)
    try:
        yield backend
    finally:
        await server.drain(1.0)


# For plugins on their own.


def exchange(
    method: str = "POST",
    target: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Exchange:
    """An exchange that has been routed nowhere, for tests of a single handler."""
    return Exchange(Request(method, target, Headers((headers or {}).items()), BufferedBody(body)), None)


def supplies(**given: Any) -> Supplies:
    """Supplies for a single handler; consumers and credentials by `consumers={"alice": ["key", …]}`."""
    people: dict[str, Consumer] = {}
    by_key: dict[str, tuple[Consumer, KeyAuthCredential]] = {}
    for name, keys in given.pop("consumers", {}).items():
        consumer = Consumer(id=entity_id(name), username=name)
        people[name] = people[str(consumer.id)] = consumer
        for key in keys:
            reference = {"id": str(consumer.id)}
            credential = parse(KeyAuthCredential, {"id": entity_id(key), "consumer": reference, "key": key})
            by_key[key] = (consumer, credential)
    values: dict[str, Any] = {
        "plugin_id": entity_id("plugin"),
        "plugin_name": "plugin",
        "instance_name": "",
        "consumers_by_key": by_key,
        "consumers": people,
        "http": None,
        "client": None,
        "environment": {},
        **given,
    }
    return Supplies(**values)


async def proceed(exchange: Exchange) -> Response:
    """The end of the chain, for handlers on their own: an empty 200."""
    return Response(200, source="upstream")
