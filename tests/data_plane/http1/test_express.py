"""Requests that ride from socket to socket: whatever happens on the way, they end as the ordinary way ends them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from data_plane.http1 import turn
from data_plane.http1.client_connection import ClientConnection
from data_plane.http1.express import MAX_BODY
from data_plane.http1.server_connection import ServerConnection
from tests.data_plane.http1.peers import PATIENCE, Peer
from tests.data_plane.stage import GET, OK, WARM, Asked, Rides, Stage, end_turn, impersonal, post, stage

LARGE = 30_000
"""Bytes of a body that still rides."""


@pytest.fixture
def rides(monkeypatch: pytest.MonkeyPatch) -> Rides:
    return Rides(monkeypatch)


async def riding(play: Stage, client: Peer, request: bytes = GET) -> Asked:
    """A request under way, as the service got it."""
    await client.send(request)
    return await play.asked()


def answer(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, b"Date: now", *fields, b"Content-Length: %d" % len(body), b"", body))


async def settled(play: Stage) -> None:
    """All is told, and nothing is under way."""
    runtime = play.node.worker.pipeline.runtime
    async with asyncio.timeout(PATIENCE):
        while runtime.exchanges:  # noqa: ASYNC110 (nobody announces it)
            await asyncio.sleep(0)


def outcomes(play: Stage) -> list[tuple[int, str, str]]:
    return [(event.status, event.outcome, event.error_kind) for event in play.node.events[WARM:]]


DONE = (200, "complete", "")
LEFT = (499, "client_closed", "")


async def test_a_plain_request_rides(rides: Rides) -> None:
    async with stage() as play:
        client = await play.warm()
        asked = await riding(play, client)
        assert rides.all == (1, 0, 0, 0)
        asked.say(OK)
        assert (await client.receive())[::2] == (200, b"ok")
        assert rides.all == (1, 1, 0, 0)
        assert outcomes(play) == [DONE]
        assert asked.data.count(b"\r\n\r\n") == 1


async def test_an_event_that_cannot_be_reported_harms_nobody(
    rides: Rides, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: bytes) -> None:
        raise OSError("disk full")

    async with stage() as play:
        client = await play.warm()
        reporter = play.node.worker.pipeline.reporter
        with monkeypatch.context() as patch:
            patch.setattr(reporter, "report", broken)
            (await riding(play, client)).say(OK)
            assert (await client.receive())[0] == 200
            await settled(play)
        assert "could not be reported" in caplog.text
        (await riding(play, client)).say(OK)
        assert (await client.receive())[0] == 200
        assert rides.all == (2, 2, 0, 0)
        assert play.server.connections == 1


class TestTheServiceMisbehaves:
    """Each answer takes the place of a plain one, to a ride that is under way."""

    @pytest.mark.parametrize("cut", [1, 12, 20, len(OK) - 2, len(OK) - 1])
    async def test_an_answer_in_two_pieces(self, rides: Rides, cut: int) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = riders(play)
            reader = behind_of(server)._reader
            asked.say(OK[:cut])
            await until(lambda: reader.began)
            asked.say(OK[cut:])
            assert (await client.receive())[::2] == (200, b"ok")
            assert outcomes(play) == [DONE]
            assert rides.all == (1, 1, 0, 0)

    @pytest.mark.parametrize(
        ("said", "status", "body"),
        [
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, b"ab"),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
            (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"ok"),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x"),
            (answer(b"other", b"X: y"), 200, b"other"),
            (answer(b"ok", b"Connection: close"), 200, b"ok"),
            (answer(b"no", status=b"503 Busy"), 503, b"no"),
            (b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n", 204, b""),
            (answer(b"x" * 40_000), 200, b"x" * 40_000),
        ],
    )
    async def test_an_answer_that_is_not_like_the_last(
        self, rides: Rides, said: bytes, status: int, body: bytes
    ) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.say(said)
            assert (await client.receive())[::2] == (status, body)
            assert outcomes(play) == [(status, "complete", "")]
            assert rides.all == ((1, 0, 1, 0) if len(body) > MAX_BODY else (1, 1, 0, 0))
            assert (await again(play, client))[::2] == (200, b"ok")

    @pytest.mark.parametrize("said", [OK, answer(b"ok", b"X: y")])
    async def test_bytes_behind_an_answer_that_waits_for_its_turn_end_its_connection_only(
        self, rides: Rides, said: bytes
    ) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = riders(play)
            behind = behind_of(server)
            behind.data_received(said)
            behind.data_received(OK)
            assert (await client.receive())[::2] == (200, b"ok")
            await asked.broken()
            assert outcomes(play) == [DONE]
            assert (await again(play, client))[::2] == (200, b"ok")

    async def test_no_deadline_runs_for_an_answer_that_waits_for_its_turn(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            await riding(play, client)
            (server,) = riders(play)
            behind = behind_of(server)
            behind.data_received(OK)
            behind._expired()
            assert (await client.receive())[::2] == (200, b"ok")
            assert outcomes(play) == [DONE]
            assert rides.all == (1, 1, 0, 0)

    async def test_a_stream_comes_piece_by_piece(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nDate: now\r\n\r\n1\r\na\r\n")
            head = await asyncio.wait_for(client.reader.readuntil(b"1\r\na\r\n"), PATIENCE)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            asked.say(b"1\r\nb\r\n0\r\n\r\n")
            assert await client.reader.readexactly(len(b"1\r\nb\r\n0\r\n\r\n")) == b"1\r\nb\r\n0\r\n\r\n"
            await settled(play)
            assert outcomes(play) == [DONE]
            assert rides.derailed == 1

    @pytest.mark.parametrize(
        ("said", "kind"),
        [
            (b"rubbish\r\n\r\n", "protocol"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "protocol"),
            (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", "protocol"),
        ],
    )
    async def test_rubbish_is_502(self, rides: Rides, said: bytes, kind: str) -> None:
        async with stage(service={"retries": 0}) as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.say(said)
            assert (await client.receive())[0] == 502
            await asked.broken()
            assert outcomes(play) == [(502, "complete", kind)]
            assert rides.all == (1, 0, 1, 0)

    @pytest.mark.parametrize("request_", [GET, post(b"hello")])
    async def test_a_kept_connection_that_closes_instead_of_answering_is_replaced_once(
        self, rides: Rides, request_: bytes
    ) -> None:
        async with stage(service={"retries": 0}) as play:
            client = await play.warm(request_)
            asked = await riding(play, client, request_)
            asked.leave()
            second = await play.asked()
            assert second.data == asked.data
            second.say(OK)
            assert (await client.receive())[::2] == (200, b"ok")
            assert outcomes(play) == [DONE]
            assert play.server.connections == 2
            assert rides.all == (1, 0, 1, 0)

    @pytest.mark.parametrize("retries", [0, 2])
    async def test_that_happens_as_often_as_the_service_allows(self, rides: Rides, retries: int) -> None:
        async with stage(service={"retries": retries}) as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.leave()
            for _ in range(1 + retries):
                (await play.asked()).leave()
            assert (await client.receive())[0] == 502
            assert outcomes(play) == [(502, "complete", "reset")]
            assert len(play.requests) == WARM + 2 + retries
            assert rides.derailed == 1

    @pytest.mark.parametrize(("request_", "status"), [(GET, 200), (post(b"hello"), 502)])
    async def test_what_may_have_been_done_is_not_done_twice(
        self, rides: Rides, request_: bytes, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The service closes late: it may have begun to work."""
        monkeypatch.setattr("data_plane.http1.client._RACE", -1.0)
        async with stage() as play:
            client = await play.warm(request_)
            asked = await riding(play, client, request_)
            play.answer = OK
            asked.leave()
            assert (await client.receive())[0] == status
            assert len(play.requests) == WARM + 1 + (status == 200)
            assert len(outcomes(play)) == 1
            assert rides.derailed == 1

    @pytest.mark.parametrize("cut", [1, len(OK) - 1])
    async def test_an_answer_cut_short_is_502_where_it_may_not_be_asked_again(self, rides: Rides, cut: int) -> None:
        async with stage() as play:
            client = await play.warm(post(b"x"))
            asked = await riding(play, client, post(b"x"))
            asked.leave(OK[:cut])
            assert (await client.receive())[0] == 502
            assert outcomes(play) == [(502, "complete", "reset")]
            assert len(play.requests) == WARM + 1
            assert rides.all == (1, 0, 1, 0)

    async def test_silence_is_504(self, rides: Rides) -> None:
        async with stage(service={"read_timeout": 40, "retries": 0}) as play:
            client = await play.warm()
            asked = await riding(play, client)
            status, fields, _ = await client.receive()
            assert status == 504
            await asked.broken()
            (event,) = play.node.events[WARM:]
            assert (event.error_kind, event.source, event.upstream_status) == ("timeout_read", "gateway_error", 0)
            assert event.request_id.hex() == fields["x-kong-request-id"]
            assert event.request_id.hex().encode() in asked.data
            assert event.upstream_us >= 39_000  # A loop's timers know milliseconds.
            assert event.total_us >= event.upstream_us + event.receive_us
            assert rides.all == (1, 0, 1, 0)

    @pytest.mark.parametrize("surplus", [b"x", b"\0", OK, b"HTTP/1.1 200 OK\r\n"])
    async def test_what_comes_behind_an_answer_reaches_nobody(self, rides: Rides, surplus: bytes) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.say(OK + surplus)
            assert (await client.receive())[::2] == (200, b"ok")
            await asked.broken()
            other = await play.connect()
            other_ok = answer(b"for the other")
            await other.send(GET)
            (await play.asked()).say(other_ok)
            assert (await other.receive())[::2] == (200, b"for the other")
            assert play.server.connections == 2
            assert rides.all == (1, 1, 0, 0)

    async def test_an_answer_nobody_asked_for_reaches_nobody(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.say(OK)
            await client.receive()
            asked.say(answer(b"unasked"))
            await asked.broken()
            assert (await again(play, client))[::2] == (200, b"ok")
            assert rides.arrived == 1

    @pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
    async def test_a_body_behind_an_answer_that_has_none_reaches_nobody(self, rides: Rides, status: bytes) -> None:
        """The length of such an answer is not that of its body, though the bytes behind it may be as many."""
        bare = answer(b"", status=status)
        async with stage() as play:
            client = await play.warm(GET, bare)
            asked = await riding(play, client)
            asked.say(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status=status))
            assert (await client.receive())[0] == int(status[:3])
            await asked.broken()
            assert (await again(play, client))[::2] == (200, b"ok")
            assert rides.boarded == 1


def behind_of(server: ServerConnection) -> ClientConnection:
    """What a client's ride goes over."""
    assert server._ride is not None
    assert server._ride.behind is not None
    return server._ride.behind


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (nobody announces it)
            await asyncio.sleep(0)


async def again(play: Stage, client: Peer, request: bytes = GET) -> tuple[int, dict[str, str], bytes]:
    """One more exchange, which the service answers as ever."""
    play.answer = OK
    return await client.exchange(request)


class TestManyAtOnce:
    @pytest.mark.parametrize("strange", [False, True])
    async def test_more_answers_in_one_turn_than_wait_for_each_other(self, rides: Rides, strange: bool) -> None:
        """Each goes to who asked, and each connection is free once."""
        count = turn._MOST + 5
        async with stage() as play:
            clients = [await play.warm() for _ in range(count)]
            for is_last in (
                False,
                True,
            ):  # The first time there are too few connections, and all but one go ordinarily.
                for client in clients:
                    await client.send(GET)
                asked = [await play.asked() for _ in clients]
                for one in () if is_last else asked:
                    one.say(OK)
                for client in () if is_last else clients:
                    await client.receive()
            connections = {peer.writer.get_extra_info("sockname")[1]: peer for peer in clients}
            riding = {connections[server.peer[1]]: behind_of(server) for server in riders(play)}
            assert len(set(riding.values())) == count
            for number, client in enumerate(clients):
                riding[client].data_received(answer(b"%d" % number, *([b"X: %d" % number] if strange else [])))
            for number, client in enumerate(clients):
                assert (await client.receive())[::2] == (200, b"%d" % number)
            assert outcomes(play)[-count:] == [DONE] * count
            (pool,) = play.node.worker._client._pools.values()
            assert set(riding.values()) <= set(pool.kept)
            assert len(set(pool.kept)) == len(pool.kept)


class TestTheClientMisbehaves:
    async def test_one_that_leaves_ends_the_services_work(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            assert play.node.worker.pipeline.runtime.exchanges == 1
            await client.close()
            await asked.broken()
            await settled(play)
            assert outcomes(play) == [LEFT]
            assert rides.all == (1, 0, 0, 1)
            (event,) = play.node.events[WARM:]
            assert event.request_id.hex().encode() in asked.data
            assert event.upstream_status == 0
            assert event.total_us >= event.upstream_us > 0

    async def test_one_that_leaves_takes_no_other_ride_with_it(
        self, rides: Rides, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer comes, derails, and frees its connection for another client's ride; then the first one leaves, all
        before its task could look."""
        async with stage() as play:
            one, two = await play.warm(), await play.warm()
            connections = {peer.writer.get_extra_info("sockname")[1]: peer for peer in (one, two)}
            asked = await riding(play, one)
            servers = {c.peer[1]: c for c in play.node.worker._server._connections if c.peer[1] in connections}
            first = servers[one.writer.get_extra_info("sockname")[1]]
            second = servers[two.writer.get_extra_info("sockname")[1]]
            behind_of(first).data_received(answer(b"x" * 40_000))
            end_turn()
            assert rides.derailed == 1
            second.data_received(GET)
            end_turn()
            assert rides.boarded == 2
            first.eof_received()
            assert (await play.asked()).data != asked.data
            asked.say(OK)
            assert (await two.receive())[::2] == (200, b"ok")
            assert sorted(outcomes(play)[WARM:]) == [DONE, LEFT]

    async def test_one_that_leaves_while_its_ride_has_derailed(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            asked.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            await until(lambda: rides.derailed)
            await client.close()
            await asked.broken()
            await settled(play)
            assert outcomes(play) == [(200, "client_closed", "")]

    @pytest.mark.parametrize("said", [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"])
    async def test_one_that_leaves_the_very_moment_its_ride_derails(self, rides: Rides, said: bytes) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = riders(play)
            server.is_draining = True  # so that even a plain answer derails
            behind_of(server).data_received(said)
            end_turn()
            server.eof_received()
            if said != OK:
                await asked.broken()
            await settled(play)
            assert outcomes(play) == [LEFT]
            assert rides.all == (1, 0, 1, 1)

    async def test_one_that_leaves_before_its_ride_begins(self, rides: Rides) -> None:
        async with stage() as play:
            await play.warm()
            (server,) = servers(play)
            asked = len(play.requests)
            server.data_received(GET)
            server.eof_received()
            end_turn()
            await settled(play)
            assert (len(play.requests), outcomes(play)) == (asked, [])
            assert rides.all == (0, 0, 0, 0)

    async def test_one_that_leaves_before_its_answer_is_looked_at(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = riders(play)
            behind_of(server).data_received(OK)
            server.eof_received()
            await asked.broken()
            await settled(play)
            assert outcomes(play) == [LEFT]
            assert rides.all == (1, 0, 0, 1)

    async def test_half_closing_is_leaving(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            client.writer.write_eof()
            assert await client.rest() == b""
            await asked.broken()
            await settled(play)
            assert outcomes(play) == [LEFT]
            assert rides.abandoned == 1

    async def test_half_closing_is_not_leaving_where_it_is_told_not_to_be(self, rides: Rides) -> None:
        async with stage() as play:
            limits = play.node.worker._server._limits
            object.__setattr__(limits, "half_close_is_leaving", False)
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = servers(play)
            client.writer.write_eof()
            await until(lambda: server._eof)
            asked.say(OK)
            assert (await client.rest()).endswith(b"ok")
            assert outcomes(play) == [DONE]
            assert rides.arrived == 1

    @pytest.mark.parametrize("count", [2, 3, 16, 20])
    @pytest.mark.parametrize("segments", ["one", "each its own", "all but halves"])
    async def test_pipelined_requests_are_answered_in_order(self, rides: Rides, count: int, segments: str) -> None:
        async with stage() as play:
            client = await play.warm(post(b"x"))
            bodies = [b"%d" % number * (number + 1) for number in range(count)]
            requests = [post(body) if number % 3 else post(body, b"X: odd") for number, body in enumerate(bodies)]
            requests[0] = post(bodies[0])
            pieces = {
                "one": [b"".join(requests)],
                "each its own": requests,
                "all but halves": [half for one in requests for half in (one[:40], one[40:])],
            }[segments]
            (server,) = servers(play)
            for piece in pieces:
                server.data_received(piece)
            for body in bodies:
                asked = await play.asked()
                assert asked.data.endswith(b"\r\n\r\n" + body)
                asked.say(answer(b"to " + body))
                assert (await client.receive())[::2] == (200, b"to " + body)
            assert rides.boarded == (segments == "each its own")
            assert outcomes(play) == [DONE] * count

    @pytest.mark.parametrize("first", [OK, answer(b"first", b"X: derails")])
    async def test_what_comes_behind_a_ride_waits_for_its_answer(self, rides: Rides, first: bytes) -> None:
        """Though there would be a connection to the service for it, too."""
        async with stage() as play:
            client, other = await play.warm(), await play.warm()
            both = [await riding(play, one) for one in (client, other)]
            for one, asked in zip((client, other), both, strict=True):
                asked.say(OK)
                await one.receive()
            boarded = rides.boarded
            asked = await riding(play, client)
            (server,) = riders(play)
            server.data_received(GET)
            server.data_received(GET.replace(b"/a", b"/a/third"))
            assert len(server._queue) == 2
            assert rides.boarded == boarded + 1
            asked.say(first)
            assert (await client.receive())[2] == first[-len(first.partition(b"\r\n\r\n")[2]) :]
            second = await play.asked()
            assert second.data.startswith(b"GET /a HTTP")
            second.say(OK)
            assert (await client.receive())[0] == 200
            third = await play.asked()
            assert third.data.startswith(b"GET /a/third HTTP")
            third.say(OK)
            assert (await client.receive())[0] == 200

    async def test_the_next_requests_first_half_may_come_while_one_rides(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = servers(play)
            await client.send(GET[:10])
            await until(lambda: server._reader.in_head)
            asked.say(OK)
            await client.receive()
            await client.send(GET[10:])
            (await play.asked()).say(answer(b"second"))
            assert (await client.receive())[::2] == (200, b"second")
            assert outcomes(play) == [DONE, DONE]
            assert rides.all == (1, 1, 0, 0)

    async def test_a_half_that_stays_one_times_out(self, rides: Rides) -> None:
        async with stage({"head_timeout": 0.05}) as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = servers(play)
            await client.send(GET[:10])
            await until(lambda: server._reader.in_head)
            asked.say(OK)
            assert (await client.receive())[0] == 200
            assert (await client.receive())[0] == 408
            assert rides.arrived == 1

    async def test_rubbish_behind_a_ride_is_refused_after_its_answer(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = servers(play)
            await client.send(b"rubbish\r\n\r\n")
            await until(lambda: server._queue)
            asked.say(OK)
            assert (await client.receive())[0] == 200
            assert (await client.receive())[0] == 400
            assert rides.arrived == 1

    async def test_a_body_may_come_slowly_behind_a_ride(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            slow = post(b"slow")
            (server,) = servers(play)
            await client.send(slow[:-2])
            await until(lambda: server._queue)
            asked.say(OK)
            assert (await client.receive())[0] == 200
            await client.send(slow[-2:])
            asked = await play.asked()
            assert asked.data.endswith(b"\r\n\r\nslow")
            asked.say(OK)
            assert (await client.receive())[0] == 200
            assert outcomes(play) == [DONE, DONE]
            assert rides.arrived == 1

    async def test_an_idle_client_is_closed_in_time_after_a_ride(self, rides: Rides) -> None:
        async with stage({"keepalive_timeout": 0.1}) as play:
            client = await play.warm()
            (await riding(play, client)).say(OK)
            assert (await client.receive())[0] == 200
            assert await client.rest() == b""
            assert rides.arrived == 1

    async def test_a_ride_may_take_longer_than_a_client_may_be_idle(self, rides: Rides) -> None:
        async with stage({"keepalive_timeout": 0.05}) as play:
            client = await play.warm()
            asked = await riding(play, client)
            (server,) = servers(play)
            await until(lambda: server._watchdog._due == float("inf"))  # It came, and found a ride.
            asked.say(OK)
            assert (await client.receive())[0] == 200
            assert rides.arrived == 1

    @pytest.mark.parametrize(("size", "rode"), [(LARGE, 1), (32 * 1024, 1), (32 * 1024 + 1, 0), (300_000, 0)])
    async def test_large_bodies_go_the_ordinary_way(self, rides: Rides, size: int, rode: int) -> None:
        async with stage() as play:
            client = await play.warm(post(b"x"))
            (server,) = servers(play)
            play.answer = OK
            server.data_received(post(b"y" * size))
            assert (await client.receive())[0] == 200
            assert play.requests[-1].endswith(b"\r\n\r\n" + b"y" * size)
            assert rides.boarded == rode
            assert play.node.events[-1].request_size == len(post(b"y" * size))

    async def test_a_body_may_not_be_larger_than_allowed(self, rides: Rides) -> None:
        async with stage({"max_body_size": 10}) as play:
            client = await play.warm(post(b"x"))
            (await riding(play, client, post(b"x" * 10))).say(OK)
            assert (await client.receive())[0] == 200
            await client.send(post(b"x" * 11))
            assert (await client.receive())[0] == 413
            assert rides.all == (1, 1, 0, 0)
            assert [event.status for event in play.node.events[WARM:]] == [200, 413]

    async def test_a_head_may_not_be_larger_than_allowed_by_a_digit_either(self, rides: Rides) -> None:
        largest = post(b"x", b"X: " + b"y" * 300)
        async with stage({"max_head_size": len(largest) - 1}) as play:
            client = await play.warm(largest)
            play.answer = OK
            assert (await client.exchange(largest))[0] == 200
            assert (await client.exchange(post(b"x" * 10, b"X: " + b"y" * 300)))[0] == 400


def servers(play: Stage) -> list[ServerConnection]:
    """The gateway's ends of its clients' connections."""
    return list(play.node.worker._server._connections)


def riders(play: Stage) -> list[ServerConnection]:
    return [server for server in servers(play) if server._ride is not None]


class TestASlowClient:
    async def test_its_answers_are_not_done_before_it_takes_them(self, rides: Rides) -> None:
        """It sends requests and reads nothing: one answer may wait for it, and the rest goes the ordinary way."""
        large = answer(b"x" * LARGE)
        async with stage() as play:
            client = await play.warm(GET, large)
            play.answer = large
            (server,) = servers(play)
            client.writer.transport.pause_reading()
            transport = Slow(server._transport)
            server._transport = transport  # type: ignore[assignment]
            server._writer._transport = transport  # type: ignore[assignment]
            server.data_received(GET)
            await until(lambda: rides.arrived == 1)
            transport.waiting = LARGE
            server.data_received(GET)
            await until(lambda: len(outcomes(play)) == 2)
            assert rides.boarded == 1

    async def test_one_that_takes_nothing_is_left(self, rides: Rides) -> None:
        async with stage() as play:
            large = answer(b"x" * LARGE)
            client = await play.warm(GET, large)
            play.answer = large
            assert (await client.exchange(GET))[0] == 200
            assert rides.arrived == 1
            (server,) = servers(play)
            object.__setattr__(server._limits, "write_timeout", 0.05)
            client.writer.transport.pause_reading()
            while not server._lost:
                await client.send(GET)
                await asyncio.sleep(0)
            await settled(play)
            assert len(play.node.events) == len(play.requests)
            assert set(outcomes(play)) == {DONE, (200, "client_closed", "")}


class Slow:
    """A transport of which a client takes nothing any more."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.waiting = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TestShutdown:
    async def test_a_ride_under_way_gets_its_answer_and_is_told_to_close(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client)
            stopping = asyncio.create_task(play.node.worker._server.drain(PATIENCE))
            await until(lambda: all(server.is_draining for server in servers(play)))
            asked.say(OK)
            status, fields, body = await client.receive()
            assert (status, fields.get("connection"), body) == (200, "close", b"ok")
            assert await client.rest() == b""
            await stopping
            assert outcomes(play) == [DONE]
            assert rides.all == (1, 0, 1, 0)

    async def test_no_ride_begins_while_the_server_drains(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            stopping = asyncio.create_task(play.node.worker._server.drain(PATIENCE))
            await until(lambda: all(server.is_draining for server in servers(play)))
            status, fields, _ = await again(play, client)
            assert (status, fields.get("connection")) == (200, "close")
            await stopping
            assert rides.boarded == 0

    @pytest.mark.parametrize("way", ["express", "ordinary"])
    async def test_what_takes_too_long_is_broken_off(self, rides: Rides, way: str) -> None:
        async with stage() as play:
            client = await play.warm()
            asked = await riding(play, client, GET if way == "express" else post(b""))
            await play.node.worker._server.drain(0.01)
            await asked.broken()
            await settled(play)
            assert outcomes(play) == [LEFT]
            assert rides.abandoned == (way == "express")


class TestConfigurations:
    async def test_a_new_one_counts_at_once(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            play.answer = OK
            assert (await client.exchange(GET))[0] == 200
            assert rides.boarded == 1
            await play.node.apply(play.document(more={"plugins": [{"name": "key-auth"}]}), 2)
            assert (await client.exchange(GET))[0] == 401
            await play.node.apply(play.document(paths=["/other"]), 3)
            assert (await client.exchange(GET))[0] == 404
            await play.node.apply(play.document(paths=["/a"], protocols=["https"]), 4)
            assert (await client.exchange(GET))[0] == 426
            assert len(play.requests) == WARM + 1
            await play.node.apply(play.document(), 5)
            assert [(await client.exchange(GET))[0] for _ in range(3)] == [200] * 3
            assert [event.config_version for event in play.node.events[WARM:]] == [1, 2, 3, 4, 5, 5, 5]

    async def test_a_services_new_address_counts_at_once(self, rides: Rides) -> None:
        async with stage() as play, stage() as elsewhere:
            client = await play.warm()
            elsewhere.answer = answer(b"elsewhere")
            await play.node.apply(elsewhere.document(), 2)
            for _ in range(3):
                assert (await client.exchange(GET))[::2] == (200, b"elsewhere")
            assert len(play.requests) == WARM
            assert rides.arrived == 2

    async def test_a_ride_ends_in_the_one_it_began_in(self, rides: Rides, monkeypatch: pytest.MonkeyPatch) -> None:
        async with stage() as play:
            pipeline = play.node.worker.pipeline
            closed: list[Any] = []
            close = pipeline._close
            monkeypatch.setattr(pipeline, "_close", lambda runtime: (closed.append(runtime.version), close(runtime)))
            one, two = await play.warm(), await play.warm()
            for _ in range(2):  # First to make two connections to the service.
                asked, other = await riding(play, one), await riding(play, two)
                asked.say(OK)
                other.say(OK)
                await one.receive()
                await two.receive()
            arrived = rides.arrived
            asked, other = await riding(play, one), await riding(play, two)
            await play.node.apply(play.document(more={"plugins": [{"name": "key-auth"}]}), 2)
            assert closed == []
            asked.say(OK)
            assert (await one.receive())[0] == 200
            assert closed == []
            await one.send(GET)
            assert (await one.receive())[0] == 401
            other.say(OK)
            assert (await two.receive())[0] == 200
            assert closed == [1]
            assert [event.config_version for event in play.node.events[2 * WARM + 4 :]] == [1, 2, 1]
            assert rides.arrived == arrived + 2

    @pytest.mark.parametrize("end", ["derails", "is left", "times out"])
    async def test_the_old_one_ends_however_its_last_ride_ends(self, rides: Rides, end: str) -> None:
        async with stage(service={"read_timeout": 300, "retries": 0}) as play:
            old = play.node.worker.pipeline.runtime
            client = await play.warm()
            asked = await riding(play, client)
            await play.node.apply(play.document(), 2)
            assert old in play.node.worker.pipeline._retired
            if end == "derails":
                asked.say(answer(b"x", b"X: y"))
                assert (await client.receive())[0] == 200
            elif end == "is left":
                await client.close()
                await asked.broken()
            else:
                assert (await client.receive())[0] == 504
            await until(lambda: old.exchanges == 0)
            assert old not in play.node.worker.pipeline._retired
            assert len(outcomes(play)) == 1
            assert play.node.events[-1].config_version == 1
            assert rides.boarded == 1

    async def test_nothing_keeps_the_old_one_alive(self, rides: Rides) -> None:
        async with stage() as play:
            client = await play.warm()
            (await riding(play, client)).say(OK)
            await client.receive()
            old = weakref.ref(play.node.worker.pipeline.runtime)
            await play.node.apply(play.document(paths=["/a", "/b"]), 2)
            await asyncio.sleep(0)
            gc.collect()
            assert old() is None
            assert rides.arrived == 1


class TestWhatALineKnows:
    """What the service and the client are told differs from client to client, and from head to head."""

    @pytest.mark.parametrize("protocols", [["https"], ["grpc"]])
    async def test_a_route_for_https_is_not_passed_on_ever(self, rides: Rides, protocols: list[str]) -> None:
        async with stage() as play:
            await play.warm()  # A connection to the service is there.
            play.answer = OK
            await play.node.apply(play.document(protocols=protocols), 2)
            client = await play.connect()
            for _ in range(6):
                assert (await client.exchange(GET))[0] == 426
            assert len(play.requests) == WARM
            assert rides.boarded == 0

    @pytest.mark.parametrize("trusted", [(), ("127.0.0.0/8",)])
    async def test_a_proxy_is_believed_where_it_is_trusted(self, rides: Rides, trusted: tuple[str, ...]) -> None:
        claims = (
            b"X-Real-IP: 9.9.9.9\r\nX-Forwarded-For: 8.8.8.8\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: e\r\n"
        )
        request = GET[:-2] + claims + b"X-Forwarded-Prefix: /p\r\n\r\n"
        async with stage({"trusted_ips": trusted}) as play:
            client = await play.warm(request)
            asked = await riding(play, client, request)
            asked.say(OK)
            await client.receive()
            assert rides.all == (1, 1, 0, 0)
            assert same_but_for_its_id(asked.data, play.requests[0])
            assert b"X-Forwarded-For: 8.8.8.8, 127.0.0.1\r\n" in asked.data
            assert (b"X-Real-IP: 9.9.9.9\r\n" in asked.data) == bool(trusted)
            assert (b"X-Forwarded-Proto: https\r\n" in asked.data) == bool(trusted)
            assert (b"X-Forwarded-Prefix: /p\r\n" in asked.data) == bool(trusted)
            event = play.node.events[-1]
            assert (event.client_ip, event.scheme) == (("9.9.9.9", "https") if trusted else ("127.0.0.1", "http"))

    async def test_what_a_trusted_proxy_says_anew_counts_anew(self, rides: Rides) -> None:
        async with stage({"trusted_ips": ("127.0.0.1",)}) as play:
            first, second = (GET[:-2] + b"X-Real-IP: 9.9.9.%d\r\n\r\n" % number for number in (1, 2))
            client = await play.warm(first)
            play.answer = OK
            for request in (first, second, second, second, second, first):
                await client.exchange(request)
            said = [event.client_ip for event in play.node.events[WARM:]]
            assert said == ["9.9.9.1", *["9.9.9.2"] * 4, "9.9.9.1"]
            assert rides.arrived == 3

    @pytest.mark.parametrize("preserve_host", [False, True])
    @pytest.mark.parametrize("strip_path", [False, True])
    async def test_paths_and_hosts_are_the_routes(self, rides: Rides, preserve_host: bool, strip_path: bool) -> None:
        async with stage(preserve_host=preserve_host, strip_path=strip_path) as play:
            request = b"GET /a/b?c=/a HTTP/1.1\r\nHost: One.example:99\r\n\r\n"
            client = await play.warm(request)
            asked = await riding(play, client, request)
            asked.say(OK)
            await client.receive()
            assert rides.all == (1, 1, 0, 0)
            assert same_but_for_its_id(asked.data, play.requests[0])
            assert asked.data.startswith(b"GET /b?c=/a HTTP" if strip_path else b"GET /a/b?c=/a HTTP")
            assert (b"Host: One.example:99\r\n" in asked.data) == preserve_host
            assert (b"X-Forwarded-Prefix: /a\r\n" in asked.data) == strip_path

    async def test_clients_of_several_hosts_share_the_services_connection(self, rides: Rides) -> None:
        async with stage(preserve_host=True) as play:
            requests = [GET.replace(b"h\r", b"host%d\r" % number) for number in range(3)]
            clients = [await play.warm(request) for request in requests]
            for _ in range(2):
                for number, (client, request) in enumerate(zip(clients, requests, strict=True)):
                    asked = await riding(play, client, request)
                    assert b"\r\nHost: host%d\r\n" % number in asked.data
                    asked.say(answer(b"%d" % number))
                    assert (await client.receive())[2] == b"%d" % number
            assert play.server.connections == 1
            assert rides.arrived == 6

    @pytest.mark.parametrize(
        ("request_", "rode"),
        [
            (GET, 1),
            (GET.replace(b"GET", b"OPTIONS"), 1),
            (GET.replace(b"GET", b"DELETE"), 1),
            (GET.replace(b"GET", b"POST"), 1),
            (post(b""), 1),
            (post(b"x").replace(b"POST", b"PUT"), 1),
            (post(b"x").replace(b"POST", b"PATCH"), 1),
            (post(b"x").replace(b"POST", b"GET"), 0),
            (post(b"").replace(b"POST", b"GET"), 0),
            (post(b"x").replace(b"POST", b"DELETE"), 0),
        ],
    )
    async def test_methods_with_and_without_bodies(self, rides: Rides, request_: bytes, rode: int) -> None:
        async with stage() as play:
            client = await play.warm(request_)
            asked = await riding(play, client, request_)
            asked.say(OK)
            assert (await client.receive())[::2] == (200, b"ok")
            assert same_but_for_its_id(asked.data, play.requests[0])
            assert rides.arrived == rode

    async def test_a_head_only_answer_has_no_body(self, rides: Rides) -> None:
        head = GET.replace(b"GET", b"HEAD")
        bare = OK[:-2]
        async with stage() as play:
            client = await play.connect()
            play.answer = bare
            for _ in range(6):
                status, fields, _ = await client.exchange(head, "HEAD")
                assert (status, fields["content-length"]) == (200, "2")
            assert rides.boarded == 0

    async def test_an_id_of_its_own_in_the_clients_head_is_only_a_word(
        self, rides: Rides, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Should the id that the line was made from stand in the head itself, no line is made."""
        word = "00000000000000000000000000abcdef"
        request = GET[:-2] + b"X-Word: %b\r\nX-Kong-Request-Id: %b\r\n\r\n" % (word.encode(), word.encode())
        async with stage() as play:
            monkeypatch.setattr("data_plane.exchange.new_id", lambda: word)
            client = await play.warm(request)
            monkeypatch.undo()
            asked = await riding(play, client, request)
            assert b"X-Word: %b\r\n" % word.encode() in asked.data
            assert asked.data.count(word.encode()) == 1
            asked.say(OK)
            await client.receive()


def same_but_for_its_id(one: bytes, other: bytes) -> bool:
    return one != other and impersonal(one) == impersonal(other)
