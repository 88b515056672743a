"""HTTP messages as the whole data plane sees them: plain values, no sockets.

Header names keep the case they came in (Datakit shows it) and are found in any case. Text is latin-1, as on the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Protocol


class Headers:
    """An ordered multi-map of header fields; look-ups ignore case.

    `raw` is the list of (name, value) pairs in wire order. The index from lower-case name to position (a tuple of
    positions where a field is repeated) is built on the first look-up and forgotten when positions move: most headers
    of most requests are only ever copied.
    """

    __slots__ = ("_index", "raw")

    def __init__(self, raw: Iterable[tuple[str, str]] = ()) -> None:
        self.raw: list[tuple[str, str]] = list(raw)
        self._index: dict[str, int | tuple[int, ...]] | None = None

    @classmethod
    def adopt(cls, raw: list[tuple[str, str]], index: dict[str, int | tuple[int, ...]] | None = None) -> Headers:
        """Headers over this very list, which from now on is theirs; so is its index, where the caller has it."""
        headers = cls.__new__(cls)
        headers.raw = raw
        headers._index = index
        return headers

    def get(self, name: str) -> str | None:
        """The first value of a field."""
        index = self._index
        if index is None:
            index = self._build()
        found = index.get(name)
        if found is None:
            found = index.get(name.lower())
            if found is None:
                return None
        return self.raw[found if type(found) is int else found[0]][1]  # type: ignore[index]

    @property
    def has_repeats(self) -> bool:
        """Whether any field stands more than once."""
        index = self._index
        return len(self._build() if index is None else index) != len(self.raw)

    def get_all(self, name: str) -> list[str]:
        return [self.raw[position][1] for position in self._positions(name)]

    def set(self, name: str, value: str) -> None:
        """Replace all values of a field by one, at the place of the first."""
        positions = self._positions(name)
        if not positions:
            self.add(name, value)
            return
        self.raw[positions[0]] = (name, value)
        if len(positions) > 1:
            rest = frozenset(positions[1:])
            self.raw = [pair for position, pair in enumerate(self.raw) if position not in rest]
            self._index = None

    def add(self, name: str, value: str) -> None:
        if self._index is not None:
            _note(self._index, name.lower(), len(self.raw))
        self.raw.append((name, value))

    def extend(self, fields: Sequence[tuple[str, str]]) -> None:
        """Add several fields."""
        self.raw += fields
        self._index = None

    def remove(self, name: str) -> bool:
        """Drop a field; says whether it was there."""
        positions = self._positions(name)
        if not positions:
            return False
        for position in reversed(positions):
            del self.raw[position]
        self._index = None
        return True

    def remove_all(self, lowered: frozenset[str]) -> None:
        """Drop all fields of these names, given in lower case."""
        if self._index is not None and lowered.isdisjoint(self._index):
            return
        kept = [pair for pair in self.raw if pair[0].lower() not in lowered]
        if len(kept) < len(self.raw):
            self.raw = kept
            self._index = None

    def copy(self) -> Headers:
        return Headers(self.raw)

    def __contains__(self, name: str) -> bool:
        index = self._index
        return name.lower() in (self._build() if index is None else index)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        """Names only: values may be secrets."""
        return f"Headers({', '.join(name for name, _ in self.raw)})"

    def _positions(self, name: str) -> tuple[int, ...]:
        index = self._index
        found = (self._build() if index is None else index).get(name.lower())
        if found is None:
            return ()
        return (found,) if isinstance(found, int) else found

    def _build(self) -> dict[str, int | tuple[int, ...]]:
        index: dict[str, int | tuple[int, ...]] = {pair[0].lower(): position for position, pair in enumerate(self.raw)}
        if len(index) != len(self.raw):
            index = {}
            for position, pair in enumerate(self.raw):
                _note(index, pair[0].lower(), position)
        self._index = index
        return index


def _note(index: dict[str, int | tuple[int, ...]], name: str, position: int) -> None:
    """Enter one more position of a lower-case name."""
    found = index.get(name)
    if found is None:
        index[name] = position
    else:
        index[name] = (found, position) if isinstance(found, int) else (*found, position)


class Body(Protocol):
    """A body that may still be arriving. It is read once, whole or in pieces."""

    @property
    def length(self) -> int | None:
        """Bytes, where the head told; None for chunked bodies."""

    async def read(self, limit: int = 0) -> bytes:
        """The whole body; more than `limit` bytes (0: no limit) raise PayloadTooLarge. Reading again gives the same."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces as they arrive; after `read`, one piece. Not consuming holds the sender back."""


class BufferedBody:
    """A body that is all here."""

    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, limit: int = 0) -> bytes:
        if limit and len(self.data) > limit:
            from data_plane.errors import PayloadTooLarge

            raise PayloadTooLarge
        return self.data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.data:
            yield self.data


class Request:
    """A request: one that arrived, or one to send.

    `target` is the request target as on the wire (raw path and query). `peer` is the address of who sent it.
    """

    __slots__ = ("body", "headers", "http_version", "method", "peer", "scheme", "size", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: Body,
        *,
        scheme: str = "http",
        http_version: str = "1.1",
        peer: tuple[str, int] = ("", 0),
        size: int = 0,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.scheme = scheme
        self.http_version = http_version
        self.peer = peer
        self.size = size
        """Bytes of the head on the wire."""

    @property
    def path(self) -> str:
        """The raw path, without the query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The raw query string, without its question mark; empty when there is none."""
        return self.target.partition("?")[2]


ResponseBody = bytes | AsyncIterator[bytes]


class Response:
    """A response: bytes that are here, or an iterator of pieces.

    Whoever sends a response on consumes `body` and then awaits `close`, which gives connections back; a response that
    is not sent on must be closed too. Wrapping `body` in another iterator is how plugins watch or change a stream.
    """

    __slots__ = ("_closers", "body", "headers", "reason", "source", "status")

    def __init__(
        self,
        status: int,
        headers: Headers | None = None,
        body: ResponseBody = b"",
        *,
        source: str = "plugin",
        reason: str = "",
    ) -> None:
        self.status = status
        self.headers = Headers() if headers is None else headers
        self.body = body
        self.source = source
        """Who made it: `upstream`, `plugin`, `gateway_error` or `no_route`."""
        self.reason = reason
        self._closers: list[Callable[[], Awaitable[None]]] | None = None

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        if self._closers is None:
            self._closers = []
        self._closers.append(closer)

    @property
    def is_held(self) -> bool:
        """Whether `close` has anything to do."""
        return self._closers is not None

    async def close(self) -> None:
        """Release what the body holds. May be called more than once."""
        closers, self._closers = self._closers, None
        for closer in closers or ():
            await closer()

    async def read(self, limit: int = 0) -> bytes:
        """The whole body, which then stays readable; more than `limit` bytes (0: no limit) raise PayloadTooLarge."""
        if isinstance(self.body, bytes):
            return self.body
        pieces: list[bytes] = []
        size = 0
        async for piece in self.body:
            size += len(piece)
            if limit and size > limit:
                from data_plane.errors import PayloadTooLarge

                raise PayloadTooLarge
            pieces.append(piece)
        self.body = b"".join(pieces)
        return self.body
