from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from data_plane.errors import ConfigError
from data_plane.messages import Headers, Request, Response
from tests.data_plane.builders import document, entity_id, gateway, service


def proxy(url: str, **route: Any) -> bytes:
    """One route, /a, to one service."""
    fields = {"name": "r", "paths": ["/a"], "service": "s", **route}
    return document(services=[{"name": "s", "url": url}], routes=[fields])


async def test_before_any_configuration_every_request_is_404() -> None:
    async with gateway() as node:
        reply = await node.send("GET", "/anything")
    assert reply.status == 404
    assert reply.json["message"] == "no Route matched with those values"
    assert reply.json["request_id"] == reply.headers.get("X-Kong-Request-Id")
    (event,) = node.events
    assert (event.status, event.source, event.config_version) == (404, "no_route", 0)


async def test_a_request_goes_to_its_service_and_its_answer_back() -> None:
    async def answer(request: Request) -> Response:
        return Response(201, Headers([("Content-Type", "text/x"), ("X-Own", "1")]), await request.body.read())

    async with service(answer) as backend, gateway(proxy(f"{backend.url}/base")) as node:
        reply = await node.send("POST", "/a/b?x=1", {"X-Mine": "2"}, b"ping")
    assert (reply.status, reply.body) == (201, b"ping")
    assert reply.headers.get("X-Own") == "1"
    (request,) = backend.requests
    assert (request.method, request.target, request.headers.get("X-Mine")) == ("POST", "/base/b?x=1", "2")
    assert reply.headers.get("Via") == "1.1 kong/3.15.0"
    assert reply.headers.get("X-Kong-Response-Latency") is None
    for name in ("X-Kong-Upstream-Latency", "X-Kong-Proxy-Latency"):
        assert (reply.headers.get(name) or "").isdigit()


async def test_an_answer_of_our_own_says_so() -> None:
    async with gateway() as node:
        reply = await node.send("GET", "/")
    assert reply.headers.get("Server") == "kong/3.15.0"
    assert (reply.headers.get("X-Kong-Response-Latency") or "").isdigit()
    assert reply.headers.get("Via") is None
    assert reply.headers.get("X-Kong-Upstream-Latency") is None


async def test_the_event_tells_the_whole_exchange() -> None:
    people = {
        "consumers": [{"username": "alice"}],
        "keyauth_credentials": [{"key": "k", "consumer": "alice"}],
        "plugins": [{"name": "key-auth"}],
    }
    async with service() as backend:
        payload = document(
            services=[{"name": "s", "url": backend.url}],
            routes=[{"name": "r", "paths": ["/a"], "service": "s"}],
            **people,
        )
        async with gateway(payload) as node:
            headers = {"Host": "API.example:80", "apikey": "k", "User-Agent": "test/1"}
            reply = await node.send("POST", "/a/secret?apikey=hidden", headers, b"12345")
            await node.ended(1)
    (event,) = node.events
    assert event.request_id.hex() == reply.headers.get("X-Kong-Request-Id")
    assert (event.service_id, event.route_id) == (entity_id("s"), entity_id("r"))
    assert (event.consumer_id, event.credential_id) == (entity_id("alice"), entity_id("k"))
    assert (event.method, event.scheme, event.host, event.path) == ("POST", "http", "api.example", "/a/secret")
    assert (event.user_agent, event.client_ip, event.config_version) == ("test/1", "127.0.0.1", 1)
    assert (event.status, event.upstream_status, event.source, event.outcome) == (200, 200, "upstream", "complete")
    assert event.response_size > len(reply.body)
    assert event.request_size > 5
    assert event.total_us >= event.upstream_us + event.receive_us
    assert event.gateway_us <= event.total_us - event.upstream_us - event.receive_us + 1
    assert event.finished_us - event.started_us == event.total_us
    assert not event.parent_request_id


async def test_an_upstream_that_refuses_is_502_and_one_that_is_silent_504() -> None:
    async def silent(request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with service(silent) as backend:
        payload = document(
            services=[
                {"name": "gone", "host": "127.0.0.1", "port": 1},
                {"name": "silent", "url": backend.url, "read_timeout": 30, "retries": 0},
            ],
            routes=[
                {"name": "g", "paths": ["/gone"], "service": "gone"},
                {"name": "s", "paths": ["/silent"], "service": "silent"},
            ],
        )
        async with gateway(payload) as node:
            gone = await node.send("GET", "/gone", {"Accept": "application/json"})
            late = await node.send("GET", "/silent", {"Accept": "application/json"})
            plain = await node.send("GET", "/silent")
    assert (gone.status, gone.json["message"]) == (502, "An invalid response was received from the upstream server")
    assert (late.status, late.json["message"]) == (504, "The upstream server is timing out")
    assert plain.headers.get("Content-Type") == "text/plain; charset=utf-8"
    assert [event.error_kind for event in node.events] == ["refused", "timeout_read", "timeout_read"]
    assert [event.source for event in node.events] == ["gateway_error"] * 3
    assert [event.upstream_status for event in node.events] == [0] * 3


class TestProtocols:
    async def test_an_https_route_over_http_asks_for_an_upgrade(self) -> None:
        async with gateway(proxy("http://127.0.0.1:1", protocols=["https"])) as node:
            reply = await node.send("GET", "/a")
        assert (reply.status, reply.json["message"]) == (426, "Please use HTTPS protocol")
        assert reply.headers.get("Upgrade") == "TLS/1.2, HTTP/1.1"

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_or_redirects(self, status: int) -> None:
        payload = proxy("http://127.0.0.1:1", protocols=["https"], https_redirect_status_code=status)
        async with gateway(payload) as node:
            reply = await node.send("GET", "/a/b?c=d", {"Host": "example.com:8000"})
        assert (reply.status, reply.headers.get("Location"), reply.body) == (
            status,
            "https://example.com/a/b?c=d",
            b"",
        )

    async def test_a_trusted_proxy_may_say_that_it_was_https(self) -> None:
        async with service() as backend:
            payload = proxy(backend.url, protocols=["https"])
            async with gateway(payload, trusted_ips=("127.0.0.0/8",)) as node:
                reply = await node.send("GET", "/a", {"X-Forwarded-Proto": "https", "X-Real-IP": "9.9.9.9"})
                await node.ended(1)
            assert reply.status == 200
            assert backend.requests[0].headers.get("X-Forwarded-Proto") == "https"
            assert backend.requests[0].headers.get("X-Real-IP") == "9.9.9.9"
        assert (node.events[0].scheme, node.events[0].client_ip) == ("https", "9.9.9.9")

    async def test_a_stranger_may_not(self) -> None:
        async with gateway(proxy("http://127.0.0.1:1", protocols=["https"])) as node:
            assert (await node.send("GET", "/a", {"X-Forwarded-Proto": "https"})).status == 426

    async def test_an_http_route_serves_https_too(self) -> None:
        async with service() as backend:
            payload = proxy(backend.url, protocols=["http"])
            async with gateway(payload, trusted_ips=("127.0.0.1",)) as node:
                assert (await node.send("GET", "/a", {"X-Forwarded-Proto": "https"})).status == 200

    async def test_a_grpc_route_wants_http2(self) -> None:
        payload = proxy("http://127.0.0.1:1", protocols=["grpc"], strip_path=False)
        async with gateway(payload) as node:
            reply = await node.send("GET", "/a")
        assert (reply.status, reply.json["message"]) == (426, "Please use HTTP2 protocol")


async def test_a_target_in_absolute_form_is_routed_by_its_own_host() -> None:
    async with service() as backend, gateway(proxy(backend.url, hosts=["inner.example"])) as node:
        assert (await node.send("GET", "http://inner.example/a?b", {"Host": "other"})).status == 200
        assert (await node.send("GET", "/a?b", {"Host": "other"})).status == 404
        assert backend.requests[0].target == "/?b"


async def test_debug_headers_only_where_they_are_allowed() -> None:
    async with service() as backend:
        for allowed in (True, False):
            async with gateway(proxy(backend.url), allow_debug_header=allowed) as node:
                reply = await node.send("GET", "/a", {"Kong-Debug": "1"})
            assert reply.headers.get("Kong-Route-Name") == ("r" if allowed else None)
            assert reply.headers.get("Kong-Service-Id") == (entity_id("s") if allowed else None)


class TestStreams:
    async def test_pieces_pass_as_they_come_and_one_event_ends_them(self) -> None:
        gate = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await gate.wait()
            yield b"second"

        async def answer(request: Request) -> Response:
            return Response(200, body=pieces())

        async with service(answer) as backend, gateway(proxy(backend.url)) as node:
            response = await node.open("GET", "/a")
            body = aiter(response.body)  # type: ignore[arg-type]
            assert await anext(body) == b"first"
            assert node.events == []
            gate.set()
            assert await anext(body) == b"second"
            await response.close()
            await node.ended(1)
        (event,) = node.events
        assert (event.outcome, event.status) == ("complete", 200)
        assert event.receive_us > 0

    async def test_a_client_that_leaves_midway_stops_the_upstream_and_is_reported_once(self) -> None:
        stopped = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                stopped.set()

        async def answer(request: Request) -> Response:
            return Response(200, body=pieces())

        async with service(answer) as backend, gateway(proxy(backend.url)) as node:
            response = await node.open("GET", "/a")
            await anext(aiter(response.body))  # type: ignore[arg-type]
            await response.close()
            async with asyncio.timeout(5):
                await stopped.wait()
            await node.ended(1)
        (event,) = node.events
        assert (event.outcome, event.status) == ("client_closed", 200)

    async def test_a_client_that_leaves_before_the_head_is_499(self) -> None:
        asked = asyncio.Event()

        async def answer(request: Request) -> Response:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with service(answer) as backend, gateway(proxy(backend.url)) as node:
            waiting = asyncio.create_task(node.send("GET", "/a"))
            await asked.wait()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await node.ended(1)
        (event,) = node.events
        assert (event.status, event.outcome, event.upstream_status) == (499, "client_closed", 0)
        assert event.route_id == entity_id("r")

    async def test_an_upstream_that_breaks_midway_breaks_the_answer(self) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, gateway(proxy(f"http://127.0.0.1:{port}")) as node:
            response = await node.open("GET", "/a")
            with pytest.raises(Exception, match="invalid response"):
                await response.read()
            await response.close()
            await node.ended(1)
        (event,) = node.events
        assert (event.status, event.outcome) == (200, "upstream_closed")


async def test_a_head_that_is_refused_is_counted_once_where_it_is_known_what_was_asked() -> None:
    async with gateway(max_body_size=10) as node:
        reply = await node.send("POST", "/a", {"Content-Type": "application/json"}, b"x" * 100)
        assert (reply.status, reply.json["message"]) == (413, "Payload too large")
        await node.ended(1)
    assert [(event.status, event.error_kind) for event in node.events] == [(413, "payload_too_large")]


async def test_an_upload_that_grows_too_large_on_its_way_is_413() -> None:
    async with service() as backend, gateway(proxy(backend.url), max_body_size=10) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n")
        await writer.drain()
        writer.write(b"8\r\n12345678\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()
        await node.ended(1)
    assert [(event.status, event.error_kind) for event in node.events] == [(413, "payload_too_large")]


class TestSwap:
    def document(self, url: str, version: int) -> bytes:
        """Everything in it says its version: path of the service, name of the consumer, field of the key."""
        return document(
            services=[{"name": "s", "url": f"{url}/v{version}"}],
            routes=[{"name": "r", "paths": ["/a"], "service": "s"}],
            consumers=[{"username": f"user{version}"}],
            keyauth_credentials=[{"key": "k", "consumer": f"user{version}", "id": entity_id(f"key{version}")}],
            plugins=[{"name": "key-auth"}],
        )

    async def test_no_exchange_sees_a_mix(self) -> None:
        async with service() as backend, gateway(self.document(backend.url, 1)) as node:
            done = asyncio.Event()

            async def traffic() -> int:
                count = 0
                while not done.is_set():
                    reply = await node.send("GET", "/a", {"apikey": "k"})
                    assert reply.status == 200
                    count += 1
                return count

            clients = [asyncio.create_task(traffic()) for _ in range(8)]
            for version in range(2, 20):
                await node.apply(self.document(backend.url, version), version)
                await asyncio.sleep(0)
            done.set()
            total = sum(await asyncio.gather(*clients))
            await node.ended(total)
        versions = set()
        for request in backend.requests:
            version = request.target.removeprefix("/v")
            assert request.headers.get("X-Consumer-Username") == f"user{version}"
            assert request.headers.get("X-Credential-Identifier") == entity_id(f"key{version}")
            versions.add(version)
        assert len(versions) > 1
        for event in node.events:
            assert event.consumer_id == entity_id(f"user{event.config_version}")
            assert event.credential_id == entity_id(f"key{event.config_version}")
        assert len(node.events) == total

    async def test_a_stream_finishes_on_the_runtime_it_began_with_which_is_then_closed(self) -> None:
        gate = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await gate.wait()

        async def answer(request: Request) -> Response:
            return Response(200, body=pieces())

        def configuration(backend: str, key_name: str) -> bytes:
            return document(
                services=[{"name": "s", "url": backend}],
                routes=[{"name": "r", "paths": ["/a"], "service": "s"}, {"name": "other", "paths": ["/b"]}],
                plugins=[{"name": "key-auth", "config": {"key_names": [key_name]}, "route": "other"}],
            )

        async with service(answer) as backend, gateway(configuration(backend.url, "old")) as node:
            response = await node.open("GET", "/a")
            (plugin,) = node.worker.pipeline.runtime.plugins
            closed = asyncio.Event()

            async def close() -> None:
                closed.set()

            plugin.handler.close = close  # type: ignore[attr-defined]
            await node.apply(configuration(backend.url, "new"), 2)
            assert (await node.send("GET", "/nowhere")).status == 404
            assert not closed.is_set()
            gate.set()
            assert await response.read() == b"first"
            async with asyncio.timeout(5):
                await closed.wait()
            await node.ended(2)
        assert sorted(event.config_version for event in node.events) == [1, 2]

    async def test_a_configuration_that_cannot_run_leaves_the_old_one(self) -> None:
        async with service() as backend, gateway(proxy(backend.url)) as node:
            with pytest.raises(ConfigError):
                await node.apply(document(plugins=[{"name": "no-such-plugin"}]), 2)
            assert (await node.send("GET", "/a")).status == 200
            await node.ended(1)
        assert node.events[0].config_version == 1


class TestLoopback:
    """Routes that call this very node, by a service whose URL names its own listener."""

    def document(self, backend_url: str, port: int) -> bytes:
        return document(
            services=[
                {"name": "inner", "url": backend_url},
                {"name": "ourselves", "url": f"http://localhost:{port}/inner"},
                {"name": "circle", "url": f"http://127.0.0.1:{port}/circle"},
            ],
            routes=[
                {"name": "inner-route", "paths": ["/inner"], "service": "inner"},
                {"name": "outer-route", "paths": ["/outer"], "service": "ourselves"},
                {"name": "circle-route", "paths": ["/circle"], "service": "circle"},
            ],
            consumers=[{"username": "alice"}],
            keyauth_credentials=[{"key": "k", "consumer": "alice"}],
            plugins=[{"name": "key-auth", "route": "inner-route"}],
        )

    @pytest.mark.parametrize("declared", [True, False])
    async def test_is_a_whole_exchange_of_its_own(self, declared: bool) -> None:
        """By the declared port, which nobody listens on here, and by the port that is really listened on."""
        async with service() as backend, gateway(loopback_ports=frozenset({8000})) as node:
            await node.apply(self.document(backend.url, 8000 if declared else node.port), 1)
            refused = await node.send("GET", "/outer/x")
            reply = await node.send("GET", "/outer/x", {"apikey": "k"})
            assert (refused.status, refused.json["message"]) == (401, "No API key found in request")
            assert (reply.status, reply.body) == (200, b"hello")
            await node.ended(4)
            assert [request.target for request in backend.requests] == ["/x"]
        inner, outer = node.events[2:]
        assert (inner.route_id, outer.route_id) == (entity_id("inner-route"), entity_id("outer-route"))
        assert inner.parent_request_id == outer.request_id.hex() == reply.headers.get("X-Kong-Request-Id")
        assert inner.request_id != outer.request_id
        assert (inner.consumer_id, outer.consumer_id) == (entity_id("alice"), "")
        assert (inner.status, outer.status) == (200, 200)
        assert inner.response_size > len("hello")
        assert reply.headers.get_all("X-Kong-Request-Id") == [outer.request_id.hex()]

    async def test_a_circle_ends(self) -> None:
        async with gateway(loopback_ports=frozenset({8000})) as node:
            await node.apply(self.document("http://127.0.0.1:1", 8000), 1)
            reply = await node.send("GET", "/circle")
            assert reply.status == 508
            await node.ended(6)
        assert len({event.request_id for event in node.events}) == 6
        assert sum(1 for event in node.events if not event.parent_request_id) == 1

    async def test_a_stream_through_ourselves_is_counted_when_it_ends(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"piece"
                await asyncio.sleep(0)

        async def answer(request: Request) -> Response:
            return Response(200, body=pieces())

        async with service(answer) as backend, gateway(loopback_ports=frozenset({8000})) as node:
            await node.apply(self.document(backend.url, 8000), 1)
            reply = await node.send("GET", "/outer", {"apikey": "k"})
            assert reply.body == b"piece" * 3
            await node.ended(2)
        inner, outer = node.events
        assert (inner.outcome, outer.outcome) == ("complete", "complete")
        assert inner.response_size >= 15

    async def test_when_the_client_leaves_both_exchanges_are_reported(self) -> None:
        asked = asyncio.Event()

        async def answer(request: Request) -> Response:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with service(answer) as backend, gateway(loopback_ports=frozenset({8000})) as node:
            await node.apply(self.document(backend.url, 8000), 1)
            waiting = asyncio.create_task(node.send("GET", "/outer", {"apikey": "k"}))
            await asked.wait()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await node.ended(2)
        assert [event.status for event in node.events] == [499, 499]

    async def test_when_the_client_leaves_midway_through_a_stream_both_are_reported(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        async def answer(request: Request) -> Response:
            return Response(200, body=pieces())

        async with service(answer) as backend, gateway(loopback_ports=frozenset({8000})) as node:
            await node.apply(self.document(backend.url, 8000), 1)
            response = await node.open("GET", "/outer", {"apikey": "k"})
            await anext(aiter(response.body))  # type: ignore[arg-type]
            await response.close()
            await node.ended(2)
            assert node.worker.pipeline.runtime.exchanges == 0
        assert [(event.status, event.outcome) for event in node.events] == [(200, "client_closed")] * 2

    async def test_another_port_on_this_machine_is_the_network(self) -> None:
        async with service() as backend, gateway(proxy(backend.url)) as node:
            await node.send("GET", "/a")
            await node.ended(1)
        assert len(backend.requests) == len(node.events) == 1


async def test_many_requests_at_once_are_each_counted_once() -> None:
    async with service() as backend, gateway(proxy(backend.url)) as node:
        targets = [f"/a/{uuid.uuid4()}" for _ in range(200)]
        replies = await asyncio.gather(*(node.send("GET", target) for target in targets))
        await node.ended(200)
        assert all(reply.status == 200 for reply in replies)
        ids = {reply.headers.get("X-Kong-Request-Id") for reply in replies}
        assert {event.request_id.hex() for event in node.events} == ids
        assert node.worker.pipeline.runtime.exchanges == 0
