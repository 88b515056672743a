"""Callers with less than every right."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.control_plane.client import Client


async def make_token(client: Client, expect: int = 201, **body: Any) -> Any:
    """The answer to the making of a token, `token` included."""
    return await client.call("POST", "/v2/tokens", {"name": "made by a test", **body}, expect)


def bearing(client: Client, token: str) -> Client:
    """The same control plane, called with another token."""
    http = httpx.AsyncClient(
        transport=client.http._transport, base_url="http://plane", headers={"authorization": f"Bearer {token}"}
    )
    return Client(client.plane, http, client.id)


@contextlib.asynccontextmanager
async def caller(client: Client, *scopes: str, **body: Any) -> AsyncIterator[Client]:
    """A client whose token has these scopes."""
    made = await make_token(client, scopes=list(scopes), **body)
    with_less = bearing(client, made["token"])
    try:
        yield with_less
    finally:
        await with_less.http.aclose()
