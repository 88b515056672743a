"""The request that is ready in advance is the one that would have been made for the exchange."""

from __future__ import annotations

import time
from typing import Any

import pytest

from data_plane.ai.targets import Target
from data_plane.exchange import Exchange
from data_plane.messages import BufferedBody, Request
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig
from tests.data_plane.ai.gateways import CHAT, TOKEN, bedrock, openai
from tests.data_plane.builders import exchange

URL = "http://provider.test:81"
HEADER = {"header_name": "Authorization", "header_value": TOKEN}
QUERY = {"param_name": "key", "param_value": "secret", "param_location": "query"}


def target(entry: dict[str, Any]) -> Target:
    config = AiProxyAdvancedConfig.model_validate({"targets": [entry]})
    return Target(0, config.targets[0], config.balancer, {}, "tandem/1")


def asked(client: Exchange, made: Target, *, stream: bool) -> tuple[Any, Any]:
    ready = made.ready(client, None, by_alias=False)
    return ready, ready.adapter.encode(CHAT, stream=stream)


def facts(request: Request) -> Any:
    assert isinstance(request.body, BufferedBody)
    return request.method, request.target, request.headers.raw, request.body.data, request.scheme


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"auth": {}},
        {"auth": {"header_name": "X-Key", "header_value": "k", "allow_override": False}},
        {"auth": {"allow_override": True}},
        {"options": {"upstream_url": f"{URL}/base?version=1"}},
        {"options": {"upstream_url": None}},
        {"name": "$(headers.x-model)", "options": {"upstream_path": "/at/$(headers.x-model)"}},
    ],
)
async def test_a_request_at_once_is_the_one_that_takes_longer(fields: dict[str, Any], stream: bool) -> None:
    made = target(openai(URL, **fields))
    client = exchange(headers={"Authorization": "Bearer client", "X-Model": "m"})
    ready, encoded = asked(client, made, stream=stream)
    quick, again = made.request_at_once(ready, encoded, stream), made.request_at_once(ready, encoded, stream)
    assert quick is not None
    assert again is not None
    assert facts(quick) == facts(await made.request(ready, encoded, client, stream=stream))
    assert quick.headers.origin is not None
    assert quick.headers.origin is again.headers.origin
    quick.headers.add("X-Later", "1")
    assert facts(again) == facts(await made.request(ready, encoded, client, stream=stream))


@pytest.mark.parametrize(
    "entry",
    [
        openai(URL, auth={**HEADER, "allow_override": True}),
        openai(URL, auth=QUERY),
        openai(URL, auth={**HEADER, **QUERY}),
        openai(URL, auth={**QUERY, "param_location": "body"}),
        openai(URL, auth={"header_name": "Content-Length", "header_value": "1"}),
        bedrock(auth={}),
    ],
)
def test_what_depends_on_the_exchange_or_on_credentials_to_be_found_is_not_made_at_once(entry: dict[str, Any]) -> None:
    made = target(entry)
    ready, encoded = asked(exchange(), made, stream=False)
    assert made.request_at_once(ready, encoded, False) is None


async def test_a_request_that_is_signed_at_once_is_signed_as_one_that_takes_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    made = target(bedrock())
    ready, encoded = asked(exchange(), made, stream=False)
    quick, slow = (
        made.request_at_once(ready, encoded, False),
        await made.request(ready, encoded, exchange(), stream=False),
    )
    assert quick is not None
    assert facts(quick) == facts(slow)
    assert quick.headers.get("X-Amz-Date") == "20231114T221320Z"
    encoded.body += b" "
    other = made.request_at_once(ready, encoded, False)
    assert other is not None
    assert other.headers.get("Authorization") != quick.headers.get("Authorization")


def test_what_a_provider_wants_beside_its_body_is_not_made_at_once() -> None:
    made = target(openai(URL))
    ready, encoded = asked(exchange(), made, stream=False)
    encoded.query = {"a": "b"}
    assert made.request_at_once(ready, encoded, False) is None
    encoded.query, encoded.headers = {}, {"X-Own": "1"}
    assert made.request_at_once(ready, encoded, False) is None
