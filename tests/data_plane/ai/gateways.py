"""A gateway with models behind it, and providers that answer as a test tells them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from data_plane.messages import Headers, Request, Response
from tests.data_plane.ai.golden_cases import CASES
from tests.data_plane.builders import Gateway, Reply, document

CHAT = {"messages": [{"role": "user", "content": "one two three four five"}]}
KEY = "client-key"
TOKEN = "Bearer sk-provider"

Answer = Callable[[Request], Awaitable[Response]]


def models(*targets: Mapping[str, Any], plugins: list[dict[str, Any]] | None = None, **config: Any) -> bytes:
    """A document: route `/chat` with these targets, behind key-auth."""
    proxy = {"name": "ai-proxy-advanced", "route": "chat", "config": {"targets": list(targets), **config}}
    auth = {"name": "key-auth", "route": "chat", "config": {}}
    return document(
        services=[{"name": "llm", "url": "http://127.0.0.1:1/anything"}],
        routes=[{"name": "chat", "paths": ["/chat"], "service": "llm"}],
        consumers=[{"username": "alice"}],
        keyauth_credentials=[{"consumer": "alice", "key": KEY}],
        plugins=[auth, proxy, *(plugins or [])],
    )


def openai(url: str, name: str | None = "gpt-4o-mini", alias: str | None = None, **fields: Any) -> dict[str, Any]:
    """A target at an OpenAI-like provider."""
    options = {"upstream_url": f"{url}/v1/chat/completions", **fields.pop("options", {})}
    model = {"provider": "openai", "name": name, "model_alias": alias, "options": options}
    auth = {"header_name": "Authorization", "header_value": TOKEN}
    return {"route_type": "llm/v1/chat", "model": model, "auth": auth, **fields}


def bedrock(name: str = "us.anthropic.claude-haiku-4-5-20251001-v1:0", **fields: Any) -> dict[str, Any]:
    """A target at Bedrock, whose address comes from AWS_ENDPOINT_URL_BEDROCK_RUNTIME."""
    model = {
        "provider": "bedrock",
        "name": name,
        "model_alias": fields.pop("alias", None),
        "options": {"bedrock": {"aws_region": "us-east-1"}, **fields.pop("options", {})},
    }
    auth = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "aws-secret"}
    return {"route_type": "llm/v1/chat", "model": model, "auth": auth, **fields}


async def ask(node: Gateway, chat: Any = CHAT, headers: Mapping[str, str] | None = None, path: str = "/chat") -> Reply:
    body = chat if isinstance(chat, bytes) else json.dumps(chat).encode()
    return await node.send("POST", path, {"apikey": KEY, "Content-Type": "application/json", **(headers or {})}, body)


async def open_stream(node: Gateway, chat: Mapping[str, Any] = CHAT) -> Response:
    body = json.dumps({**chat, "stream": True}).encode()
    return await node.open("POST", "/chat", {"apikey": KEY, "Content-Type": "application/json"}, body)


def wire(provider: str, name: str) -> bytes:
    """The bytes of a golden fixture."""
    (case,) = [case for case in CASES if (case.provider, case.name) == (provider, name)]
    return case.wire


def says(body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> Answer:
    """A provider that always answers so."""
    fields = [("Content-Type", content_type), *((name.replace("_", "-"), value) for name, value in headers.items())]

    async def answer(request: Request) -> Response:
        return Response(status, Headers(fields), body)

    return answer


def streams(pieces: Callable[[], AsyncIterator[bytes]], content_type: str = "text/event-stream") -> Answer:
    """A provider that answers with these pieces."""

    async def answer(request: Request) -> Response:
        return Response(200, Headers([("Content-Type", content_type)]), pieces())

    return answer


def frames(body: bytes) -> list[Any]:
    """The payloads of an answer's events, `[DONE]` as text."""
    payloads = [frame.removeprefix(b"data: ") for frame in body.split(b"\n\n") if frame]
    return [payload.decode() if payload == b"[DONE]" else json.loads(payload) for payload in payloads]


EVENTS = [event + b"\n\n" for event in wire("openai", "stream").split(b"\n\n") if event]
"""A stream of OpenAI's: role, two pieces of text, finish, usage, end mark."""


def at_once(*pieces: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return body
