"""The express way: what http1 and the application agree on for requests that are only passed on.

Theory. Most of what a plain request costs is not its work but the making of what might be needed for it: a task to
resume, futures to wait on, headers to look into. For a head that came before on the same connection (`familiar`), and
that the application answers by passing it on, all of that is known: the application leaves a `Line` with the familiar
head, and the next such request *rides* it, from the client's socket to the upstream's and back, in two calls from the
event loop.

A ride is for the straight case only. When anything else happens (the answer is strange, streams, comes in pieces, is
cut off or late) it derails: the same request then goes the ordinary way from its beginning, except that where it would
be sent it finds itself sent already, and waits for that answer. So every rule about failures, retries and streams
stays in one place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from data_plane.http1.client_connection import ClientConnection
    from data_plane.http1.familiar import Familiar
    from data_plane.messages import Request, Response
MAX_BODY = 32 * 1024
"""Bytes of a body that may ride. Beyond, copying it to write it with its head costs more than the ordinary way."""


class Platform(Protocol):
    """A client's connection, as far as a ride needs it."""

    is_draining: bool

    def request_of(self, familiar: Familiar, body: bytes) -> Request:
        """The request as the ordinary way sees it."""

    def deliver(self, data: bytes) -> None:
        """Write the ride's answer, which ends it."""

    def derail(self, ride: Ride) -> None:
        """Let the ride's request go the ordinary way."""


class Line(Protocol):
    """Where requests with one familiar head go."""

    def board(self, platform: Platform, familiar: Familiar, body: bytes) -> Ride | None:
        """Send such a request on; None when this one must go the ordinary way."""

    def arrive_again(self, ride: Ride, familiar: Familiar, body: bytes) -> bool:
        """Deliver an answer that is whole and has a familiar head; False when it must go the ordinary way."""

    def arrive(self, ride: Ride, response: Response) -> bool:
        """Deliver an answer that is whole; False when it must go the ordinary way."""

    def derailed(self, ride: Ride) -> None:
        """Hear that a ride goes the ordinary way."""

    def abandon(self, ride: Ride) -> None:
        """Nobody waits for the answer any more."""


class Ride:
    """One request on its way. Times in seconds, on the monotonic clock but for `started_at`."""

    __slots__ = (
        "behind",
        "body",
        "exchange",
        "familiar",
        "id",
        "line",
        "platform",
        "received",
        "runtime",
        "sent_at",
        "started_at",
        "waiter",
    )

    def __init__(
        self, line: Line, platform: Platform, behind: ClientConnection, familiar: Familiar, body: bytes
    ) -> None:
        self.line = line
        self.platform = platform
        self.behind = behind
        self.familiar = familiar
        self.body = body
        self.waiter: asyncio.Future[Response] | None = None
        """Once it has derailed, what its answer comes through."""

    id: str
    exchange: Any
    """What the application knows of it, where it makes more of it than a ride."""
    runtime: Any
    started_at: float
    received: float
    sent_at: float

    def derail(self, waiter: asyncio.Future[Response]) -> None:
        self.waiter = waiter
        self.line.derailed(self)
        self.platform.derail(self)

    def drop(self) -> None:
        """Break the upstream's connection: its answer is not wanted."""
        self.behind.drop(self)
