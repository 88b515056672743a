"""The real OpenAI SDK against the gateway, as its users call it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.end_to_end.stack import CLIENT_KEY, FAST_MODEL, SMART_MODEL, Stack, in_sync, prompt


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with sdk(stack) as made:
        yield made


def sdk(stack: Stack, key: str = CLIENT_KEY) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{stack.proxy}/chat", api_key="unused", default_headers={"apikey": key}, max_retries=0
    )


TIERS = [("simple", FAST_MODEL), ("complex", SMART_MODEL)]


@pytest.mark.parametrize(("name", "model"), TIERS)
def test_a_plain_answer(client: openai.OpenAI, name: str, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(**prompt(name))
    completion = raw.parse()
    assert raw.headers["X-Kong-LLM-Model"] == model
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


@pytest.mark.parametrize(("name", "model"), TIERS)
def test_a_streamed_answer_says_the_same_and_ends_with_usage(client: openai.OpenAI, name: str, model: str) -> None:
    whole = client.chat.completions.create(**prompt(name))
    raw = client.chat.completions.with_raw_response.create(
        **prompt(name), stream=True, stream_options={"include_usage": True}
    )
    assert raw.headers["X-Kong-LLM-Model"] == model
    assert raw.headers["Content-Type"].startswith("text/event-stream")
    chunks = list(raw.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


@pytest.mark.parametrize(("name", "model"), TIERS)
def test_a_stream_without_usage_has_none(client: openai.OpenAI, name: str, model: str) -> None:
    chunks = list(client.chat.completions.create(**prompt(name), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_async_calls_of_both_tiers_at_once(stack: Stack) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.proxy}/chat", api_key="unused", default_headers={"apikey": CLIENT_KEY}, max_retries=0
    ) as client:
        calls = [client.chat.completions.create(**prompt(name)) for name, _ in TIERS * 5]
        answers = await asyncio.gather(*calls)
        stream = await client.chat.completions.create(**prompt("complex"), stream=True)
        pieces = [chunk async for chunk in stream]
    assert len(answers) == 10
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_a_forced_tool_call_comes_back_from_both_providers(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    for name, _ in TIERS:
        answer = client.chat.completions.create(**prompt(name), tools=[tool], tool_choice="required")
        assert answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls
        assert calls
        assert calls[0].function.name == "look_up"  # type: ignore[union-attr]


def test_a_wrong_key_is_an_authentication_error(stack: Stack) -> None:
    with sdk(stack, "wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(**prompt("simple"))
    assert caught.value.status_code == 401


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, openai.RateLimitError), (400, openai.BadRequestError), (503, openai.InternalServerError)],
)
def test_a_provider_s_error_reaches_the_client_as_the_provider_said_it(
    stack: Stack, client: openai.OpenAI, status: int, error: type[openai.APIStatusError]
) -> None:
    """The selector's call answers first; the fault is for the call after it, Bedrock's."""
    httpx.post(f"{stack.simulator}/faults", json={"provider": "bedrock", "status": status}).raise_for_status()
    with pytest.raises(error) as caught:
        client.chat.completions.create(**prompt("complex"))
    assert caught.value.response.json() == {"message": "A simulated failure."}
    assert "X-Kong-LLM-Model" not in caught.value.response.headers


def test_an_error_in_the_middle_of_a_stream_is_an_api_error(stack: Stack, client: openai.OpenAI) -> None:
    httpx.post(f"{stack.simulator}/faults", json={"provider": "bedrock", "error_after": 2}).raise_for_status()
    with pytest.raises(openai.APIError, match="simulated failure"):
        list(client.chat.completions.create(**prompt("complex"), stream=True))


def test_a_wrong_aws_secret_is_refused_by_the_provider_and_the_client_sees_its_answer(
    stack: Stack, client: openai.OpenAI
) -> None:
    with stack.control_client() as control:
        base = f"/v2/control-planes/{stack.control_plane_id()}/core-entities/plugins"
        plugins = control.get(base).json()["data"]
        plugin = next(p for p in plugins if p["instance_name"] == "default-llm-proxy")
        wrong = [dict(target, auth=dict(target["auth"])) for target in plugin["config"]["targets"]]
        right = plugin["config"]["targets"]
        wrong[1]["auth"]["aws_secret_access_key"] = "a-wrong-secret"
        control.patch(f"{base}/{plugin['id']}", json={"config": {"targets": wrong}}).raise_for_status()
        try:
            in_sync(stack)
            with pytest.raises(openai.PermissionDeniedError) as caught:
                client.chat.completions.create(**prompt("complex"))
            assert "signature we calculated does not match" in caught.value.response.json()["message"]
            assert "a-wrong-secret" not in caught.value.response.text
        finally:
            control.patch(f"{base}/{plugin['id']}", json={"config": {"targets": right}}).raise_for_status()
            in_sync(stack)
