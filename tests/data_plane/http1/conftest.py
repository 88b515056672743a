"""Every socket test runs on uvloop, as workers do, and on asyncio's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

from data_plane.http1.client import Client, ClientLimits
from data_plane.http1.limits import ServerLimits
from data_plane.http1.server import Server
from tests.data_plane.http1.peers import Answer, Gateway, Upstream


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """Start servers that answer with the given function; all are drained at the end."""
    gateways: list[Gateway] = []

    async def start(answer: Answer, **limits: Any) -> Gateway:
        gateway = Gateway(answer)
        server = Server(gateway, ServerLimits(**limits))
        gateway.server = server
        gateway.port = await server.listen("127.0.0.1", 0)
        gateways.append(gateway)
        return gateway

    yield start
    for gateway in gateways:
        await gateway.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Any]]:
    """Start scripted upstreams: the function given plays each connection."""
    async with AsyncExitStack() as stack:

        async def start(play: Any, **arguments: Any) -> Upstream:
            return await stack.enter_async_context(Upstream(play, **arguments))

        yield start


@pytest.fixture
async def make_client() -> AsyncIterator[Callable[..., Client]]:
    clients: list[Client] = []

    def make(ca_bundle: str = "", **limits: Any) -> Client:
        clients.append(Client(ClientLimits(**limits), ca_bundle=ca_bundle))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()
