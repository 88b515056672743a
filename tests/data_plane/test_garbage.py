"""What an exchange made is gone when it ends, without Python's collector: that stops every other exchange meanwhile.

Not so where clients leave in the middle: what was cancelled holds its traceback, and that the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from data_plane.messages import Response
from tests.data_plane.ai.gateways import (
    CHAT,
    EVENTS,
    ask,
    at_once,
    bedrock,
    models,
    openai,
    says,
    streams,
    wire,
)
from tests.data_plane.builders import Gateway, document, gateway, service

Exchange = Callable[[Gateway], Awaitable[object]]

ROUNDS = 3


async def unary(node: Gateway) -> None:
    assert (await ask(node)).status == 200


async def streamed(node: Gateway) -> None:
    assert (await ask(node, {**CHAT, "stream": True})).body.endswith(b"[DONE]\n\n")


async def failed(node: Gateway) -> None:
    assert (await ask(node)).status == 429


async def refused(node: Gateway) -> None:
    assert (await node.send("POST", "/chat")).status == 401


OPENAI_ANSWERS = {
    unary: says(wire("openai", "plain")),
    streamed: streams(at_once(*EVENTS)),
    failed: says(b"{}", 429),
    refused: says(b"{}"),
}


@pytest.mark.parametrize("exchange", OPENAI_ANSWERS)
async def test_a_chat_leaves_nothing_behind(exchange: Exchange) -> None:
    async with service(OPENAI_ANSWERS[exchange]) as provider, gateway(models(openai(provider.url))) as node:
        assert await leftovers(node, exchange) == []


async def test_a_translated_stream_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = streams(at_once(wire("bedrock", "stream")), "application/vnd.amazon.eventstream")
    async with service(answer) as provider:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", provider.url)
        async with gateway(models(bedrock())) as node:
            assert await leftovers(node, streamed) == []


async def test_a_call_to_ourselves_leaves_nothing_behind() -> None:
    call = {"name": "CALL", "type": "call", "url": "http://localhost:8000/inner"}
    answer = {"name": "ANSWER", "type": "exit", "inputs": {"body": "CALL.body"}}
    async with service() as backend:
        payload = document(
            services=[{"name": "s", "url": backend.url}],
            routes=[{"name": name, "paths": [f"/{name}"], "service": "s"} for name in ("outer", "inner")],
            plugins=[{"name": "datakit", "route": "outer", "config": {"nodes": [call, answer]}}],
        )

        async def called(node: Gateway) -> None:
            assert (await node.send("GET", "/outer")).status == 200

        async with gateway(payload) as node:
            assert await leftovers(node, called, events=2) == []


async def leftovers(node: Gateway, exchange: Exchange, events: int = 1) -> list[str]:
    """Names of our classes of which the collector finds objects after some exchanges; each makes so many events."""
    await exchange(node)
    await node.ended(events)
    with collecting() as found:
        for number in range(ROUNDS):
            await exchange(node)
            await node.ended(events * (number + 2))
        await asyncio.sleep(0)  # the tasks that told of the last one end
        gc.collect()
        return sorted({type(each).__qualname__ for each in found if type(each).__module__.startswith("data_plane")})


@contextlib.contextmanager
def collecting() -> Iterator[list[object]]:
    """What the collector finds in the meantime; it works when it is asked, only."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_the_tests_of_this_file_would_notice_a_cycle() -> None:
    with collecting() as found:
        response = Response(200)
        response.body = response  # type: ignore[assignment]
        del response
        gc.collect()
        assert [each for each in found if isinstance(each, Response)]
