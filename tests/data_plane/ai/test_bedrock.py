"""What the Bedrock adapter translates, beyond the golden fixtures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_plane.ai.providers import PROVIDERS
from data_plane.ai.providers.base import Unaddressable
from data_plane.ai.providers.bedrock import BedrockAdapter
from data_plane.errors import LlmError
from gateway_schema.plugins.llm import BedrockOptions, ModelOptions

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"


def encoded(messages: Any, model: str = CLAUDE, **chat: Any) -> dict[str, Any]:
    adapter = BedrockAdapter(model, ModelOptions())
    return json.loads(adapter.encode({"messages": messages, **chat}, stream=False).body)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (user({"type": "image_url", "image_url": {"url": "https://x/y.png"}}), "only as data URIs"),
        (user({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}}), "png, jpeg, gif and webp"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,A*A"}}), "not valid base64"),
        (user({"type": "image_url"}), "only as data URIs"),
        (user({"type": "input_audio", "input_audio": {}}), "'input_audio' is not supported"),
        (user({"type": "text", "text": 3}), "expected a string"),
        (user(7), "is not supported"),
        ([{"role": "user", "content": 7}], "expected a string or an array"),
        ([{"role": "function", "content": "x"}], "'function' is not supported"),
        (["x"], r"messages\[0\]: expected an object"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "a JSON object"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "a JSON object"),
        ([{"role": "assistant", "tool_calls": [3]}], "expected a function call"),
        ([{"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}], "not supported"),
    ],
)
def test_what_bedrock_cannot_be_told_is_a_400_that_says_where(messages: Any, text: str) -> None:
    with pytest.raises(LlmError, match=text) as caught:
        encoded(messages)

    assert caught.value.status == 400


@pytest.mark.parametrize(
    "model", ["amazon.titan-text-express-v1", "us.cohere.command-text-v14", "mistral.mixtral-8x7b-instruct-v0:1"]
)
def test_models_without_system_prompts_refuse_them(model: str) -> None:
    with pytest.raises(LlmError, match=f"system prompts are unsupported for model '{model}'"):
        encoded([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], model)

    assert "system" not in encoded([{"role": "user", "content": "y"}], model)


@pytest.mark.parametrize(
    ("content", "block"),
    [
        ('{"a":1}', {"json": {"a": 1}}),
        ("[1,2]", {"json": {"result": [1, 2]}}),
        ("42", {"json": {"result": 42}}),
        ("plain words", {"text": "plain words"}),
        ("", {"json": {"result": ""}}),
        ([{"type": "text", "text": "part"}], {"text": "part"}),
    ],
)
def test_results_of_tools_go_as_objects_or_text(content: Any, block: Any) -> None:
    body = encoded([{"role": "tool", "tool_call_id": "c", "content": content}])

    assert body["messages"] == [{"role": "user", "content": [{"toolResult": {"toolUseId": "c", "content": [block]}}]}]


def test_no_tools_are_offered_when_none_may_be_used() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    question = [{"role": "user", "content": "x"}]

    assert "toolConfig" not in encoded(question, tools=tools, tool_choice="none")


def test_tools_stay_declared_in_a_conversation_that_has_used_them() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    conversation = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]

    config = encoded(conversation, tools=tools, tool_choice="none")["toolConfig"]

    assert config == {
        "tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object", "properties": {}}}}}]
    }


def test_tools_of_another_type_are_refused() -> None:
    with pytest.raises(LlmError, match=r"tools\[0\]"):
        encoded([{"role": "user", "content": "x"}], tools=[{"type": "web_search"}])


def test_blank_text_is_left_out_since_bedrock_refuses_it() -> None:
    body = encoded([{"role": "user", "content": " \n"}, *user({"type": "text", "text": ""}, "hello")])

    assert body["messages"] == [{"role": "user", "content": [{"text": "hello"}]}]


@pytest.mark.parametrize(
    ("region", "environment", "url"),
    [
        ("eu-west-1", {"AWS_REGION": "us-east-1"}, "https://bedrock-runtime.eu-west-1.amazonaws.com"),
        (
            None,
            {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "x"},
            "https://bedrock-runtime.us-west-2.amazonaws.com",
        ),
        (None, {"AWS_DEFAULT_REGION": "us-gov-west-1"}, "https://bedrock-runtime.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", {}, "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"),
        (
            "eu-west-1",
            {"AWS_ENDPOINT_URL": "http://a:1/", "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://b:2"},
            "http://b:2",
        ),
        ("eu-west-1", {"AWS_ENDPOINT_URL": "http://a:1/"}, "http://a:1"),
        (
            "eu-west-1",
            {"AWS_ENDPOINT_URL": "http://a:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "https://bedrock-runtime.eu-west-1.amazonaws.com",
        ),
    ],
)
def test_the_address_follows_the_region_or_amazons_own_variables(
    region: str | None, environment: dict[str, str], url: str
) -> None:
    options = ModelOptions(bedrock=BedrockOptions(aws_region=region))

    assert PROVIDERS["bedrock"].base_url(options, environment) == url


@pytest.mark.parametrize("region", [None, "evil.example/#", "us-east-1.evil.example", "EU", "-"])
def test_without_a_region_that_is_one_there_is_no_address(region: str | None) -> None:
    options = ModelOptions(bedrock=BedrockOptions(aws_region=region))

    with pytest.raises(Unaddressable) as caught:
        PROVIDERS["bedrock"].base_url(options, {})

    assert caught.value.field == "model.options.bedrock.aws_region"
