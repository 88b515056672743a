"""A body on its way in: the parser feeds it, one reader takes from it, and too much in between holds the sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from data_plane.errors import PayloadTooLarge
from data_plane.http1.limits import HIGH_WATER


class Flow(Protocol):
    """The connection a body comes from."""

    def hold(self) -> None:
        """Stop reading: the body's reader is slower than its sender."""

    def release(self) -> None:
        """Read on."""

    def wanted(self) -> None:
        """The reader waits for bytes (the moment to say 100 Continue)."""


class Outlet(Protocol):
    """Where the reader of a body would only write its pieces to."""

    @property
    def is_open(self) -> bool:
        """Whether more may be written now; else the reader must wait."""

    def write(self, piece: bytes) -> None:
        """Write a piece that is not empty."""


class IncomingBody:
    """Implements `messages.Body`, and is the iterator that a streamed `Response.body` is.

    Read it whole (`read`, any number of times) or in pieces (`async for`, once); pieces that arrived together come as
    one. It ends well (`finish`) or badly (`fail`): what arrived before is delivered first, then the error is raised.

    Waking a reader for each of a stream's many small pieces costs more than what it does with them. So a reader may say
    what it would do (`tap`, `pour`); as long as that goes, it sleeps on.
    """

    __slots__ = (
        "_buffered",
        "_error",
        "_flow",
        "_gathering",
        "_held",
        "_pieces",
        "_taken",
        "_tapped",
        "_waiter",
        "_whole",
        "ended",
        "length",
        "received",
    )

    def __init__(self, flow: Flow, length: int | None) -> None:
        self._flow = flow
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._held = False
        self._gathering = False
        self._taken = False
        self._tapped: Callable[[bytes], bytes | None] | None = None
        self._whole: bytes | None = None
        self.length = length
        self.received = 0
        self.ended = False
        """Nothing more will come, for better or worse."""

    # What the parser's side calls.

    def feed(self, piece: bytes) -> None:
        if self.ended:
            return
        self.received += len(piece)
        tapped = self._tapped
        if tapped is not None and self._waiter is not None and not self._waiter.done():
            self._taken = True
            left = tapped(piece)
            if left is None:
                return
            piece = left
        self._pieces.append(piece)
        self._buffered += len(piece)
        if self._buffered > HIGH_WATER and not self._gathering and not self._held:
            self._held = True
            self._flow.hold()
        self._wake()

    def finish(self) -> None:
        self.ended = True
        self._resume()  # What comes next on this connection is not ours to hold back.
        self._wake()

    def fail(self, error: BaseException) -> None:
        if not self.ended:
            self.ended = True
            self._error = error
            self._resume()
            self._wake()

    # What the reader calls.

    @property
    def is_complete(self) -> bool:
        return self.ended and self._error is None

    def arrived(self) -> bytes | None:
        """The whole body if it is all here and still untouched, else None."""
        if self._whole is None and self.ended and self._error is None and not self._taken:
            pieces = self._pieces
            self._whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = [self._whole] if self._whole else []
        return self._whole

    async def read(self, limit: int = 0) -> bytes:
        """See `messages.Body.read`. What arrived stays when the wait is cancelled or the limit passed."""
        if limit and max(self.length or 0, self._buffered) > limit:
            raise PayloadTooLarge
        if self._taken:
            raise RuntimeError("the body was already taken in pieces")
        try:
            while not self.ended:
                self._gathering = True
                self._resume()
                await self._arrival()
                if limit and self._buffered > limit:
                    raise PayloadTooLarge
        finally:
            self._gathering = False
        if self._error is not None:
            raise self._error
        whole = self.arrived()
        assert whole is not None
        if limit and len(whole) > limit:
            raise PayloadTooLarge
        return whole

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self if self._whole is None else _once(self._whole)

    async def __anext__(self) -> bytes:
        pieces = self._pieces
        while not pieces:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            await self._arrival()
        self._taken = True
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        self._resume()
        return data

    def tap(self, take: Callable[[bytes], bytes | None]) -> None:
        """Let `take` have what arrives during the next wait for a piece. It returns what the reader shall wake up to:
        None for nothing, then the wait goes on. It must not raise."""
        self._tapped = take

    def pour(self, outlet: Outlet) -> None:
        """Let pieces go to `outlet` during the next wait for one, as long as it is open."""

        def take(piece: bytes) -> bytes | None:
            if not outlet.is_open:
                return piece
            outlet.write(piece)
            return None

        self.tap(take)

    def _resume(self) -> None:
        if self._held:
            self._held = False
            self._flow.release()

    async def _arrival(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("two readers wait for one body")
        self._flow.wanted()
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = self._tapped = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
