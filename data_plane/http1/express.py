"""The express way: what http1 and the application agree on for requests that are only passed on.

Theory. Most of what a plain request costs is not its work but the making of what might be needed for it: a task to
resume, futures to wait on, headers to look into. For a head that came before on the same connection (`familiar`), and
that the application answers by passing it on, all of that is known: the application leaves a `Line` with the familiar
head, and the next such request *rides* it, from the client's socket to the upstream's and back, without a task. It
does so in steps, which many rides take together (`turn`). A request that is whole and plain, but has a head of its own,
rides too, on its connection's open line: where it goes is found out first.

A ride is for the straight case only. When anything else happens (the answer is strange, streams, comes in pieces, is
cut off or late) it derails: the same request then goes the ordinary way from its beginning, except that where it would
be sent it finds itself sent already, and waits for that answer. So every rule about failures, retries and streams
stays in one place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from data_plane.messages import Response

if TYPE_CHECKING:
    from data_plane.http1.client_connection import ClientConnection
    from data_plane.http1.familiar import Familiar
    from data_plane.http1.limits import Timeouts
    from data_plane.messages import Request

MAX_BODY = 32 * 1024
"""Bytes of a body that may ride. Beyond, copying it to write it with its head costs more than the ordinary way."""


Steps = Iterator[None]
"""A ride's boarding, or its arrival: it pauses where rides are to wait for one another."""


class Platform(Protocol):
    """A client's connection, as far as a ride needs it."""

    is_draining: bool

    def request_of(self, ride: Ride) -> Request:
        """The ride's request as the ordinary way sees it: one that nobody has changed."""

    def deliver(self, data: bytes) -> None:
        """Write the ride's answer, which ends it."""

    def derail(self, ride: Ride) -> None:
        """Let the ride's request go the ordinary way."""


class Line(Protocol):
    """Where requests go: those with one familiar head, or those of one connection (`OpenLine`)."""

    def board(self, ride: Ride) -> Steps:
        """Send the request on; one that has no connection behind it in the end must go the ordinary way."""

    def arrive(self, ride: Ride) -> Steps:
        """Deliver its answer, which is whole, and say so (`has_arrived`); else it must go the ordinary way."""

    def derailed(self, ride: Ride) -> None:
        """Hear that a ride that had begun goes the ordinary way."""

    def abandon(self, ride: Ride) -> None:
        """Nobody waits for the answer any more."""


class OpenLine(Line, Protocol):
    """One connection's line for requests whose head is new."""

    def takes(self, request: Request) -> bool:
        """Whether it is worth trying."""


class Ride:
    """One request on its way. Times in seconds, on the monotonic clock but for `started_at`."""

    __slots__ = (
        "_response",
        "answered_with",
        "arrival",
        "behind",
        "body",
        "data",
        "exchange",
        "familiar",
        "first_byte",
        "has_arrived",
        "id",
        "is_on",
        "line",
        "platform",
        "received",
        "runtime",
        "sent_at",
        "started_at",
        "waiter",
    )

    def __init__(self, line: Line, platform: Platform, familiar: Familiar | None, body: bytes) -> None:
        """`familiar`: the request's head, where it came before; else `data` is the request, and `arrival`, once."""
        self.line = line
        self.platform = platform
        self.familiar = familiar
        self.body = body
        self.received = time.monotonic()
        self.is_on = True
        """Somebody waits for the answer."""
        self.has_arrived = False
        self.behind: ClientConnection | None = None
        """Once it has begun, what it goes over."""
        self.waiter: asyncio.Future[Response] | None = None
        """Once it has derailed, what its answer comes through."""

    data: bytes
    arrival: Request | None
    id: str
    exchange: Any
    """What the application knows of it, where it makes more of it than a ride."""
    runtime: Any
    started_at: float
    received: float
    sent_at: float
    first_byte: float
    """When the answer was here."""
    answered_with: tuple[Familiar, bytes] | None
    """The head that it begins with, where that came before, and its body."""
    _response: Response

    def came_again(self, answer: tuple[Familiar, bytes]) -> None:
        """Its answer is whole, and has a familiar head."""
        self.first_byte = time.monotonic()
        self.answered_with = answer

    def came(self, response: Response) -> None:
        """Its answer is whole."""
        self.first_byte = time.monotonic()
        self.answered_with = None
        self._response = response

    def response(self) -> Response:
        """The answer, as the ordinary way sees it."""
        if self.answered_with is None:
            return self._response
        familiar, body = self.answered_with
        return Response(familiar.meaning, familiar.head.headers(str(len(body))), body, source="upstream")

    def begin(self, behind: ClientConnection, method: str, data: bytes, timeouts: Timeouts) -> None:
        """Send the request."""
        self.behind = behind
        behind.carry(self, method, data, timeouts)

    def derail(self, waiter: asyncio.Future[Response]) -> None:
        self.waiter = waiter
        self.line.derailed(self)
        self.platform.derail(self)

    def leave(self) -> None:
        """Hear that nobody waits for the answer any more."""
        self.is_on = False
        if self.behind is not None:
            self.line.abandon(self)

    def drop(self) -> None:
        """Break the upstream's connection: its answer is not wanted."""
        self.is_on = False
        if self.behind is not None:
            self.behind.drop(self)
