"""A provider's answer on its way to the client: whole, or chunk by chunk.

A stream is one task's work: the server takes a piece, which is one read of the upstream decoded and framed into one
write. While chunks only pass by, that task sleeps (`Relay.pour`). Usage comes last in every stream, after what the
client waits for. So when a client leaves in the middle, what the provider has already sent is still read, for a moment
and no longer: an answer that was about to end is counted exactly, a long one is cut off and its usage estimated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from data_plane.ai.calls import Attempt, Payload
from data_plane.ai.providers.base import StreamDecoder, StreamEvent, error_event
from data_plane.errors import GatewayError, InvalidResponse, UpstreamError
from data_plane.exchange import Exchange
from data_plane.messages import Response

if TYPE_CHECKING:
    from data_plane.http1.body import Outlet

log = logging.getLogger(__name__)

DRAIN_TIME: Final = 1.0
"""Seconds for which an answer is read on after its client has left."""

_END_TIME: Final = 0.25
"""Seconds that the end of a body may lag behind the end mark inside it. Waiting saves the connection."""


class Relay:
    """The body of a streamed answer, an iterator of SSE frames; `close` settles the accounts whenever it stops."""

    def __init__(
        self, exchange: Exchange, attempt: Attempt, decoder: StreamDecoder, upstream: Response, *, shows_usage: bool
    ) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._decoder = decoder
        self._upstream = upstream
        # Not a generator around it: a wait that is cancelled with the client's task must leave it readable.
        self._pieces = _once(upstream.body) if isinstance(upstream.body, bytes) else aiter(upstream.body)
        self._shows_usage = shows_usage
        self._text_length = 0
        self._failure = ""
        self._is_over = False
        self._pending_error: UpstreamError | None = None
        self._settling: asyncio.Task[None] | None = None
        self._outlet: Outlet | None = None
        self._ahead: bytes | Exception | None = None
        """Of what was poured, what is left to the reader: frames to write, or what went wrong."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """One write's worth of frames. After a break in the upstream: an error frame, then UpstreamError."""
        while not self._is_over:
            frames = await self._read()
            if self._is_over:
                self._exchange.marks.upstream_done = time.monotonic()
            if frames:
                return frames
        if self._pending_error is not None:
            raise self._pending_error
        if self._decoder.done and not getattr(self._pieces, "ended", False):
            await self._await_end()
        raise StopAsyncIteration

    async def close(self) -> None:
        """Give the connection back and enter the usage. May be called more than once, and while being cancelled."""
        if self._attempt.has_ended:
            return
        if self._is_over:
            self._settle()
            await self._upstream.close()
        else:
            await self._read_on()

    def pour(self, outlet: Outlet) -> None:
        """See `IncomingBody.pour`: chunks go to `outlet` while the next frames are waited for, until the last."""
        tap = getattr(self._pieces, "tap", None)
        if tap is not None and not self._is_over:
            self._outlet = outlet
            tap(self._take)

    def _take(self, data: bytes) -> bytes | None:
        outlet = self._outlet
        assert outlet is not None
        if not outlet.is_open:
            return data
        try:
            frames = self._frames(self._decoder.feed(data))
        except Exception as error:  # Fails where the reader would have: in its task.
            self._ahead = error
            return b""
        if self._decoder.done or self._failure:
            self._ahead = frames
            return b""
        if frames:
            outlet.write(frames)
        return None

    async def _read(self) -> bytes:
        try:
            data = await anext(self._pieces)
        except StopAsyncIteration:
            self._is_over = True
            return self._frames(self._decoder.close())
        except GatewayError as error:
            self._is_over = True
            return self._break(error)
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            raise ahead
        # Bytes that arrived behind the last frames mean nothing any more.
        frames = self._frames(self._decoder.feed(data)) if ahead is None else ahead
        self._is_over = self._decoder.done or bool(self._failure)
        return frames

    async def _await_end(self) -> None:
        with contextlib.suppress(TimeoutError, GatewayError, StopAsyncIteration):
            async with asyncio.timeout(_END_TIME):
                await anext(self._pieces)

    async def _read_on(self) -> None:
        """Cancellation waits for this: the accounts must be right when the exchange is reported."""
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._drain(), name="llm stream drain")
        cancelled = False
        while not self._settling.done():
            try:
                await asyncio.shield(self._settling)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIME):
                while not self._is_over:
                    await self._read()
        except TimeoutError:
            pass  # What was counted until here is what can be known.
        except Exception:
            log.exception("reading on after the client of exchange %s had left failed", self._exchange.id)
        finally:
            if not self._decoder.done:
                self._failure = self._failure or "client_closed"
            self._exchange.marks.upstream_done = time.monotonic()
            self._settle()
            await self._upstream.close()

    def _settle(self) -> None:
        decoder = self._decoder
        self._attempt.answered(
            decoder.usage, self._text_length, decoder.model, decoder.finish_reason, decoder.service_tier, self._failure
        )

    def _break(self, error: GatewayError) -> bytes:
        """The upstream broke off: tell the client what can still be told, then break too."""
        self._failure = self._exchange.error_kind = error.kind
        self._pending_error = error if isinstance(error, UpstreamError) else InvalidResponse(error.kind, sent=True)
        return self._frames([error_event("the connection to the model broke before its answer was complete")])

    def _frames(self, events: Sequence[StreamEvent]) -> bytes:
        parts: list[bytes] = []
        for event in events:
            if event.content:
                self._attempt.content_arrived()
                self._text_length += event.text_length
                if self._attempt.payload is not None:
                    _note_text(self._attempt.payload, event.data)
            elif event.error:
                self._failure = self._exchange.error_kind = self._failure or "provider_error"
            elif event.usage_only and not self._shows_usage:
                continue
            parts += (b"data: ", event.data, b"\n\n")
        return b"".join(parts)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _note_text(payload: Payload, data: bytes) -> None:
    chunk: Any = orjson.loads(data)
    for choice in chunk.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        if isinstance(text, str):
            payload.add_text(text)
