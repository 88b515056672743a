"""Calls to ourselves, without a socket.

A URL that names this node's own proxy listener is answered by the same pipeline in process: a full exchange of its
own, with its own id, authentication, plugins, log record and analytics event, that inherits nothing but a deadline and
its depth. A call that comes from too deep is refused, so that a route that calls itself ends.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from itertools import chain
from typing import Protocol

from data_plane.deadlines import Deadlines
from data_plane.error_bodies import error_page
from data_plane.errors import LoopDetected, UpstreamTimeout
from data_plane.exchange import MAX_DEPTH, Exchange
from data_plane.http1.server import Sent
from data_plane.messages import Request, Response

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


class Application(Protocol):
    async def answer(self, request: Request, parent: Exchange | None = None) -> tuple[Response, Exchange]: ...

    def finished(self, token: Exchange, response: Response, sent: Sent) -> None: ...


class Loopback:
    """Sends requests to this very node. `attach` gives it the application once there is one."""

    def __init__(self, own_ports: frozenset[int]) -> None:
        self.own_ports = own_ports
        self._application: Application | None = None
        self._deadlines = Deadlines()

    def attach(self, application: Application) -> None:
        self._application = application

    def names_us(self, host: str, port: int) -> bool:
        return port in self.own_ports and host.lower() in _LOOPBACK_HOSTS

    async def send(self, request: Request, parent: Exchange, timeout: float) -> Response:
        """`timeout` in seconds until the head is there. Raises UpstreamTimeout. The response must be closed."""
        assert self._application is not None, "a loopback call before the pipeline exists"
        if parent.depth >= MAX_DEPTH:
            return error_page(LoopDetected(), parent.id, request.headers, request.method)
        if parent.deadline is not None:
            timeout = min(timeout, parent.deadline - time.monotonic())
        try:
            with self._deadlines.within(timeout):
                response, exchange = await self._application.answer(request, parent)
        except TimeoutError:
            raise UpstreamTimeout("timeout_read", "a call to ourselves took too long", sent=True) from None
        return _deliver(self._application, exchange, response, request.method)


def _deliver(application: Application, exchange: Exchange, response: Response, method: str) -> Response:
    """The response for whoever called: the same, but closing it ends the exchange."""
    delivery = _Delivery(application, exchange, response)
    body = response.body
    if method == "HEAD":
        body = b""
    if isinstance(body, bytes):
        delivery.complete = True
        delivery.size += len(body)
    else:
        body = delivery.pieces(body)
    outer = Response(response.status, response.headers, body, source=response.source, reason=response.reason)
    outer.on_close(delivery.end)
    return outer


_STATUS_LINE = len("HTTP/1.1 200 OK\r\n\r\n")
_PER_FIELD = len(": \r\n")


class _Delivery:
    """Watches a response being consumed in process, and tells the application once when it is over."""

    __slots__ = ("_application", "_exchange", "_response", "complete", "size")

    def __init__(self, application: Application, exchange: Exchange, response: Response) -> None:
        self._application = application
        self._exchange = exchange
        self._response = response
        fields = response.headers.raw
        self.size = sum(map(len, chain.from_iterable(fields))) + _PER_FIELD * len(fields) + _STATUS_LINE
        self.complete = False

    async def pieces(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in body:
            self.size += len(piece)
            yield piece
        self.complete = True

    async def end(self) -> None:
        try:
            if self._response.is_held:
                await self._response.close()
        finally:
            # Only now, when the upstream has stopped, are all counts final; and also when closing was cancelled.
            sent = Sent(True, self.size, "complete" if self.complete else "client_closed")
            self._application.finished(self._exchange, self._response, sent)
