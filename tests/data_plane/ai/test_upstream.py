"""A provider whose answers begin with the same head every time is answered for as if each were the first."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai.upstream import ModelUpstream
from data_plane.errors import InvalidResponse
from data_plane.messages import Head, Headers, Request, Response
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig
from tests.data_plane.ai.gateways import CHAT, bedrock, openai, wire
from tests.data_plane.builders import exchange

FIELDS = st.sampled_from(
    [
        ("Content-Type", "application/json; charset=utf-8"),
        ("content-type", "text/x"),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "identity"),
        ("Set-Cookie", "a=b"),
        ("X-Kong-Upstream-Latency", "1"),
        ("x-tandem-decision", "forged"),
        ("Connection", "keep-alive"),
        ("Server", "nginx"),
        ("X-Ratelimit", "1"),
        ("X-Ratelimit", "2"),
    ]
)


class Provider:
    """A client whose answers are these headers and this body."""

    def __init__(self) -> None:
        self.headers = Headers()
        self.body = b""
        self.status = 200

    async def send(self, origin: Any, request: Request, timeouts: Any) -> Response:
        return Response(self.status, self.headers, self.body, source="upstream")


async def answer(models: ModelUpstream, provider: Provider, headers: Headers) -> Any:
    """All that a client gets, but for what differs from one answer to the next."""
    provider.headers = headers
    subject = exchange(headers={"Content-Type": "application/json"}, body=json.dumps(CHAT).encode())
    try:
        response = await models.send(subject)
    except InvalidResponse as error:
        return error.kind
    assert subject.decision is not None
    assert response.headers.raw[-1] == ("X-Tandem-Decision", subject.decision.id)
    body = await response.read()
    if body != provider.body:
        body = json.dumps({**json.loads(body), "created": 0}).encode()
    return response.status, response.reason, response.headers.raw[:-1], body


@given(
    st.lists(FIELDS, max_size=6),
    st.sampled_from(["openai", "bedrock"]),
    st.sampled_from([200, 400]),
    st.booleans(),
)
async def test_a_head_that_comes_again_goes_on_as_one_that_is_new(
    fields: list[tuple[str, str]], kind: str, status: int, names_model: bool
) -> None:
    target = openai("http://provider.test") if kind == "openai" else bedrock()
    config = AiProxyAdvancedConfig.model_validate({"targets": [target], "model_name_header": names_model})
    provider = Provider()
    provider.body, provider.status = wire(kind, "plain"), status
    models = ModelUpstream(config, provider, {}, "plugin-id", "tandem")  # type: ignore[arg-type]
    head = Head([*fields, ("x-amzn-requestid", "r"), ("Content-Length", "0")])
    before = head.fields.copy()
    new = await answer(models, provider, Headers(head.headers("7").raw))
    for length in ("7", "7", "8"):
        known = await answer(models, provider, head.headers(length))
        assert known == (new if status == 200 else await answer(models, provider, Headers(head.headers(length).raw)))
    assert head.fields == before
