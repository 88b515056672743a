"""OpenAI's own SDK in front of the gateway: what its users see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai as sdk
import pytest

from tests.data_plane.ai.gateways import CHAT, EVENTS, KEY, at_once, models, openai, says, streams, wire
from tests.data_plane.builders import Answer, Gateway, gateway, service


@asynccontextmanager
async def client_of(answer: Answer) -> AsyncIterator[tuple[sdk.AsyncOpenAI, Gateway]]:
    async with (
        service(answer) as provider,
        gateway(models(openai(provider.url))) as node,
        sdk.AsyncOpenAI(
            base_url=f"{node.url}/chat", api_key="unused", default_headers={"apikey": KEY}, max_retries=0
        ) as client,
    ):
        yield client, node


async def test_a_completion_is_a_completion() -> None:
    async with client_of(says(wire("openai", "plain"))) as (client, _):
        answer = await client.chat.completions.create(model="gpt-4o-mini", **CHAT)  # type: ignore[call-overload]

    assert answer.choices[0].message.content == "4"
    assert answer.usage.total_tokens == 22


async def test_a_stream_is_a_stream_with_usage_at_its_end() -> None:
    async with client_of(streams(at_once(*EVENTS))) as (client, node):
        stream = await client.chat.completions.create(  # type: ignore[call-overload]
            model="gpt-4o-mini", stream=True, stream_options={"include_usage": True}, **CHAT
        )
        chunks = [chunk async for chunk in stream]
        await node.ended(1)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "vier — 四 😀"
    assert chunks[-1].usage.total_tokens == 28
    assert node.events[0].llm_calls[0].token_source == "provider"


async def test_a_failure_in_the_middle_of_a_stream_is_an_error_with_its_text() -> None:
    async with client_of(streams(at_once(*EVENTS[:2]))) as (client, _):
        stream = await client.chat.completions.create(model="gpt-4o-mini", stream=True, **CHAT)  # type: ignore[call-overload]
        with pytest.raises(sdk.APIError, match="ended before its answer was complete"):
            _ = [chunk async for chunk in stream]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, sdk.BadRequestError),
        (401, sdk.AuthenticationError),
        (429, sdk.RateLimitError),
        (500, sdk.InternalServerError),
    ],
)
async def test_a_providers_refusal_is_the_error_that_users_know(status: int, error: type[sdk.APIStatusError]) -> None:
    async with client_of(says(b'{"error":{"message":"no","code":"why"}}', status)) as (client, _):
        with pytest.raises(error) as caught:
            await client.chat.completions.create(model="gpt-4o-mini", **CHAT)  # type: ignore[call-overload]

    assert caught.value.code == "why"


async def test_the_gateways_own_refusal_is_one_too() -> None:
    async with client_of(says(wire("openai", "plain"))) as (client, _):
        with pytest.raises(sdk.BadRequestError, match="cannot use own model - must be: gpt-4o-mini"):
            await client.chat.completions.create(model="other", **CHAT)  # type: ignore[call-overload]
