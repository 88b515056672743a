"""The API's HTTP connections: how long each may take for what it owes, and how many there may be.

Theory of operation. uvicorn reads and answers; it ends idle connections that were answered once, and no others. So each
connection here notes at every turn of its life when its patience ends (`due`), which costs a reading of the clock, and
the server looks through them at each of its ticks, ten times a second. (A timer per request would cost more than that.)

One of five cases: nothing of a request has come (a new connection, or one that is kept); a head is coming; a body is
coming; we answer, and the client owes nothing; the client does not take what we send. While we do not read, because the
body's reader is behind, the client cannot be late.

When there are too many, the one that has been idle for longest makes room: whoever opens connections and sends nothing
displaces only their like. When none is idle, the new one is answered 503.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from control_plane.errors import (
    BadRequest,
    ControlPlaneError,
    HeadTooLarge,
    RequestTimeout,
    TooManyConnections,
    problem,
)

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 10_000
_BACKLOG = 1024
_FILES_PER_CONNECTION = 4
"""Of the files that the process may open, so many for each connection of the API: three quarters are for nodes (three
for each), the database and the rest."""
_SILENCE_SECONDS = 60.0
"""Between two lines of the log that say that connections are refused."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of us. Times in seconds."""

    connections: int = MAX_CONNECTIONS
    head_bytes: int = 64 * 1024
    """Request line and header fields together."""
    head: float = 10.0
    """From the opening of the connection, or the first byte of a further request, to the last of its head."""
    pause: float = 30.0
    """Between two pieces of a request's body."""
    body: float = 900.0
    """For a whole body: 16 MB, the largest that is taken, at 150 kbit/s."""
    kept: float = 5.0
    """Between an answer and the first byte of the next request."""
    untaken: float = 60.0
    """Without the client taking any byte of what waits for it."""

    @classmethod
    def within(cls, files: int) -> Limits:
        """For a process that may open so many files."""
        return cls(connections=max(16, min(MAX_CONNECTIONS, files // _FILES_PER_CONNECTION)))


class Server(uvicorn.Server):
    """Serves an application within limits."""

    def __init__(self, app: Any, limits: Limits, **options: Any) -> None:
        """`options` are uvicorn's."""
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", self._connect),
            ws="none",  # there are none here, and with them a connection would leave our sight
            timeout_keep_alive=cast("int", limits.kept),
            backlog=min(_BACKLOG, limits.connections),  # so many may be accepted before the first is counted
            **options,
        )
        super().__init__(config)
        self.limits = limits
        self.idle: dict[Connection, None] = {}
        """Those of which nothing is asked, in the order in which they became so."""
        self._told = -inf

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        for connection in [known for known in self.server_state.connections if cast("Connection", known).due <= now]:
            cast("Connection", connection).expire(now)
        return await super().on_tick(counter)

    def make_room(self) -> bool:
        """Close the connection that has been idle for longest; False when none is."""
        for connection in self.idle:
            connection.leave()
            return True
        if time.monotonic() - self._told > _SILENCE_SECONDS:
            self._told = time.monotonic()
            _log.error("connections to the API are refused: %d are open, and none is idle", self.limits.connections)
        return False

    def _connect(self, **given: Any) -> Connection:
        return Connection(self, **given)


class _Part(enum.Enum):
    """What of a request has begun to come, and has not ended."""

    NOTHING = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class Connection(HttpToolsProtocol):
    """One client's."""

    def __init__(self, server: Server, **given: Any) -> None:
        super().__init__(**given)
        self._server = server
        self._limits = server.limits
        self._part = _Part.NOTHING
        self._head_bytes = 0
        self._head_by = inf
        self._whole_by = inf
        self._unsent: float = inf
        """What waited for the client when we last looked."""
        self.due = inf
        """When patience ends, on the monotonic clock."""

    def expire(self, now: float) -> None:
        """`due` has passed."""
        if self.transport.is_closing() or self.flow.write_paused:
            self._await_taking(now)
        elif self.flow.read_paused:
            self._head_by = self._whole_by = inf
            self.due = now + self._limits.pause
        elif self._part is _Part.NOTHING:
            self.leave()
        else:
            self._refuse(RequestTimeout("head" if self._part is _Part.HEAD else "body"))

    def leave(self) -> None:
        """Close it once what was written is sent."""
        self.transport.close()
        if not self.transport.get_write_buffer_size():
            self.connections.discard(self)  # its file is closed before the loop accepts again
        self._wait()

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._server.make_room():
            self._refuse(TooManyConnections())
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.idle.pop(self, None)
        self.due = inf
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self in self._server.idle:
            return  # empty lines before a request, which the parser skips
        if self._part is _Part.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes and not self.transport.is_closing():
                self._refuse(HeadTooLarge(self._limits.head_bytes))
        if not self.flow.write_paused and not self.transport.is_closing():
            self._wait()  # else the client's turn is to take, and what it sends earns it no time

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = inf
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        """The parser cannot go on."""
        self._refuse(BadRequest("the request is not HTTP/1.1, or its method is none that HTTP knows"))

    # -- what the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._server.idle.pop(self, None)
        self._part, self._head_bytes, self._head_by = _Part.HEAD, 0, inf

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._part, self._whole_by = _Part.BODY, inf

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._part = _Part.NOTHING

    # -- what the answer calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    # -- waiting

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """Set `due` for what the client owes us now."""
        now, limits = time.monotonic(), self._limits
        if self.flow.write_paused or self.transport.is_closing():
            self._server.idle.pop(self, None)
            self.due = now + limits.untaken
        elif self._part is _Part.BODY:
            self._whole_by = min(self._whole_by, now + limits.body)
            self.due = min(now + limits.pause, self._whole_by)
        elif self._is_answering:
            self.due = inf
        elif self._part is _Part.HEAD:
            self.due = self._head_by = min(self._head_by, now + limits.head)
        else:
            self._server.idle[self] = None
            self.due = now + (limits.kept if self.cycle is not None else limits.head)

    def _await_taking(self, now: float) -> None:
        """End it when the client took nothing of what we sent since we last looked."""
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self.due = now + self._limits.untaken
        else:
            self.transport.abort()

    def _refuse(self, error: ControlPlaneError) -> None:
        """Answer in place of the application, unless it has begun to."""
        if self._is_answering:
            started = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if started:
                self.transport.abort()
                return
        body = orjson.dumps(problem(error))
        head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.leave()
