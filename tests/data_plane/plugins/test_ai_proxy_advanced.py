"""ai-proxy-advanced as a plugin: what it refuses to run, and what it tells the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_plane.errors import ConfigError
from data_plane.http1.client import Client
from data_plane.plugins.ai_proxy_advanced import AiProxyAdvanced
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig
from gateway_schema.violations import parse
from tests.data_plane.ai.gateways import CHAT, EVENTS, at_once, openai, says, streams, wire
from tests.data_plane.builders import exchange, service, supplies

CHAT_TARGET = {"route_type": "llm/v1/chat", "model": {"provider": "openai", "name": "m"}}


def plugin(config: dict[str, Any], **given: Any) -> AiProxyAdvanced:
    return AiProxyAdvanced(parse(AiProxyAdvancedConfig, config), supplies(**given))


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        (
            {"targets": [CHAT_TARGET, {"route_type": "llm/v1/chat", "model": {"provider": "xai", "name": "m"}}]},
            "config.targets[1].model.provider",
            "'xai' is not available in this version (has: bedrock, openai)",
        ),
        (
            {"targets": [{**CHAT_TARGET, "route_type": "llm/v1/embeddings"}]},
            "config.targets[0].route_type",
            "'llm/v1/embeddings' is not available for openai in this version (has: llm/v1/chat)",
        ),
        (
            {"targets": [CHAT_TARGET], "balancer": {"algorithm": "semantic"}},
            "config.balancer.algorithm",
            "'semantic' is not available in this version (has: round-robin)",
        ),
        (
            {"targets": [CHAT_TARGET], "llm_format": "anthropic"},
            "config.llm_format",
            "'anthropic' is not available in this version (has: openai)",
        ),
        (
            {"targets": [CHAT_TARGET], "acls": {"deny": [{"match": [{"type": "ip", "values": ["1.2.3.4"]}]}]}},
            "config.acls",
            "rules are not available in this version",
        ),
        (
            {"targets": [{"route_type": "llm/v1/chat", "model": {"provider": "bedrock", "name": "m"}}]},
            "config.targets[0].model.options.bedrock.aws_region",
            "AWS region not specified anywhere",
        ),
        (
            {"targets": [{**CHAT_TARGET, "auth": {"gcp_use_service_account": True}}]},
            "config.targets[0].auth.gcp_use_service_account",
            "openai has no such identity",
        ),
        (
            {"targets": [{**CHAT_TARGET, "auth": {"header_name": "A", "header_value": "{vault://env/x}"}}]},
            "config.targets[0].auth.header_value",
            "vault references are not available in this version",
        ),
        (
            {"targets": [{**CHAT_TARGET, "auth": {"header_name": "A", "header_value": "Bearer sk-secret\n"}}]},
            "config.targets[0].auth.header_value",
            "holds a line break, a control character, or blanks at its ends",
        ),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_with_its_field(
    config: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin(config)

    assert (caught.value.field, caught.value.message) == (field, message)
    assert "sk-secret" not in str(caught.value)


async def _logged(answer: Any, chat: dict[str, Any], **logging: bool) -> dict[str, Any]:
    client = Client()
    record: dict[str, Any] = {}
    async with service(answer) as provider:
        target = openai(provider.url, logging=logging, options={"input_cost": 1, "output_cost": 2})
        handler = plugin({"targets": [target]}, client=client, plugin_id="the-plugin")
        subject = exchange(headers={"Content-Type": "application/json"}, body=json.dumps(chat).encode())

        async def proceed(given: Any) -> Any:
            return await given.upstream.send(given)

        response = await handler.handle(subject, proceed)
        await response.read()
        await response.close()
        handler.log(subject, record)
        await handler.close()
        await client.close()
    return record


async def test_statistics_go_into_the_log_as_kong_lays_them_out() -> None:
    record = await _logged(says(wire("openai", "usage")), CHAT, log_statistics=True)

    proxy = record["ai"]["proxy"]
    assert proxy["meta"] == {
        "plugin_id": "the-plugin",
        "provider_name": "openai",
        "request_model": "gpt-4o-mini",
        "response_model": "o3-mini-2025-01-31",
        "llm_latency": proxy["meta"]["llm_latency"],
        "request_mode": "oneshot",
    }
    usage = proxy["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (21, 7, 28)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 16}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert usage["cost"] == pytest.approx((21 + 14) / 1_000_000)
    assert usage["time_per_token"] > 0
    assert [tried["outcome"] for tried in proxy["tried_targets"]] == ["answered"]
    assert "payload" not in proxy


async def test_payloads_go_into_the_log_only_when_asked_for() -> None:
    record = await _logged(says(wire("openai", "plain")), CHAT, log_payloads=True)

    proxy = record["ai"]["proxy"]
    assert proxy.keys() == {"payload"}
    assert json.loads(proxy["payload"]["request"])["messages"] == CHAT["messages"]
    assert proxy["payload"]["response"].encode() == wire("openai", "plain")


async def test_a_streamed_payload_is_put_together_again() -> None:
    answer = streams(at_once(*EVENTS))
    record = await _logged(answer, {**CHAT, "stream": True}, log_payloads=True, log_statistics=True)

    proxy = record["ai"]["proxy"]
    completion = json.loads(proxy["payload"]["response"])
    assert completion["choices"][0]["message"]["content"] == "vier — 四 😀"
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert proxy["meta"]["request_mode"] == "stream"


async def test_without_being_asked_it_tells_the_log_nothing() -> None:
    assert await _logged(says(wire("openai", "plain")), CHAT) == {}
