"""What each kind of node does with its inputs: requests made, responses read, answers, properties, sinks."""

from __future__ import annotations

from typing import Any

import pytest

from data_plane.exchange import Exchange
from data_plane.messages import Headers, Response
from gateway_schema.entities import Route
from gateway_schema.violations import parse
from tests.data_plane.builders import entity_id
from tests.data_plane.plugins.datakit.kit import (
    Kit,
    Sent,
    call,
    failure,
    jq,
    json_of,
    json_response,
    leave,
    prop,
    static,
)

# Calls: the request


async def sent_by(node: dict[str, Any], values: dict[str, Any]) -> Sent:
    """The request that a call makes when a static node gives it these values."""
    kit = Kit([static("S", values), node])
    response = await kit.send()
    assert response.status == 200, response.body
    return kit.network.sent[0]


async def test_a_call_without_inputs_is_a_bare_get() -> None:
    sent = await sent_by(call("C"), {})

    assert (sent.method, sent.url, sent.headers, sent.body) == ("GET", "http://c.test/", {}, b"")
    assert (sent.options["verify"], sent.options["server_name"]) == (True, None)


async def test_a_connected_url_wins_and_null_falls_back() -> None:
    node = call("C", inputs={"url": "J"})
    for program, url in (('"http://other.test/x"', "http://other.test/x"), ("null", "http://c.test/")):
        kit = Kit([jq("J", program), node])
        await kit.send()
        assert kit.network.sent[0].url == url


@pytest.mark.parametrize("program", ['"ftp://x/"', '"/path"', "{}", '"http://a b/"', '"http://x\\r\\nHost: y/"'])
async def test_a_connected_url_must_be_one(program: str) -> None:
    name, reason = failure(await Kit([jq("J", program), call("C", inputs={"url": "J"})]).send())

    assert name == "C"
    assert "URL" in reason or reason == "url: expected a string, got object"


async def test_a_call_without_any_url_fails() -> None:
    node = {"name": "C", "type": "call", "inputs": {"url": "J"}}

    assert failure(await Kit([jq("J", "null"), node]).send()) == (
        "C",
        "no URL: inputs.url is null, and none is configured",
    )


@pytest.mark.parametrize(
    ("url", "query", "expected"),
    [
        ("http://c.test/p", {"a": "1"}, "http://c.test/p?a=1"),
        ("http://c.test/p?x=y", {"a": ["1", 2], "b": True}, "http://c.test/p?x=y&a=1&a=2&b"),
        ("http://c.test/p", {"a": None, "b": False}, "http://c.test/p"),
        ("http://c.test/p#part", {"a b": "c&d/é"}, "http://c.test/p?a%20b=c%26d%2F%C3%A9#part"),
    ],
)
async def test_query_arguments_join_those_of_the_url(url: str, query: dict[str, Any], expected: str) -> None:
    sent = await sent_by(call("C", url=url, inputs={"query": "S.q"}), {"q": query})

    assert sent.url == expected


async def test_headers_go_out_without_nulls_and_without_those_of_a_connection() -> None:
    given = {
        "X-One": "1",
        "X-Many": ["a", "b"],
        "X-None": None,
        "X-Number": 5,
        "X-Flag": True,
        "Host": "client.test",
        "Connection": "close",
        "content-length": "999",
        "Transfer-Encoding": "chunked",
        "Accept-Encoding": "gzip",
    }

    sent = await sent_by(call("C", inputs={"headers": "S.h"}), {"h": given})

    assert sent.headers == {"X-One": "1", "X-Many": ["a", "b"], "X-Number": "5", "X-Flag": "true"}


async def test_the_clients_headers_are_copied_only_when_they_are_connected() -> None:
    for inputs, names in (({}, set()), ({"headers": "request.headers"}, {"Authorization", "X-A"})):
        kit = Kit([call("C", inputs=inputs)])
        await kit.send(headers={"Authorization": "Bearer x", "Host": "h", "X-A": "b"})
        assert set(kit.network.sent[0].headers) == names


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X-A": "b\r\nX-Evil: 1"}, "headers: the value of X-A has control characters"),
        ({"X A": "b"}, "headers: 'X A' is not a header name"),
        ({"": "b"}, "headers: '' is not a header name"),
        ({"X-A": {"b": 1}}, "headers: the value of X-A is neither a string nor an array of strings"),
    ],
)
async def test_what_cannot_be_a_header_fails_the_node(headers: dict[str, Any], reason: str) -> None:
    nodes = [static("S", {"h": headers}), call("C", inputs={"headers": "S.h"})]

    assert failure(await Kit(nodes).send()) == ("C", reason)


async def test_a_map_is_asked_for_and_nothing_else_will_do() -> None:
    nodes = [jq("J", '"text"'), call("C", inputs={"headers": "J"})]

    assert failure(await Kit(nodes).send()) == ("C", "headers: expected a map, got string")


@pytest.mark.parametrize(
    ("body", "headers", "expected", "content_type"),
    [
        ({"a": []}, None, b'{"a":[]}', "application/json"),
        ([1], None, b"[1]", "application/json"),
        (5, None, b"5", "application/json"),
        (True, None, b"true", "application/json"),
        ("text", None, b"text", None),
        ("text", {"Content-Type": "text/plain"}, b"text", "text/plain"),
        ({"a": 1}, {"content-type": "application/vnd.x+json"}, b'{"a":1}', "application/vnd.x+json"),
        (
            {"a": "b c", "d": ["e", "f"], "n": None},
            {"Content-Type": "application/x-www-form-urlencoded"},
            b"a=b%20c&d=e&d=f",
            "application/x-www-form-urlencoded",
        ),
        (None, None, b"", None),
    ],
)
async def test_bodies_are_written_by_their_type(
    body: Any, headers: dict[str, str] | None, expected: bytes, content_type: str | None
) -> None:
    values = {"b": body, "h": headers or {}}
    sent = await sent_by(call("C", method="POST", inputs={"body": "S.b", "headers": "S.h"}), values)

    assert sent.body == expected
    assert {name.lower(): value for name, value in sent.headers.items()}.get("content-type") == content_type


async def test_one_map_may_bring_everything() -> None:
    nodes = [
        jq("J", '{url: "http://m.test/", body: {a: 1}, headers: {"X-A": "b"}, query: {q: "1"}, other: 1}'),
        {"name": "C", "type": "call", "input": "J", "method": "PUT"},
    ]
    kit = Kit(nodes)

    await kit.send()

    (sent,) = kit.network.sent
    assert (sent.method, sent.url, sent.json) == ("PUT", "http://m.test/?q=1", {"a": 1})
    assert sent.headers["X-A"] == "b"


async def test_a_call_whose_certificate_is_not_to_be_checked_is_blocked_when_it_runs() -> None:
    kit = Kit([call("C", url="https://c.test/", ssl_verify=False)])
    assert failure(await kit.send()) == ("C", "ssl_verify: false is not allowed for https URLs on this node")
    assert kit.network.sent == []

    assert (await Kit([call("C", ssl_verify=False)]).send()).status == 200


async def test_the_server_name_is_handed_on() -> None:
    sent = await sent_by(call("C", url="https://10.0.0.1/", ssl_server_name="api.test"), {})

    assert sent.options["server_name"] == "api.test"


# Calls: the response


def answering(response: Response) -> Any:
    async def script(request: Sent) -> Response:
        return response

    return script


ALL = [call("C"), jq("J", ".", input="C"), leave(inputs={"body": "J"})]


async def test_a_response_is_read_by_its_content_type() -> None:
    for kind, raw, body in (
        ("application/json; charset=utf-8", b'{"a":1}', {"a": 1}),
        ("application/problem+json", b"[]", []),
        ("text/plain", b'{"a":1}', '{"a":1}'),
        ("application/json", b"", None),
    ):
        headers = Headers([("Content-Type", kind), ("X-Twice", "1"), ("x-twice", "2")])
        seen = json_of(await Kit(ALL, script=answering(Response(203, headers, raw))).send())

        assert seen["body"] == body
        assert seen["raw_body"] == (raw.decode() or "")
        assert seen["status"] == 203
        assert seen["headers"] == {"Content-Type": kind, "X-Twice": ["1", "2"]}


@pytest.mark.parametrize("status", [199, 300, 302, 403, 404, 429, 500])
async def test_other_statuses_than_2xx_fail(status: int) -> None:
    kit = Kit(ALL, script=answering(Response(status)))

    assert failure(await kit.send()) == ("C", f"non-2XX response code: {status}")
    assert kit.network.closed == 1


async def test_json_that_is_none_fails_the_call() -> None:
    response = Response(200, Headers([("Content-Type", "application/json")]), b"{")

    assert failure(await Kit(ALL, script=answering(response)).send()) == (
        "C",
        "the body is not valid JSON, though its content type says so",
    )


async def test_a_response_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_plane.plugins.datakit.nodes.MAX_CALL_BODY", 4)

    async def pieces() -> Any:
        yield b"12345"

    kit = Kit(ALL, script=answering(Response(200, body=pieces())))

    assert failure(await kit.send()) == ("C", "the response's body is longer than 4 bytes")
    assert kit.network.closed == 1


async def test_bytes_that_are_no_text_pass_through_unharmed() -> None:
    raw = bytes(range(256))
    nodes = [call("C"), leave(input="C", status=200)]

    response = await Kit(nodes, script=answering(Response(200, Headers([("Content-Type", "image/x")]), raw))).send()

    assert response.body == raw
    assert response.headers.get("content-type") == "image/x"


# Exit


async def test_an_exit_copies_body_and_headers_of_a_call_but_not_its_status() -> None:
    nodes = [call("C"), leave(input="C")]

    response = await Kit(nodes, script=answering(json_response({"a": 1}, 201, **{"X-A": "b"}))).send()

    assert (response.status, json_of(response), response.headers.get("x-a")) == (200, {"a": 1}, "b")
    assert response.source == "plugin"


@pytest.mark.parametrize(
    ("inputs", "body", "headers"),
    [
        ({}, b"", []),
        ({"body": "S.text"}, b"hello", []),
        ({"body": "S.object"}, b'{"a":1}', [("Content-Type", "application/json")]),
        ({"headers": "S.headers"}, b"", [("X-A", "1"), ("X-A", "2")]),
        (
            {"body": "S.object", "headers": "S.typed"},
            b'{"a":1}',
            [("content-type", "application/hal+json")],
        ),
    ],
)
async def test_an_exit_answers_with_its_inputs(
    inputs: dict[str, str], body: bytes, headers: list[tuple[str, str]]
) -> None:
    values = {
        "text": "hello",
        "object": {"a": 1},
        "headers": {"X-A": ["1", "2"], "X-Null": None},
        "typed": {"content-type": "application/hal+json"},
    }
    response = await Kit([static("S", values), leave(inputs=inputs, status=418, warn_headers_sent=True)]).send()

    assert (response.status, response.body, response.headers.raw) == (418, body, headers)


# Sinks


async def test_request_headers_are_merged_and_nulls_remove() -> None:
    values = {"X-Old": "new", "X-Gone": None, "X-Never": None, "X-New": ["1", "2"], "Content-Length": "7"}
    kit = Kit([static("S", values, output="service_request.headers")])

    await kit.send(b"12345", headers={"x-old": "1", "X-Gone": "2", "X-Kept": "3", "Content-Length": "5"})

    assert kit.exchange.request.headers.raw == [
        ("X-Old", "new"),
        ("X-Kept", "3"),
        ("Content-Length", "5"),
        ("X-New", "1"),
        ("X-New", "2"),
    ]


@pytest.mark.parametrize(
    ("query", "target"), [({"a": ["1", "2"], "b": True}, "/p?a=1&a=2&b"), ({}, "/p"), (None, "/p?x=y")]
)
async def test_the_query_is_replaced(query: Any, target: str) -> None:
    kit = Kit([static("S", {"q": query}, outputs={"q": "service_request.query"})])

    await kit.send(target="/p?x=y")

    assert kit.exchange.request.target == target


@pytest.mark.parametrize(
    ("program", "headers", "body", "content_type"),
    [
        ("{a: 1}", {}, b'{"a":1}', "application/json"),
        ('"text"', {}, b"text", "text/plain"),
        ("null", {}, b"old", "text/plain"),
        ("{a: 1}", {"content-type": "application/x+json"}, b'{"a":1}', "application/x+json"),
    ],
)
async def test_the_outgoing_body_is_replaced_unless_null(
    program: str, headers: dict[str, str], body: bytes, content_type: str
) -> None:
    nodes = [
        jq("J", program, output="service_request.body"),
        static("H", headers, output="service_request.headers"),
    ]
    kit = Kit(nodes)

    await kit.send(b"old", headers={"Content-Type": "text/plain", "Content-Encoding": "gzip", "Content-Length": "3"})

    request = kit.exchange.request
    assert kit.upstream.body == body
    assert request.headers.get("content-type") == content_type
    assert request.headers.get("content-length") == str(len(body))
    assert ("content-encoding" in request.headers) == (body == b"old")


async def test_nothing_is_written_when_a_later_node_fails() -> None:
    nodes = [static("S", {"X-A": "b"}, output="service_request.headers"), jq("J", "error", inputs={"s": "S"})]
    kit = Kit(nodes)

    await kit.send()

    assert "x-a" not in kit.exchange.request.headers


async def test_a_sink_that_cannot_be_written_is_told_by_its_name() -> None:
    response = await Kit([jq("J", '"text"', output="service_request.headers")]).send()

    assert failure(response) == ("service_request", "headers: expected a map, got string")


async def test_a_response_body_replaces_the_services() -> None:
    upstream = Response(
        200,
        Headers([("Content-Type", "text/html"), ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]),
        b"zipped",
    )

    response = await Kit([static("S", {"a": 1}, output="response.body")]).send(upstream=upstream)

    assert response.body == b'{"a":1}'
    assert response.headers.raw == [("Content-Type", "application/json"), ("Content-Length", "7")]


async def test_the_request_is_read_as_it_stands_when_datakit_runs() -> None:
    """key-auth has taken the client's key away by then."""
    kit = Kit([jq("J", "keys", input="request.headers"), leave(inputs={"body": "J"})])

    def hide(subject: Exchange) -> None:
        subject.request.headers.remove("apikey")

    response = await kit.send(headers={"apikey": "secret", "X-A": "b"}, prepare=hide)

    assert json_of(response) == ["X-A"]


async def test_a_body_that_nobody_reads_is_not_read() -> None:
    class Unread:
        length = None

        async def read(self, limit: int = 0) -> bytes:
            raise AssertionError

    kit = Kit([jq("J", ".", input="request.headers"), leave()])

    def replace(subject: Exchange) -> None:
        subject.request.body = Unread()  # type: ignore[assignment]

    assert (await kit.send(prepare=replace)).status == 200


async def test_a_body_longer_than_a_workflow_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_plane.plugins.datakit.handler.MAX_BODY", 4)

    assert (await Kit([jq("J", input="request.body")]).send(b"12345")).status == 413


# Properties


def routed(subject: Exchange) -> None:
    route = {"id": entity_id("route"), "name": "chat", "paths": ["/chat"], "service": None}
    subject.route = parse(Route, {key: value for key, value in route.items() if value is not None})
    subject.client_ip = "203.0.113.9"
    subject.request.peer = ("192.0.2.1", 4711)


async def read(path: str, **fields: Any) -> Any:
    nodes = [prop("P", path, **fields), jq("J", "{v: .}", input="P"), leave(inputs={"body": "J"})]
    kit = Kit(nodes, consumers={"alice": ["alice-key"]})

    def prepare(subject: Exchange) -> None:
        routed(subject)
        subject.consumer, subject.credential = kit.handler._supplies.consumers_by_key["alice-key"]
        subject.shared["known"] = {"a": [1]}
        subject.shared["text"] = '{"a":[1]}'

    response = await kit.send(headers={"Host": "Api.test:8443"}, prepare=prepare)
    return json_of(response)["v"] if response.status == 200 else failure(response)[1]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kong.client.ip", "192.0.2.1"),
        ("kong.client.port", 4711),
        ("kong.client.forwarded_ip", "203.0.113.9"),
        ("kong.client.protocol", "http"),
        ("kong.request.port", 8443),
        ("kong.request.forwarded_port", 8443),
        ("kong.request.forwarded_host", "api.test"),
        ("kong.request.forwarded_scheme", "http"),
        ("kong.route_name", "chat"),
        ("kong.route_id", entity_id("route")),
        ("kong.service_name", None),
        ("kong.service_id", None),
        ("kong.router.service", None),
        ("kong.version", "3.15.0"),
        ("kong.node.id", "node-1"),
        ("kong.nginx.subsystem", "http"),
        ("kong.ctx.shared.known", {"a": [1]}),
        ("kong.ctx.shared.unknown", None),
        ("kong.ctx.plugin.unknown", None),
    ],
)
async def test_a_property_is_read(path: str, value: Any) -> None:
    assert await read(path) == value


async def test_entities_are_read_as_objects() -> None:
    consumer = await read("kong.client.consumer")
    assert (consumer["username"], consumer["id"]) == ("alice", entity_id("alice"))
    assert (await read("kong.client.credential"))["consumer"] == {"id": entity_id("alice")}
    assert (await read("kong.router.route"))["paths"] == ["/chat"]


async def test_json_content_type_decodes_what_is_read() -> None:
    assert await read("kong.ctx.shared.text", content_type="application/json") == {"a": [1]}
    assert await read("kong.ctx.shared.text", content_type="text/plain") == '{"a":[1]}'


async def test_null_properties_fail_nodes_that_want_one() -> None:
    assert await read("kong.ctx.shared.unknown", non_nil=True) == "property kong.ctx.shared.unknown is null"


async def test_a_written_property_is_read_by_others_and_passed_on() -> None:
    nodes = [
        prop("SET", "kong.ctx.plugin.x", input="request.body"),
        prop("SHARE", "kong.ctx.shared.x", input="SET", content_type="application/json"),
        prop("GET", "kong.ctx.plugin.x"),
        leave(inputs={"body": "GET"}),
    ]
    kit = Kit(nodes)

    assert json_of(await kit.send({"a": []})) == {"a": []}
    assert kit.exchange.shared["x"] == '{"a":[]}'


async def test_private_properties_do_not_outlive_their_request() -> None:
    nodes = [
        prop("GET", "kong.ctx.plugin.x"),
        prop("SET", "kong.ctx.plugin.x", input="request.method"),
        jq("SEEN", "{seen: .}", input="GET"),
        leave(inputs={"body": "SEEN"}),
    ]
    kit = Kit(nodes)

    assert json_of(await kit.send()) == {"seen": None}
    assert json_of(await kit.send()) == {"seen": None}


@pytest.mark.parametrize("moment", ["request.query", "service_response.headers"])
async def test_the_status_is_set_from_either_phase(moment: str) -> None:
    nodes = [jq("J", "418", inputs={"m": moment}), prop("P", "kong.response.status", input="J")]

    assert (await Kit(nodes).send()).status == 418


@pytest.mark.parametrize("program", ["99", "600", '"200"', "true", "null"])
async def test_what_is_no_status_fails(program: str) -> None:
    nodes = [jq("J", program), prop("P", "kong.response.status", input="J")]

    assert failure(await Kit(nodes).send()) == (
        "P",
        "kong.response.status: expected an integer between 100 and 599",
    )


async def test_the_responses_facts_are_read_after_it() -> None:
    nodes = [
        prop("S", "kong.service.response.status"),
        prop("W", "kong.response.source"),
        jq("J", "{s: .s, w: .w}", inputs={"s": "S", "w": "W"}, output="response.body"),
    ]

    assert json_of(await Kit(nodes).send(upstream=json_response({}, 207))) == {"s": 207, "w": "service"}


@pytest.mark.parametrize(
    "who", [{"username": "alice"}, {"id": entity_id("alice")}, {"username": "x", "id": entity_id("alice")}]
)
async def test_a_consumer_is_named_for_the_plugins_that_follow(who: dict[str, str]) -> None:
    nodes = [static("S", {"who": who}), prop("P", "kong.client.consumer", input="S.who")]
    kit = Kit(nodes, consumers={"alice": []})

    assert (await kit.send()).status == 200
    assert kit.exchange.consumer is not None
    assert kit.exchange.consumer.username == "alice"


async def test_an_unknown_consumer_fails() -> None:
    for who in ({"username": "bob"}, {"id": "alice"}, {}, "alice"):
        nodes = [static("S", {"who": who}), prop("P", "kong.client.consumer", input="S.who")]
        assert failure(await Kit(nodes, consumers={"alice": []}).send()) == (
            "P",
            "kong.client.consumer: no consumer with this id, username or custom_id",
        )
