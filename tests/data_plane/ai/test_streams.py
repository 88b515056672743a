"""Streamed answers through the gateway: what the client reads, what is counted, what happens when somebody leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from data_plane.ai import relay
from data_plane.ai.providers.openai import OpenAiStream
from data_plane.errors import InvalidResponse
from data_plane.messages import Response
from tests.data_plane.ai.gateways import (
    CHAT,
    EVENTS,
    ask,
    at_once,
    bedrock,
    frames,
    models,
    open_stream,
    openai,
    says,
    streams,
    wire,
)
from tests.data_plane.ai.golden_cases import CASES, timeless
from tests.data_plane.builders import Gateway, gateway, service

STREAM = wire("openai", "stream")
BINARY = "application/vnd.amazon.eventstream"


async def read_until_broken(response: Response) -> bytes:
    """What arrives before the connection breaks, which it must."""
    assert not isinstance(response.body, bytes)
    received = []
    try:
        async for piece in response.body:
            received.append(piece)
    except InvalidResponse:
        return b"".join(received)
    finally:
        await response.close()
    pytest.fail("the answer ended in order")


@pytest.mark.parametrize("asked", [True, False, None])
async def test_usage_is_counted_always_and_shown_to_those_who_asked(asked: bool | None) -> None:
    options = {} if asked is None else {"stream_options": {"include_usage": asked}}
    async with service(streams(at_once(*EVENTS))) as provider, gateway(models(openai(provider.url))) as node:
        reply = await ask(node, {**CHAT, "stream": True, **options})
        await node.ended(1)

    assert reply.status == 200
    assert reply.headers.get("content-type") == "text/event-stream"
    assert reply.headers.get("x-kong-llm-model") == "gpt-4o-mini"
    assert reply.body == (STREAM if asked else STREAM.replace(EVENTS[4], b""))
    assert json.loads(provider.bodies[0])["stream_options"] == {"include_usage": True}
    (event,) = node.events
    (call,) = event.llm_calls
    assert (call.prompt_tokens, call.completion_tokens, call.token_source) == (21, 7, "provider")
    assert (call.cached_tokens, call.reasoning_tokens) == (16, 5)
    assert (call.stream, call.status, call.finish_reason, call.error_kind) == (True, 200, "stop", "")
    assert call.HasField("ttft_us")
    assert call.ttft_us <= call.duration_us
    assert event.outcome == "complete"


async def test_a_binary_stream_becomes_events(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = [case for case in CASES if str(case) == "bedrock/stream"]
    pieces = [case.wire[n : n + 7] for n in range(0, len(case.wire), 7)]
    async with service(streams(at_once(*pieces), BINARY)) as provider:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", provider.url)
        async with gateway(models(bedrock(case.spec["model"]))) as node:
            reply = await ask(node, case.spec["chat"])
            await node.ended(1)

    assert reply.headers.get("content-type") == "text/event-stream"
    found = frames(reply.body)
    assert found.pop() == "[DONE]"
    assert [chunk["choices"] for chunk in found] == [chunk["choices"] for chunk in case.spec["chunks"]]
    assert {chunk["id"] for chunk in found} == {found[0]["id"]}
    assert timeless(found[-1])["usage"] == case.spec["chunks"][-1]["usage"]
    assert provider.requests[0].target.endswith("/converse-stream")
    (call,) = node.events[0].llm_calls
    assert (call.prompt_tokens, call.completion_tokens, call.cached_tokens) == (11, 4, 2)


async def test_pieces_are_passed_on_as_they_come() -> None:
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield EVENTS[0] + EVENTS[1]
        await go_on.wait()
        yield b"".join(EVENTS[2:])

    async with service(streams(body)) as provider, gateway(models(openai(provider.url))) as node:
        response = await open_stream(node)
        assert not isinstance(response.body, bytes)
        pieces = aiter(response.body)
        first = await anext(pieces)
        go_on.set()
        rest = b"".join([piece async for piece in pieces])
        await response.close()

    assert first == EVENTS[0] + EVENTS[1]
    assert rest == EVENTS[2] + EVENTS[3] + EVENTS[5]


async def one_by_one(node: Gateway, provided: asyncio.Queue[bytes], *events: bytes) -> tuple[Response, list[bytes]]:
    """Ask, and let the provider send each of these once the one before has arrived."""
    received: list[bytes] = []
    provided.put_nowait(events[0])
    response = await open_stream(node)
    assert not isinstance(response.body, bytes)
    pieces = aiter(response.body)
    for following in (*events[1:], b""):
        received.append(await asyncio.wait_for(anext(pieces), 5))
        if following:
            provided.put_nowait(following)
    return response, received


def queued(provided: asyncio.Queue[bytes]) -> Callable[[], AsyncIterator[bytes]]:
    async def body() -> AsyncIterator[bytes]:
        while piece := await provided.get():
            yield piece

    return body


async def test_chunks_pass_by_a_sleeping_reader_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[bytes] = []
    read = relay.Relay._read

    async def noted(self: relay.Relay) -> bytes:
        woken.append(await read(self))
        return woken[-1]

    monkeypatch.setattr(relay.Relay, "_read", noted)
    provided: asyncio.Queue[bytes] = asyncio.Queue()
    async with service(streams(queued(provided))) as provider, gateway(models(openai(provider.url))) as node:
        response, received = await one_by_one(node, provided, *EVENTS[:4], EVENTS[4] + EVENTS[5])
        provided.put_nowait(b"")
        assert await response.read() == b""
        await response.close()
        await node.ended(1)

    assert received == [*EVENTS[:4], EVENTS[5]]
    assert woken == [EVENTS[0], EVENTS[5]]
    (event,) = node.events
    (call,) = event.llm_calls
    assert (call.prompt_tokens, call.completion_tokens, call.token_source) == (21, 7, "provider")
    assert event.outcome == "complete"
    assert event.response_size > sum(map(len, received))


async def test_what_goes_wrong_with_a_chunk_that_passes_by_goes_wrong_for_its_reader(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = OpenAiStream.feed

    def feed(stream: OpenAiStream, data: bytes) -> Any:
        if data == EVENTS[1]:
            raise ZeroDivisionError
        return read(stream, data)

    monkeypatch.setattr(OpenAiStream, "feed", feed)
    provided: asyncio.Queue[bytes] = asyncio.Queue()
    async with service(streams(queued(provided))) as provider, gateway(models(openai(provider.url))) as node:
        response, received = await one_by_one(node, provided, EVENTS[0])
        provided.put_nowait(EVENTS[1])
        assert await read_until_broken(response) == b""
        await node.ended(1)
        provided.put_nowait(b"")

    assert received == [EVENTS[0]]
    assert node.events[0].outcome == "gateway_abort"
    assert "a response's body broke" in caplog.text


async def test_the_connection_to_the_provider_is_used_again_after_a_stream() -> None:
    async with service(streams(at_once(*EVENTS))) as provider, gateway(models(openai(provider.url))) as node:
        for _ in range(3):
            await ask(node, {**CHAT, "stream": True})

    assert len({request.peer for request in provider.requests}) == 1


async def test_a_failure_that_the_provider_tells_ends_the_stream_in_order_without_an_end_mark() -> None:
    body = wire("openai", "error")
    async with service(streams(at_once(body))) as provider, gateway(models(openai(provider.url))) as node:
        reply = await ask(node, {**CHAT, "stream": True})
        await node.ended(1)

    assert frames(reply.body)[-1]["error"]["type"] == "server_error"
    (event,) = node.events
    assert event.error_kind == event.llm_calls[0].error_kind == "provider_error"
    assert event.llm_calls[0].token_source == "estimated"


async def test_a_stream_that_ends_too_early_says_so() -> None:
    async with service(streams(at_once(*EVENTS[:2]))) as provider, gateway(models(openai(provider.url))) as node:
        reply = await ask(node, {**CHAT, "stream": True})

    assert frames(reply.body)[-1]["error"]["message"] == "the model's stream ended before its answer was complete"


async def test_a_broken_connection_shows_as_an_error_frame_and_a_broken_answer() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield EVENTS[0] + EVENTS[1]
        raise InvalidResponse("reset")

    async with service(streams(body)) as provider, gateway(models(openai(provider.url))) as node:
        response = await open_stream(node)
        received = await read_until_broken(response)
        await node.ended(1)

    assert "error" in frames(received)[-1]
    (event,) = node.events
    assert event.outcome == "upstream_closed"
    assert event.llm_calls[0].error_kind == "reset"
    assert (event.llm_calls[0].prompt_tokens, event.llm_calls[0].completion_tokens) == (9, 3)


async def test_a_client_that_leaves_near_the_end_is_counted_exactly() -> None:
    """The rest is already on its way: it is read to the end, and the usage in it is the provider's."""
    left = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield EVENTS[0] + EVENTS[1]
        await left.wait()
        yield b"".join(EVENTS[2:])

    async with service(streams(body)) as provider, gateway(models(openai(provider.url))) as node:
        response = await open_stream(node)
        assert not isinstance(response.body, bytes)
        await anext(aiter(response.body))
        await response.close()
        left.set()
        await node.ended(1)

    (event,) = node.events
    (call,) = event.llm_calls
    assert event.outcome == "client_closed"
    assert (call.prompt_tokens, call.completion_tokens, call.token_source) == (21, 7, "provider")
    assert call.error_kind == ""


async def test_a_client_that_leaves_early_stops_the_provider_and_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "DRAIN_TIME", 0.01)
    stopped = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield EVENTS[0] + EVENTS[1]
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with service(streams(body)) as provider, gateway(models(openai(provider.url))) as node:
        response = await open_stream(node)
        assert not isinstance(response.body, bytes)
        await anext(aiter(response.body))
        await response.close()
        async with asyncio.timeout(5):
            await stopped.wait()
        await node.ended(1)

    (event,) = node.events
    (call,) = event.llm_calls
    assert event.outcome == "client_closed"
    assert (call.error_kind, call.token_source) == ("client_closed", "estimated")
    assert (call.prompt_tokens, call.completion_tokens) == (9, 3)


async def test_a_client_that_leaves_before_a_whole_answer_stops_the_provider_too() -> None:
    asked, stopped = asyncio.Event(), asyncio.Event()

    async def answer(request: object) -> object:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return None

    async with service(answer) as provider, gateway(models(openai(provider.url))) as node:  # type: ignore[arg-type]
        waiting = asyncio.create_task(ask(node))
        await asked.wait()
        waiting.cancel()
        async with asyncio.timeout(5):
            await stopped.wait()
        await node.ended(1)

    (event,) = node.events
    (call,) = event.llm_calls
    assert event.status == 499
    assert (call.status, call.error_kind, call.token_source) == (0, "client_closed", "estimated")
    assert call.prompt_tokens == 5


async def test_a_provider_that_falls_silent_is_given_up() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield EVENTS[0] + EVENTS[1]
        await asyncio.Event().wait()

    async with (
        service(streams(body)) as provider,
        gateway(models(openai(provider.url), balancer={"read_timeout": 30})) as node,
    ):
        response = await open_stream(node)
        received = await read_until_broken(response)
        await node.ended(1)

    assert "error" in frames(received)[-1]
    assert node.events[0].llm_calls[0].error_kind == "timeout_read"


async def test_a_providers_garbage_is_an_error_frame() -> None:
    async with (
        service(says(b"data: {nope\n\n", content_type="text/event-stream")) as provider,
        gateway(models(openai(provider.url))) as node,
    ):
        reply = await ask(node, {**CHAT, "stream": True})

    (only,) = frames(reply.body)
    assert only["error"]["message"] == "the model's stream holds an event that is not JSON"
