"""What Datakit's tests are made of: a plugin from a node list, a scripted network, the end of the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from data_plane.chain import run
from data_plane.exchange import Exchange
from data_plane.messages import Headers, Response
from data_plane.plugins.datakit import Datakit
from gateway_schema.plugins.datakit import DatakitConfig
from gateway_schema.violations import parse
from tests.data_plane.builders import exchange, supplies

Node = dict[str, Any]


def jq(name: str, program: str = ".", **fields: Any) -> Node:
    return {"name": name, "type": "jq", "jq": program, **fields}


def call(name: str, **fields: Any) -> Node:
    return {"name": name, "type": "call", "url": f"http://{name.lower()}.test/", **fields}


def static(name: str, values: dict[str, Any], **fields: Any) -> Node:
    return {"name": name, "type": "static", "values": values, **fields}


def prop(name: str, path: str, **fields: Any) -> Node:
    return {"name": name, "type": "property", "property": path, **fields}


def leave(name: str = "EXIT", **fields: Any) -> Node:
    return {"name": name, "type": "exit", **fields}


@dataclass
class Sent:
    method: str
    url: str
    headers: dict[str, Any]
    body: bytes
    options: dict[str, Any]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def json_response(data: Any, status: int = 200, /, **headers: str) -> Response:
    return Response(status, Headers([("Content-Type", "application/json"), *headers.items()]), orjson.dumps(data))


Script = Callable[[Sent], Awaitable[Response]]


@dataclass
class Network:
    """A network that does as the test says, and remembers what it was sent."""

    script: Script | None = None
    sent: list[Sent] = field(default_factory=list)
    closed: int = 0

    async def fetch(self, method: str, url: str, headers: Mapping[str, Any], body: bytes, **options: Any) -> Response:
        request = Sent(method, url, dict(headers), body, options)
        self.sent.append(request)
        response = await self.script(request) if self.script is not None else json_response({"from": url})
        response.on_close(self._closed)
        return response

    async def _closed(self) -> None:
        self.closed += 1


class Upstream:
    """The end of the chain: keeps the exchange's body as it arrives, answers as it is told."""

    def __init__(self, response: Response | None = None) -> None:
        self.response = response or json_response({"ok": True})
        self.response.source = "upstream"
        self.called = False
        self.body = b""

    async def __call__(self, exchange: Exchange) -> Response:
        self.called = True
        self.body = await exchange.body_bytes()
        return self.response


class Kit:
    """A plugin with its surroundings. `await kit.send(…)` sends one request through it, as the chain would."""

    def __init__(self, nodes: list[Node], *, debug: bool = True, script: Script | None = None, **given: Any) -> None:
        self.network = Network(script)
        self.handler = Datakit(
            parse(DatakitConfig, {"nodes": nodes, "debug": debug}),
            supplies(http=self.network, plugin_name="datakit", version="3.15.0", node_id="node-1", **given),
        )
        self.upstream = Upstream()
        self.exchange = exchange()

    async def send(
        self,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        target: str = "/",
        upstream: Response | None = None,
        prepare: Callable[[Exchange], None] | None = None,
    ) -> Response:
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        given = {"Content-Type": "application/json"} if body is not None and not isinstance(body, bytes) else {}
        self.exchange = exchange(target=target, headers={**given, **(headers or {})}, body=raw)
        if prepare is not None:
            prepare(self.exchange)
        self.upstream = Upstream(upstream)
        handler, end = self.handler, self.upstream

        class Chain:
            first = staticmethod(lambda subject: handler.handle(subject, end))

        response = await run(Chain(), self.exchange)  # type: ignore[arg-type]
        if response.source != "upstream":
            await response.read()
        return response


def json_of(response: Response) -> Any:
    assert isinstance(response.body, bytes)
    return orjson.loads(response.body)


def failure(response: Response) -> tuple[str, str]:
    """Node and reason of a failure, as `debug` tells them."""
    assert response.status == 500
    told = json_of(response)
    return told["node"]["name"], told["error"]


async def result_of(program: str, body: Any) -> Any:
    """What a jq program makes of a request's body."""
    kit = Kit([jq("J", program, input="request.body"), leave(inputs={"body": "WRAP"}), jq("WRAP", "{v: .}", input="J")])
    try:
        return json_of(await kit.send(body))["v"]
    finally:
        await kit.handler.close()


async def forever() -> None:
    await asyncio.Event().wait()
