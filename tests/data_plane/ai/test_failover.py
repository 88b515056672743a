"""Several targets behind one route: turns, failures, breakers, and the record of what was decided."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from data_plane.ai.upstream import ModelUpstream
from data_plane.exchange import Exchange
from data_plane.http1.client import Client
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig
from tests.data_plane.ai.gateways import CHAT, ask, bedrock, models, openai, says, wire
from tests.data_plane.builders import exchange, gateway, service

COMPLETION = wire("openai", "plain")
NOBODY = "http://127.0.0.1:1"
"""Where every connection is refused."""


def retrying(*criteria: str, **balancer: Any) -> dict[str, Any]:
    return {"balancer": {"failover_criteria": list(criteria), **balancer}}


def heavy(target: dict[str, Any]) -> dict[str, Any]:
    return {**target, "weight": 60_000}


async def test_equal_targets_take_turns_by_weight() -> None:
    async with service(says(COMPLETION)) as provider:
        targets = [openai(provider.url, "a", weight=30), openai(provider.url, "b", weight=10)]
        async with gateway(models(*targets)) as node:
            for _ in range(16):
                await ask(node)

    assert Counter(json.loads(body)["model"] for body in provider.bodies) == {"a": 12, "b": 4}


async def test_a_target_that_refuses_the_connection_is_followed_by_another() -> None:
    async with service(says(COMPLETION)) as provider:
        targets = [heavy(openai(NOBODY, "dead")), openai(provider.url, "alive")]
        async with gateway(models(*targets)) as node:
            replies = [await ask(node) for _ in range(4)]
            await node.ended(4)

    assert {(reply.status, reply.headers.get("x-kong-llm-model")) for reply in replies} == {(200, "alive")}
    for event in node.events:
        calls = [(call.request_model, call.role, call.status) for call in event.llm_calls]
        assert calls[-1][::2] == ("alive", 200)
        assert calls in ([("alive", "selected", 200)], [("dead", "selected", 0), ("alive", "fallback", 200)])
    assert any(len(event.llm_calls) == 2 for event in node.events)


async def test_another_provider_gets_the_chat_in_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(says(b'{"message":"slow"}', 429)) as amazon, service(says(COMPLETION)) as other:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", amazon.url)
        targets = [heavy(bedrock(alias="x")), openai(other.url, alias="x")]
        async with gateway(models(*targets, **retrying("http_429", "non_idempotent"))) as node:
            while not amazon.requests:
                reply = await ask(node, {**CHAT, "model": "x"})

    assert reply.status == 200
    assert "content" in json.loads(amazon.bodies[0])["messages"][0]
    assert json.loads(other.bodies[-1])["messages"] == CHAT["messages"]


@pytest.mark.parametrize(
    ("criteria", "retries", "asked", "status"),
    [
        (["http_429"], 5, 1, 429),
        (["http_429", "non_idempotent"], 5, 2, 200),
        (["http_429", "non_idempotent"], 0, 1, 429),
        (["http_500", "non_idempotent"], 5, 1, 429),
    ],
)
async def test_a_status_is_retried_only_where_sent_requests_may_be(
    criteria: list[str], retries: int, asked: int, status: int
) -> None:
    async with service(says(b"slow down", 429, "text/plain")) as busy, service(says(COMPLETION)) as free:
        targets = [openai(busy.url, alias="busy"), openai(free.url, alias="free")]
        for target in targets:
            target["model"]["model_alias"] = "x"
        async with gateway(models(*targets, **retrying(*criteria, retries=retries))) as node:
            replies = []
            while not busy.requests:
                replies.append(await ask(node, {**CHAT, "model": "x"}))
            await node.ended(len(replies))

    assert replies[-1].status == status
    assert len(node.events[-1].llm_calls) == asked


async def test_when_all_have_failed_the_last_answer_is_the_clients() -> None:
    async with service(says(b"first", 500, "text/plain")) as one, service(says(b"second", 500, "text/plain")) as two:
        targets = [openai(one.url), openai(two.url)]
        async with gateway(models(*targets, **retrying("http_500", "non_idempotent"))) as node:
            reply = await ask(node)
            await node.ended(1)

    assert reply.status == 500
    assert reply.body in (b"first", b"second")
    assert (len(one.requests), len(two.requests)) == (1, 1)
    assert [call.status for call in node.events[0].llm_calls] == [500, 500]


async def test_a_single_target_that_refuses_is_tried_as_often_as_allowed_then_502() -> None:
    async with gateway(models(openai(NOBODY), balancer={"retries": 2})) as node:
        reply = await ask(node)
        await node.ended(1)

    assert reply.status == 502
    assert reply.json["message"] == "An invalid response was received from the upstream server"
    assert "x-tandem-decision" in reply.headers
    assert [call.error_kind for call in node.events[0].llm_calls] == ["refused"] * 3


async def test_a_target_that_failed_too_often_is_left_out_and_everybody_out_is_a_500() -> None:
    async with gateway(models(openai(NOBODY), **retrying("error", max_fails=1, retries=0))) as node:
        first, second = await ask(node), await ask(node)
        await node.ended(2)

    assert first.status == 502
    assert second.status == 500
    assert "no model is available" in second.json["error"]["message"]
    assert len(node.events[1].llm_calls) == 0


async def test_a_request_that_only_some_targets_can_serve_goes_to_those(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later target that cannot say it is passed over, and the earlier one's answer stands."""
    image = {"type": "image_url", "image_url": {"url": "https://host/x.png"}}
    async with service(says(b"broken", 500, "text/plain")) as broken, service() as amazon:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", amazon.url)
        targets = [heavy(openai(broken.url)), bedrock(weight=1)]
        async with gateway(models(*targets, **retrying("http_500", "non_idempotent"))) as node:
            reply = await ask(node, {"messages": [{"role": "user", "content": [image]}]})
            while reply.status == 400:  # it was the other one's turn
                reply = await ask(node, {"messages": [{"role": "user", "content": [image]}]})

    assert (reply.status, reply.body) == (500, b"broken")
    assert amazon.requests == []


# The record of a decision.


async def decide(upstream: ModelUpstream, chat: dict[str, Any]) -> Exchange:
    subject = exchange(headers={"Content-Type": "application/json"}, body=json.dumps(chat).encode())
    response = await upstream.send(subject)
    await response.read()
    await response.close()
    return subject


async def test_a_decision_tells_who_could_have_answered_and_why_they_did_not() -> None:
    client = Client()
    async with service(says(COMPLETION)) as provider:
        targets = [openai(provider.url, "a", "fast"), openai(provider.url, "b", "smart"), openai(provider.url, "c")]
        config = AiProxyAdvancedConfig.model_validate({"targets": targets})
        upstream = ModelUpstream(config, client, {}, "plugin-id", "tandem")
        subject = await decide(upstream, {**CHAT, "model": "smart"})
        await upstream.close()
        await client.close()

    assert subject.decision is not None
    story = subject.decision.describe()
    assert (story["asked_for"], story["by_alias"]) == ("smart", True)
    assert [(entry["model"], entry["verdict"]) for entry in story["candidates"]] == [
        ("a", "has another alias"),
        ("b", "answered"),
        ("c", "has no alias"),
    ]
    assert [(entry["model"], entry["outcome"]) for entry in story["attempts"]] == [("b", "answered")]
    assert "sk-provider" not in json.dumps(story)
