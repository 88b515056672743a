from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.errors import InvalidResponse, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from data_plane.exchange import Exchange
from data_plane.http1.client import Origin, Timeouts
from data_plane.http1.framing import request_head
from data_plane.loopback import Loopback
from data_plane.messages import BufferedBody, Head, Headers, Request, Response
from data_plane.router import Match
from data_plane.upstream import CallHeaders, Sender, ServiceUpstream, proxied
from gateway_schema.entities import Route, Service
from gateway_schema.violations import parse
from tests.data_plane.builders import entity_id


class Network:
    """Stands for the client: plays what it is given, one per attempt, and remembers what was sent."""

    def __init__(self, *script: Response | Exception) -> None:
        self.script = list(script)
        self.sent: list[tuple[Origin, Request, Timeouts]] = []
        self.heads: list[bytes | None] = []

    async def send(self, origin: Origin, request: Request, timeouts: Timeouts, head: bytes | None = None) -> Response:
        self.sent.append((origin, request, timeouts))
        self.heads.append(head)
        act = self.script.pop(0) if self.script else Response(200, source="upstream")
        if isinstance(act, Exception):
            raise act
        return act

    @property
    def request(self) -> Request:
        return self.sent[-1][1]


def arrived(target: str = "/a/b?x=1", method: str = "GET", headers: Any = (), **fields: Any) -> Exchange:
    """An exchange that was routed to a service under /a."""
    pairs = [("Host", "gateway.example:8000"), *headers]
    request = Request(method, target, Headers(pairs), BufferedBody(b""), peer=("10.0.0.9", 5))
    exchange = Exchange(request, None)
    route = Route.model_validate({"paths": ["/a"], **fields})
    path = target.partition("?")[0]
    exchange.match = Match(route, None, path, "/a", "/base" + path.removeprefix("/a"))
    return exchange


def upstream(network: Network, **fields: Any) -> ServiceUpstream:
    service = parse(Service, {"id": entity_id("s"), "host": "backend", **fields})
    return ServiceUpstream(service, network, Loopback(frozenset()), 8000)  # type: ignore[arg-type]


class TestRequest:
    async def test_carries_kongs_headers(self) -> None:
        network = Network()
        exchange = arrived(headers=[("Accept", "*/*"), ("X-Forwarded-For", "1.1.1.1"), ("Via", "1.0 edge")])
        await upstream(network, port=8080).send(exchange)
        assert network.request.target == "/base/b?x=1"
        assert dict(network.request.headers.raw) == {
            "Accept": "*/*",
            "Host": "backend:8080",
            "X-Forwarded-For": "1.1.1.1, 10.0.0.9",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": "gateway.example",
            "X-Forwarded-Port": "8000",
            "X-Forwarded-Path": "/a/b",
            "X-Forwarded-Prefix": "/a",
            "X-Real-IP": "10.0.0.9",
            "X-Kong-Request-Id": exchange.id,
            "Via": "1.0 edge, 1.1 kong/3.15.0",
        }

    async def test_several_lines_of_forwarded_for_keep_their_order(self) -> None:
        network = Network()
        await upstream(network).send(arrived(headers=[("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]))
        assert network.request.headers.get_all("X-Forwarded-For") == ["1.1.1.1, 2.2.2.2, 10.0.0.9"]

    async def test_claims_of_strangers_are_written_anew(self) -> None:
        network = Network()
        claims = [
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Path", "/evil"),
            ("X-Forwarded-Prefix", "/evil"),
            ("X-Real-IP", "evil"),
            ("X-Kong-Request-Id", "evil"),
        ]
        await upstream(network).send(arrived(headers=claims))
        assert not any("evil" in value or value in ("https", "1") for _, value in network.request.headers)

    async def test_claims_of_a_trusted_peer_are_kept(self) -> None:
        network = Network()
        claims = [("X-Forwarded-Host", "front"), ("X-Forwarded-Port", "443"), ("X-Forwarded-Path", "/p")]
        exchange = arrived(headers=[*claims, ("X-Forwarded-Prefix", "/pre")])
        exchange.trusted = True
        exchange.scheme = "https"
        await upstream(network).send(exchange)
        headers = network.request.headers
        found = [headers.get(f"X-Forwarded-{name}") for name in ("Proto", "Host", "Port", "Path", "Prefix")]
        assert found == ["https", "front", "443", "/p", "/pre"]

    async def test_what_belongs_to_the_clients_connection_stays_there(self) -> None:
        network = Network()
        own = [
            ("Connection", "keep-alive, X-Secret-Hop"),
            ("X-Secret-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "3"),
            ("Proxy", "http://evil"),
            ("Proxy-Connection", "close"),
            ("TE", "gzip"),
            ("Trailer", "X-T"),
            ("Upgrade", "h2c"),
            ("Expect", "100-continue"),
            ("X-Kept", "1"),
        ]
        await upstream(network).send(arrived(headers=own))
        names = {name.lower() for name, _ in network.request.headers}
        assert names & {name.lower() for name, _ in own} == {"x-kept"}

    async def test_te_trailers_passes(self) -> None:
        network = Network()
        await upstream(network).send(arrived(headers=[("TE", "trailers")]))
        assert network.request.headers.get("TE") == "trailers"

    async def test_the_host_is_the_services_or_the_clients(self) -> None:
        network = Network()
        await upstream(network, port=80).send(arrived())
        assert network.request.headers.get_all("Host") == ["backend"]
        await upstream(network, protocol="https", port=443).send(arrived())
        assert network.request.headers.get_all("Host") == ["backend"]
        await upstream(network).send(arrived(preserve_host=True))
        assert network.request.headers.get_all("Host") == ["gateway.example:8000"]

    async def test_no_prefix_is_told_when_none_was_stripped(self) -> None:
        network = Network()
        await upstream(network).send(arrived(strip_path=False))
        assert "X-Forwarded-Prefix" not in network.request.headers

    @pytest.mark.parametrize("target", ["/a?", "/a?x=", "/a?x&y=%2f+%20", "/a?x?y"])
    async def test_the_query_goes_through_byte_for_byte(self, target: str) -> None:
        network = Network()
        await upstream(network).send(arrived(target))
        assert network.request.target == "/base" + target.removeprefix("/a")

    async def test_the_services_timeouts_and_trust_are_the_clients(self) -> None:
        network = Network()
        fields = {"connect_timeout": 1000, "write_timeout": 2000, "read_timeout": 3000, "tls_verify": False}
        await upstream(network, protocol="https", port=443, **fields).send(arrived())
        origin, _, timeouts = network.sent[0]
        assert origin == Origin("https", "backend", 443, verify=False)
        assert timeouts == Timeouts(1.0, 2.0, 3.0)

    async def test_tls_is_verified_unless_a_service_says_otherwise(self) -> None:
        network = Network()
        await upstream(network, protocol="https", port=443).send(arrived())
        assert network.sent[0][0].verify


class TestResponse:
    async def test_loses_what_belongs_to_the_upstreams_connection(self) -> None:
        own = [
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Trailer", "T"),
            ("Upgrade", "h2c"),
            ("X_Underscored", "kept"),
            ("Content-Type", "text/plain"),
        ]
        response = await upstream(Network(Response(200, Headers(own)))).send(arrived())
        assert response.headers.raw == [
            ("X_Underscored", "kept"),
            ("Content-Type", "text/plain"),
            ("Via", "1.1 kong/3.15.0"),
            ("Server", "kong/3.15.0"),
        ]
        assert response.source == "upstream"

    async def test_keeps_the_upstreams_server_and_adds_to_its_via(self) -> None:
        given = Headers([("Server", "nginx"), ("Via", "1.1 a"), ("Via", "1.1 b")])
        response = await upstream(Network(Response(200, given))).send(arrived())
        assert response.headers.get_all("Server") == ["nginx"]
        assert response.headers.get_all("Via") == ["1.1 a, 1.1 b, 1.1 kong/3.15.0"]


class TestRetries:
    @pytest.mark.parametrize(
        ("method", "error", "attempts"),
        [
            ("GET", InvalidResponse("refused"), 6),
            ("GET", InvalidResponse("reset", sent=True), 6),
            ("GET", UpstreamTimeout("timeout_connect"), 6),
            ("PUT", UpstreamTimeout("timeout_read", sent=True), 6),
            ("POST", InvalidResponse("refused"), 6),
            ("POST", InvalidResponse("reset", sent=True), 1),
            ("PATCH", UpstreamTimeout("timeout_read", sent=True), 1),
            ("LOCK", InvalidResponse("protocol", sent=True), 1),
            ("GET", UpstreamUnavailable("dns"), 1),
            ("GET", InvalidResponse("tls"), 1),
        ],
    )
    async def test_only_what_is_safe_is_sent_again(self, method: str, error: UpstreamError, attempts: int) -> None:
        network = Network(*[error] * 10)
        with pytest.raises(type(error)):
            await upstream(network).send(arrived(method=method))
        assert len(network.sent) == attempts

    async def test_a_status_is_never_a_reason(self) -> None:
        network = Network(Response(503))
        response = await upstream(network).send(arrived())
        assert (response.status, len(network.sent)) == (503, 1)

    async def test_the_second_attempt_may_succeed(self) -> None:
        network = Network(InvalidResponse("refused"), Response(200))
        exchange = arrived()
        assert (await upstream(network, retries=1).send(exchange)).status == 200
        assert exchange.upstream_status == 200

    async def test_a_body_that_was_streamed_away_is_not_sent_again(self) -> None:
        class Stream:
            length = None

            async def read(self, limit: int = 0) -> bytes:
                raise AssertionError("nobody asked for the whole body")

            def __aiter__(self) -> Any:
                raise AssertionError("the network here reads nothing")

        network = Network(*[InvalidResponse("reset", sent=True)] * 2)
        exchange = arrived(method="PUT")
        exchange.request.body = Stream()
        with pytest.raises(InvalidResponse):
            await upstream(network).send(exchange)
        assert len(network.sent) == 1


CALL_HEADERS = st.dictionaries(
    st.sampled_from(["Host", "host", "X-One", "x-one", "Content-Length", "Content-Type"]),
    st.text("ab1", max_size=3) | st.lists(st.text("ab1", max_size=3), max_size=2),
)


class TestFetch:
    def sender(self, network: Any) -> Sender:
        return Sender(network, Loopback(frozenset({8000})))

    async def test_sends_what_it_is_given(self) -> None:
        network = Network()
        headers = {"X-One": "1", "X-Many": ["2", "3"]}
        url = "https://api.example:8443/v1/x?y=%20z"
        await self.sender(network).fetch("PUT", url, headers, b"body", parent=arrived(), timeout=5, verify=False)
        origin, request, _ = network.sent[0]
        assert origin == Origin("https", "api.example", 8443, verify=False)
        assert (request.method, request.target) == ("PUT", "/v1/x?y=%20z")
        assert request.headers.raw == [
            ("Host", "api.example:8443"),
            ("X-One", "1"),
            ("X-Many", "2"),
            ("X-Many", "3"),
        ]
        assert await request.body.read() == b"body"

    @given(CALL_HEADERS, st.lists(st.sampled_from(["http://x/", "http://y:81/p", "https://x/"]), max_size=4))
    async def test_headers_that_are_kept_for_many_calls_are_those_of_each(
        self, fields: dict[str, Any], urls: list[str]
    ) -> None:
        """However the one that they were sent to changed them."""
        network = Network()
        sender = self.sender(network)
        kept = CallHeaders(fields)
        for url in urls:
            await sender.fetch("GET", url, fields, b"", parent=arrived(), timeout=5)
            expected = network.request.headers.raw
            await sender.fetch("GET", url, kept, b"", parent=arrived(), timeout=5)
            headers = network.request.headers
            assert headers.raw == expected
            assert {name: headers.get_all(name) for name, _ in expected} == {
                name: Headers(expected).get_all(name) for name, _ in expected
            }
            headers.set("X-One", "changed")
            headers.remove("Content-Type")
            headers.add("X-More", "1")

    async def test_headers_that_are_kept_are_one_head_to_each_authority(self) -> None:
        network = Network()
        kept = CallHeaders({"X-One": "1"})
        for url in ("http://x/a", "http://y/", "http://x/b"):
            await self.sender(network).fetch("GET", url, kept, b"", parent=arrived(), timeout=5)
        first, other, again = (request.headers.origin for _, request, _ in network.sent)
        assert first is again
        assert first is not None
        assert other is not first

    async def test_headers_that_are_kept_are_kept_for_few_authorities(self) -> None:
        kept = CallHeaders({"X-One": "1"})
        heads = [kept.towards(f"host{number}", 1).origin for number in range(100)]
        assert kept.towards("host99", 1).origin is heads[99]
        assert kept.towards("host0", 1).origin is not heads[0]

    async def test_what_was_noted_is_forgotten_with_the_configuration(self) -> None:
        network = Network()
        kept = CallHeaders({"X-One": "1"})
        parent = arrived()
        heads = []
        for version in (1, 1, 2, 2):
            parent.runtime = SimpleNamespace(version=version)
            await self.sender(network).fetch("GET", "http://x/a", kept, b"", parent=parent, timeout=5)
            heads.append(network.request.headers.origin)
        assert heads[0] is heads[1]
        assert heads[2] is heads[3]
        assert heads[2] is not heads[1]

    @pytest.mark.parametrize("url", ["", "/path", "ftp://x/", "http://", "http://x:port/", "http://[::1/"])
    async def test_what_is_no_url_is_an_invalid_response(self, url: str) -> None:
        with pytest.raises(InvalidResponse):
            await self.sender(Network()).fetch("GET", url, {}, b"", parent=arrived(), timeout=5)

    async def test_the_whole_call_keeps_to_its_time(self) -> None:
        class Silent:
            async def send(self, *_: Any) -> Response:
                await asyncio.Event().wait()
                raise AssertionError

        with pytest.raises(UpstreamTimeout):
            await self.sender(Silent()).fetch("GET", "http://x/", {}, b"", parent=arrived(), timeout=0.01)

    async def test_the_body_keeps_to_the_same_time(self) -> None:
        async def trickle() -> Any:
            yield b"one"
            await asyncio.Event().wait()

        network = Network(Response(200, body=trickle()))
        response = await self.sender(network).fetch("GET", "http://x/", {}, b"", parent=arrived(), timeout=0.05)
        with pytest.raises(UpstreamTimeout):
            await response.read()


class TestHeadsThatComeAgain:
    """What is noted on a request's head is what would be made anew."""

    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH"])
    async def test_the_head_for_the_service_is_the_one_that_is_made_without_notes(self, method: str) -> None:
        network = Network()
        service = upstream(network)
        head = Head([("Host", "a.test"), ("Content-Length", "3"), ("Via", "1.0 a"), ("X-Forwarded-For", "1.2.3.4")])
        for body in (b"", b"abc", b"0123456789abc", b""):
            exchanges = [arrived(method=method), arrived(method=method)]
            for exchange in exchanges:
                exchange.id = exchanges[0].id
                exchange.request.headers = head.headers(str(len(body)))
                exchange.request.body = BufferedBody(body)
                exchange.match = exchanges[0].match
            exchanges[1].request.headers = Headers(exchanges[1].request.headers.raw)
            for exchange in exchanges:
                await service.send(exchange)
            noted, fresh = (
                given or request_head(request, origin, len(body))
                for (origin, request, _), given in zip(network.sent[-2:], network.heads[-2:], strict=True)
            )
            assert noted == fresh
        assert any(network.heads)

    async def test_an_answers_headers_go_on_as_they_would_without_notes(self) -> None:
        head = Head([("Server", "x"), ("Content-Length", "2"), ("Connection", "keep-alive"), ("Via", "1.1 b")])
        network = Network(*(Response(200, head.headers(length), b"") for length in ("2", "33", "2")))
        service = upstream(network)
        for length in ("2", "33", "2"):
            response = await service.send(arrived())
            assert response.headers.raw == proxied(head.headers(length).raw)
            response.headers.add("X-More", "1")
            assert response.headers.get("content-length") == length
