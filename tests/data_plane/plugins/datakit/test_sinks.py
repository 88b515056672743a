"""What workflows write to a request: the same to a head that is familiar as to one that is not."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from data_plane.exchange import Exchange
from data_plane.messages import Head, Headers
from tests.data_plane.plugins.datakit.kit import Kit, Node, call, jq, static

NAMES = st.sampled_from(
    ["Host", "apikey", "ApiKey", "X-A", "x-b", "Content-Type", "content-encoding", "Transfer-Encoding", "Cookie"]
)
FIELDS = st.lists(st.tuples(NAMES, st.text("ab,", max_size=3)), max_size=6)
WORKFLOWS: list[list[Node]] = [
    [jq("B", "{a: .}", input="request.body", output="service_request.body")],
    [jq("B", '{h: "1"}', input="request.query", output="service_request.headers")],
    [
        static(
            "H", {"X-A": ["1", "2"], "apikey": "k", "X-B": None, "Connection": "x"}, output="service_request.headers"
        ),
        jq("B", ".", input="request.body", output="service_request.body"),
        jq("Q", "{q: 1}", input="request.method", output="service_request.query"),
    ],
    [
        static("H", {"content-type": "text/plain"}, output="service_request.headers"),
        jq("B", "tojson", input="request.body", output="service_request.body"),
    ],
    [jq("H", '{apikey: .["X-A"]}', input="request.headers", output="service_request.headers")],
    [jq("W", "{body: ., headers: {x: .[0]}}", input="request.body", output="service_request")],
    [
        static("S", {"yes": True, "h": {"X-A": "new"}}, outputs={"h": "service_request.headers"}),
        jq("BIG", ". == [1]", input="request.body"),
        {"name": "B", "type": "branch", "input": "BIG", "then": ["J"]},
        jq("J", "[1, .]", input="request.body", output="service_request.body"),
    ],
]


async def written(kit: Kit, head: Headers, body: Any) -> tuple[Any, ...]:
    def prepare(subject: Exchange) -> None:
        subject.request.headers = head

    await kit.send(body, prepare=prepare)
    request = kit.exchange.request
    names = {name for name, _ in request.headers}
    fields = {name: request.headers.get_all(name) for name in names}  # by the index, which may have been handed on
    return request.headers.raw, fields, request.target, kit.upstream.body, kit.upstream.called


@given(st.sampled_from(WORKFLOWS), FIELDS, st.booleans())
@example(WORKFLOWS[2], [("X-A", "1"), ("X-A", "2"), ("Content-Type", "x"), ("Transfer-Encoding", "chunked")], True)
async def test_a_familiar_head_is_written_to_as_any_other(
    nodes: list[Node], fields: list[tuple[str, str]], has_length: bool
) -> None:
    kit = Kit(nodes)
    fields = [("Content-Type", "application/json"), *fields, *([("Content-Length", "1")] if has_length else [])]
    familiar = Head(fields.copy())
    for body in ([1], [1, 2], [1], ["longer than these"]):
        length = str(len(orjson.dumps(body)))
        plain = Headers((name, length if name == "Content-Length" else value) for name, value in fields)
        expected = await written(kit, plain, body)
        assert await written(kit, familiar.headers(length), body) == expected
    assert familiar.fields == fields


async def test_what_comes_of_a_familiar_head_is_familiar_itself() -> None:
    kit = Kit(WORKFLOWS[2])
    familiar = Head([("Content-Type", "application/json"), ("Content-Length", "3")])
    heads = []
    for body in ([1], [2], [345]):
        await written(kit, familiar.headers("3"), body)
        heads.append(kit.exchange.request.headers.origin)
    assert heads[0] is not None
    assert heads[0] is heads[1] is heads[2]


async def test_headers_that_a_request_told_are_not_kept_with_the_head() -> None:
    kit = Kit(WORKFLOWS[4])
    familiar = Head([("X-A", "client")])
    await written(kit, familiar.headers(""), [1])
    assert not familiar.notes


async def test_headers_of_the_configuration_are_given_to_every_call_alike() -> None:
    nodes = [
        static("H", {"h": {"X-A": ["1", "2"], "Host": "no", "accept-encoding": "gzip"}, "t": {"Content-Type": "a/b"}}),
        call("TEXT", method="POST", inputs={"body": "request.method", "headers": "H.h"}),
        call("JSON", method="POST", inputs={"body": "request.query", "headers": "H.h"}),
        call("NONE", method="POST", inputs={"headers": "H.h"}),
        call("TYPED", method="POST", inputs={"body": "request.query", "headers": "H.t"}),
    ]
    kit = Kit(nodes)
    for _ in range(3):
        kit.network.sent.clear()
        await kit.send()
        assert {sent.url: sent.headers for sent in kit.network.sent} == {
            "http://text.test/": {"X-A": ["1", "2"]},
            "http://json.test/": {"X-A": ["1", "2"], "Content-Type": "application/json"},
            "http://none.test/": {"X-A": ["1", "2"]},
            "http://typed.test/": {"Content-Type": "a/b"},
        }
