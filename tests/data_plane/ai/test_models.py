"""Chats through the gateway, seen from both ends: what the client gets, what the provider is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.data_plane.ai.gateways import CHAT, KEY, TOKEN, ask, bedrock, frames, models, open_stream, openai, says, wire
from tests.data_plane.builders import gateway, service

COMPLETION = wire("openai", "plain")
STREAM = wire("openai", "stream")


async def test_an_answer_comes_back_byte_for_byte_with_its_model_and_decision() -> None:
    async with (
        service(says(COMPLETION, x_request_id="req-9", Set_Cookie="a=b", Openai_Version="1")) as provider,
        gateway(models(openai(provider.url))) as node,
    ):
        reply = await ask(node)
        await node.ended(1)

    assert reply.status == 200
    assert reply.body == COMPLETION
    assert reply.headers.get("x-kong-llm-model") == "gpt-4o-mini"
    assert reply.headers.get("content-type") == "application/json"
    assert reply.headers.get("x-request-id") == "req-9"
    assert "set-cookie" not in reply.headers
    (event,) = node.events
    assert reply.headers.get("x-tandem-decision") == event.decision_id
    (call,) = event.llm_calls
    assert (call.provider, call.request_model, call.response_model) == (
        "openai",
        "gpt-4o-mini",
        "gpt-4o-mini-2024-07-18",
    )
    assert (call.status, call.role, call.stream, call.finish_reason) == (200, "selected", False, "stop")
    assert (call.prompt_tokens, call.completion_tokens, call.token_source) == (21, 1, "provider")
    assert call.duration_us > 0
    assert not call.HasField("cost_nano_usd")
    assert event.upstream_status == 200


async def test_nothing_of_the_clients_headers_or_query_reaches_the_provider() -> None:
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url))) as node:
        headers = {"Authorization": "Bearer client", "Cookie": "s=1", "X-Secret": "s", "User-Agent": "curl"}
        await ask(node, headers=headers, path="/chat?apikey2=x")

    (request,) = provider.requests
    assert request.target == "/v1/chat/completions"
    sent = {name.lower(): value for name, value in request.headers}
    assert sent.pop("user-agent").startswith("tandem")
    assert sent.pop("content-length") == str(len(provider.bodies[0]))
    assert sent == {
        "host": f"127.0.0.1:{provider.port}",
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": TOKEN,
    }
    assert KEY not in provider.bodies[0].decode()


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (400, b'{"error":{"message":"no"}}', "application/json"),
        (401, b"<html>who?</html>", "text/html"),
        (429, b'{"error":{"code":"rate"}}', "application/json"),
        (500, b"", "text/plain"),
        (201, b"{}", "application/json"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_providers_refusal_passes_unchanged(status: int, body: bytes, content_type: str, stream: bool) -> None:
    async with (
        service(says(body, status, content_type, Retry_After="7")) as provider,
        gateway(models(openai(provider.url))) as node,
    ):
        reply = await ask(node, {**CHAT, "stream": stream})
        await node.ended(1)

    assert (reply.status, reply.body) == (status, body)
    assert reply.headers.get("content-type") == content_type
    assert reply.headers.get("retry-after") == "7"
    assert "x-kong-llm-model" not in reply.headers
    assert "x-tandem-decision" in reply.headers
    (call,) = node.events[0].llm_calls
    assert (call.status, call.token_source, call.prompt_tokens) == (status, "none", 0)
    assert call.error_kind


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", "request body doesn't contain valid prompts"),
        (b"{}", "application/json", "request body doesn't contain valid prompts"),
        (b"[]", "application/json", "request body doesn't contain valid prompts"),
        (b"{", "application/json", "request body doesn't contain valid prompts"),
        (b'{"messages":[]}', "application/json", "request body doesn't contain valid prompts"),
        (b'{"messages":"x"}', "application/json", "request body doesn't contain valid prompts"),
        (b'{"prompt":7}', "application/json", "request body doesn't contain valid prompts"),
        (json.dumps(CHAT).encode(), "text/plain", "request body doesn't contain valid prompts"),
        (
            json.dumps({**CHAT, "x": "y" * 200}).encode(),
            "application/json",
            "request body doesn't contain valid prompts",
        ),
        (
            b'{"messages":[{"role":"user","content":"x"}],"prompt":"y"}',
            "application/json",
            "request matches multiple LLM request formats",
        ),
        (
            b'{"prompt":"y"}',
            "application/json",
            "[llm/v1/completions] message format is not compatible with [llm/v1/chat] route type",
        ),
    ],
)
async def test_what_is_no_chat_is_refused_in_kongs_words(body: bytes, content_type: str, message: str) -> None:
    async with (
        service(says(COMPLETION)) as provider,
        gateway(models(openai(provider.url), max_request_body_size=200)) as node,
    ):
        reply = await ask(node, body, {"Content-Type": content_type})

    assert reply.status == 400
    assert reply.json == {"error": {"message": message}}
    assert reply.headers.get("content-type") == "application/json; charset=utf-8"
    assert "x-tandem-decision" in reply.headers
    assert provider.requests == []


async def test_a_body_without_a_content_type_counts_as_json() -> None:
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url))) as node:
        reply = await node.send("POST", "/chat", {"apikey": KEY}, json.dumps(CHAT).encode())

    assert reply.status == 200


async def test_no_limit_on_the_body_means_none() -> None:
    async with (
        service(says(COMPLETION)) as provider,
        gateway(models(openai(provider.url), max_request_body_size=0)) as node,
    ):
        reply = await ask(node, {**CHAT, "metadata": "y" * 2_000_000})

    assert reply.status == 200
    assert len(provider.bodies[0]) > 2_000_000


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b""])
async def test_an_answer_without_choices_is_a_500(body: bytes) -> None:
    async with service(says(body)) as provider, gateway(models(openai(provider.url))) as node:
        reply = await ask(node)
        await node.ended(1)

    assert reply.status == 500
    message = "transformation failed from type openai://llm/v1/chat: 'choices' not in llm/v1/chat response"
    assert reply.json == {"error": {"message": message}}
    assert node.events[0].llm_calls[0].error_kind == "transformation"


@pytest.mark.parametrize(
    ("named", "asked", "error"),
    [
        ({}, None, None),
        ({"model": None}, None, None),
        ({"model": ""}, None, None),
        ({"model": 7}, None, None),
        ({"model": "only"}, "only", None),
        ({"model": "other"}, None, "cannot use own model - must be: only"),
    ],
)
async def test_a_request_may_name_the_configured_model_or_none(
    named: dict[str, Any], asked: str | None, error: str | None
) -> None:
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url, "only"))) as node:
        reply = await ask(node, {**CHAT, **named})

    if error is not None:
        assert (reply.status, reply.json) == (400, {"error": {"message": error}})
    else:
        assert json.loads(provider.bodies[0])["model"] == "only"


async def test_aliases_choose_and_the_provider_gets_the_real_name() -> None:
    async with service(says(COMPLETION)) as provider:
        targets = [openai(provider.url, "small", "fast"), openai(provider.url, "large", "smart")]
        async with gateway(models(*targets)) as node:
            replies = [await ask(node, {**CHAT, "model": name}) for name in ("fast", "smart", "small")]

    assert [reply.headers.get("x-kong-llm-model") for reply in replies] == ["small", "large", None]
    assert [json.loads(body)["model"] for body in provider.bodies] == ["small", "large"]
    assert (replies[2].status, replies[2].json) == (400, {"error": {"message": "model not configured"}})
    assert [event.llm_calls[0].model_alias for event in node.events[:2]] == ["fast", "smart"]


async def test_a_name_that_is_no_alias_goes_to_the_targets_without_one_by_the_strict_rule() -> None:
    async with service(says(COMPLETION)) as provider:
        targets = [openai(provider.url, "small", "fast"), openai(provider.url, "plain")]
        async with gateway(models(*targets)) as node:
            fine = await ask(node, {**CHAT, "model": "plain"})
            wrong = await ask(node, {**CHAT, "model": "small"})

    assert fine.headers.get("x-kong-llm-model") == "plain"
    assert wrong.json == {"error": {"message": "cannot use own model - must be: plain"}}


async def test_a_target_without_a_name_takes_the_requests_and_needs_one() -> None:
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url, None))) as node:
        named = await ask(node, {**CHAT, "model": "anything"})
        unnamed = await ask(node)

    assert named.headers.get("x-kong-llm-model") == "anything"
    message = "model parameter not found in request, nor in gateway configuration"
    assert (unnamed.status, unnamed.json) == (400, {"error": {"message": message}})


async def test_the_configurations_tuning_wins_over_the_clients() -> None:
    options = {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 3}
    wishes = {"max_tokens": 9, "max_completion_tokens": 9, "temperature": 2, "top_p": 1, "seed": 4}
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url, options=options))) as node:
        await ask(node, {**CHAT, **wishes})

    assert json.loads(provider.bodies[0]) == {
        **CHAT,
        "model": "gpt-4o-mini",
        "stream": False,
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 4,
    }


async def test_templates_are_filled_from_the_request() -> None:
    options = {"temperature": 1, "upstream_path": "/at/$(query_params.where)/$(headers.x-who)"}
    async with (
        service(says(COMPLETION)) as provider,
        gateway(models(openai(provider.url, "$(headers.X-Model)-mini", options=options))) as node,
    ):
        reply = await ask(node, headers={"x-model": "gpt-9", "x-who": "me"}, path="/chat?where=home")
        missing = await ask(node, headers={"x-model": "gpt-9", "x-who": "me"})
        climbing = await ask(node, headers={"x-model": "../..", "x-who": "me"}, path="/chat?where=home")
        injected = await ask(node, headers={"x-model": "m", "x-who": "me"}, path="/chat?where=a%0d%0ab")

    assert reply.headers.get("x-kong-llm-model") == "gpt-9-mini"
    assert provider.requests[0].target == "/at/home/me"
    assert missing.json == {"error": {"message": "query_params key where was not provided"}}
    assert (climbing.status, injected.status) == (400, 400)
    assert len(provider.requests) == 1


async def test_a_credential_may_travel_in_the_query_or_the_body() -> None:
    query = {"param_name": "key", "param_value": "s&p", "param_location": "query"}
    body = {**query, "param_location": "body"}
    async with service(says(COMPLETION)) as provider:
        for auth in (query, body):
            async with gateway(models(openai(provider.url, auth=auth))) as node:
                assert (await ask(node)).status == 200

    assert provider.requests[0].target == "/v1/chat/completions?key=s%26p"
    assert json.loads(provider.bodies[1])["key"] == "s&p"
    assert all("authorization" not in request.headers for request in provider.requests)


async def test_a_credential_in_the_query_or_the_body_is_the_clients_own_only_where_that_is_allowed() -> None:
    query = {"param_name": "token", "param_value": "ours", "param_location": "query"}
    async with service(says(COMPLETION)) as provider:
        for auth in (query, {**query, "param_location": "body"}):
            for allowed in (False, True):
                async with gateway(models(openai(provider.url, auth={**auth, "allow_override": allowed}))) as node:
                    assert (await ask(node, {**CHAT, "token": "mine"}, path="/chat?token=mine")).status == 200

    targets = [request.target.rpartition("?")[2] for request in provider.requests]
    assert targets[:2] == ["token=ours", "token=mine"]
    assert [json.loads(body)["token"] for body in provider.bodies[2:]] == ["ours", "mine"]


@pytest.mark.parametrize(
    ("allowed", "sent", "used"),
    [
        (False, "Bearer mine", TOKEN),
        (True, "Bearer mine", "Bearer mine"),
        (True, None, TOKEN),
        (True, f"Bearer {KEY}", TOKEN),
    ],
)
async def test_a_client_brings_its_own_credential_only_where_that_is_allowed(
    allowed: bool, sent: str | None, used: str
) -> None:
    auth = {"header_name": "Authorization", "header_value": TOKEN, "allow_override": allowed}
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url, auth=auth))) as node:
        await ask(node, headers={"authorization": sent} if sent else {})

    assert provider.requests[0].headers.get_all("authorization") == [used]


async def test_bedrock_is_asked_with_a_signature_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(says(wire("bedrock", "plain"), x_amzn_requestid="req-1")) as provider:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", provider.url)
        async with gateway(models(bedrock())) as node:
            reply = await ask(node)
            await node.ended(1)

    assert reply.status == 200
    assert reply.headers.get("x-kong-llm-model") == "us.anthropic.claude-haiku-4-5-20251001-v1:0"
    assert reply.json["id"] == "chatcmpl-req-1"
    assert reply.json["choices"][0]["message"]["content"] == "Four, 四."
    assert int(reply.headers.get("content-length") or 0) == len(reply.body)
    (request,) = provider.requests
    assert request.target == "/model/us.anthropic.claude-haiku-4-5-20251001-v1%3A0/converse"
    _check_signature(provider.url, request.target, dict(request.headers), provider.bodies[0])
    (call,) = node.events[0].llm_calls
    assert (call.provider, call.prompt_tokens, call.completion_tokens) == ("bedrock", 9, 4)


def _check_signature(url: str, target: str, headers: dict[str, str], body: bytes) -> None:
    lowered = {name.lower(): value for name, value in headers.items()}
    signed = {name: lowered[name] for name in ("host", "content-type", "x-amz-date")}
    reference = AWSRequest("POST", url + target, headers=signed, data=body)
    reference.context["timestamp"] = lowered["x-amz-date"]
    auth = SigV4Auth(Credentials("AKIDEXAMPLE", "aws-secret"), "bedrock", "us-east-1")
    expected = auth.signature(auth.string_to_sign(reference, auth.canonical_request(reference)), reference)
    assert lowered["authorization"].endswith(f"SignedHeaders=content-type;host;x-amz-date, Signature={expected}")


async def test_what_bedrock_cannot_do_is_a_400_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://host/x.png"}}
    async with service() as provider:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", provider.url)
        async with gateway(models(bedrock())) as node:
            reply = await ask(node, {"messages": [{"role": "user", "content": [image]}]})

    assert reply.status == 400
    assert "data URIs" in reply.json["error"]["message"]
    assert provider.requests == []


async def test_missing_credentials_are_a_500_that_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    async with gateway(models(bedrock(auth={}))) as node:
        reply = await ask(node)
        await node.ended(1)

    assert (reply.status, reply.json) == (500, {"error": {"message": "LLM request failed before proxying"}})
    assert node.events[0].llm_calls[0].error_kind == "identity"


@pytest.mark.parametrize(("setting", "asked", "streamed"), [("always", False, True), ("allow", False, False)])
async def test_streaming_follows_the_setting(setting: str, asked: bool, streamed: bool) -> None:
    body, kind = (STREAM, "text/event-stream") if streamed else (COMPLETION, "application/json")
    async with (
        service(says(body, content_type=kind)) as provider,
        gateway(models(openai(provider.url), response_streaming=setting)) as node,
    ):
        reply = await ask(node, {**CHAT, "stream": asked})

    assert json.loads(provider.bodies[0])["stream"] is streamed
    assert reply.headers.get("content-type") == kind
    assert (frames(reply.body)[-1] == "[DONE]") if streamed else (reply.body == COMPLETION)


async def test_streaming_can_be_denied() -> None:
    async with service() as provider, gateway(models(openai(provider.url), response_streaming="deny")) as node:
        refused = await ask(node, {**CHAT, "stream": True})

    assert refused.status == 400
    assert refused.json == {"error": {"message": "response streaming is not enabled for this LLM"}}
    assert provider.requests == []


async def test_the_models_name_can_be_kept_back() -> None:
    async with (
        service(says(COMPLETION)) as provider,
        gateway(models(openai(provider.url), model_name_header=False)) as node,
    ):
        reply = await ask(node)

    assert "x-kong-llm-model" not in reply.headers


async def test_prices_make_a_cost_in_nano_dollars() -> None:
    options = {"input_cost": 0.15, "output_cost": 0.6}
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url, options=options))) as node:
        await ask(node)
        await node.ended(1)

    assert node.events[0].llm_calls[0].cost_nano_usd == 21 * 150 + 1 * 600


async def test_an_answer_without_usage_is_estimated_and_marked() -> None:
    answer = {"choices": [{"message": {"content": "abcde"}, "finish_reason": "stop"}]}
    async with service(says(json.dumps(answer).encode())) as provider, gateway(models(openai(provider.url))) as node:
        await ask(node)
        await node.ended(1)

    (call,) = node.events[0].llm_calls
    assert (call.prompt_tokens, call.completion_tokens, call.token_source) == (5, 2, "estimated")
    assert call.response_model == "gpt-4o-mini"


async def test_the_decorators_messages_reach_the_provider() -> None:
    prompts = {"prepend": [{"content": "first"}], "append": [{"role": "user", "content": "last"}]}
    decorator = {"name": "ai-prompt-decorator", "route": "chat", "config": {"prompts": prompts}}
    async with (
        service(says(COMPLETION)) as provider,
        gateway(models(openai(provider.url), plugins=[decorator])) as node,
    ):
        await ask(node)
        await ask(node)

    for body in provider.bodies:
        assert json.loads(body)["messages"] == [
            {"role": "system", "content": "first"},
            *CHAT["messages"],
            {"role": "user", "content": "last"},
        ]


@pytest.mark.parametrize("body", [b"", b"{}", b"nonsense", b'{"messages":[]}', b'{"prompt":"x"}'])
async def test_the_decorator_takes_chats_only(body: bytes) -> None:
    decorator = {"name": "ai-prompt-decorator", "route": "chat", "config": {"prompts": {"append": [{"content": "x"}]}}}
    async with service() as provider, gateway(models(openai(provider.url), plugins=[decorator])) as node:
        reply = await ask(node, body)

    assert reply.status == 400
    assert reply.json == {"error": {"message": "this LLM route only supports llm/chat type requests"}}


async def test_a_compressed_answer_is_a_502() -> None:
    async with (
        service(says(b"\x1f\x8b", Content_Encoding="gzip")) as provider,
        gateway(models(openai(provider.url))) as node,
    ):
        reply = await ask(node)

    assert reply.status == 502


async def test_openais_own_variable_moves_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(says(COMPLETION)) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
        target = openai("")
        del target["model"]["options"]
        async with gateway(models(target)) as node:
            reply = await ask(node)

    assert reply.status == 200
    assert provider.requests[0].target == "/v1/chat/completions"


async def test_a_streams_answer_to_a_provider_that_does_not_stream_is_a_500() -> None:
    async with service(says(COMPLETION)) as provider, gateway(models(openai(provider.url))) as node:
        response = await open_stream(node)
        body = json.loads(await response.read())
        await response.close()

    assert response.status == 500
    assert body == {"error": {"message": "empty or unsupported transformer response"}}
