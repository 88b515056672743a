"""HTTP messages as the whole data plane sees them: plain values, no sockets.

Header names keep the case they came in (Datakit shows it) and are found in any case. Text is latin-1, as on the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

Index = dict[str, int | tuple[int, ...]]
"""Positions of header fields by lower-case name."""

_MAX_NOTES = 16


class Head:
    """The fields of a head that comes again and again, and what was concluded from them.

    Clients, and upstreams, say nearly the same in every message on a connection. Whoever works something out from the
    fields alone (the route, the consumer, the bytes of the head that goes on) notes it here, and finds it the next time
    under `headers.origin`. Of the fields only the value of Content-Length may differ from one time to the next: nothing
    noted may depend on it.
    """

    __slots__ = ("_length", "_length_at", "fields", "index", "notes")

    def __init__(self, fields: list[tuple[str, str]], index: Index | None = None) -> None:
        self.fields = fields
        self.index = _indexed(fields) if index is None else index
        found = self.index.get("content-length")
        self._length_at = found if isinstance(found, int) else None
        self._length = fields[found][1] if isinstance(found, int) else ""
        self.notes: dict[object, Any] = {}
        """By whoever made them. Use `note`, which bounds them."""

    def note(self, whose: object, what: Any) -> None:
        if len(self.notes) >= _MAX_NOTES:
            self.notes.clear()
        self.notes[whose] = what

    def followed_by(self, *fields: tuple[str, str]) -> Headers:
        """These fields and more."""
        headers = Headers.adopt([*self.fields, *fields])
        headers.base = self
        return headers

    def headers(self, length: str) -> Headers:
        """These fields, with `length` for the value of Content-Length, where they have one."""
        fields = self.fields
        if length != self._length and self._length_at is not None:
            fields = fields.copy()
            fields[self._length_at] = (fields[self._length_at][0], length)
        headers = Headers.__new__(Headers)
        headers.raw = fields
        headers._index = self.index
        headers.origin = headers.base = self
        return headers


class Headers:
    """An ordered multi-map of header fields; look-ups ignore case.

    `raw` is the list of (name, value) pairs in wire order, to be read only. The index from lower-case name to position
    (a tuple of positions where a field is repeated) is built on the first look-up and forgotten when positions move:
    most headers of most requests are only ever copied.
    """

    __slots__ = ("_index", "base", "origin", "raw")

    def __init__(self, raw: Iterable[tuple[str, str]] = ()) -> None:
        self.raw: list[tuple[str, str]] = list(raw)
        self._index: Index | None = None
        self.origin: Head | None = None
        """The head that these are the fields of, as long as nobody has changed them; their list is shared till then."""
        self.base: Head | None = None
        """The head that the first fields are those of, as long as nobody has done more than add to them."""

    @classmethod
    def adopt(cls, raw: list[tuple[str, str]], index: Index | None = None) -> Headers:
        """Headers over this very list, which from now on is theirs; so is its index, where the caller has it."""
        headers = cls.__new__(cls)
        headers.raw = raw
        headers._index = index
        headers.origin = headers.base = None
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
    def index(self) -> Index:
        """Positions by lower-case name; to be read only."""
        index = self._index
        return self._build() if index is None else index

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
        self._part()
        self.base = None
        self.raw[positions[0]] = (name, value)
        if len(positions) > 1:
            rest = frozenset(positions[1:])
            self.raw = [pair for position, pair in enumerate(self.raw) if position not in rest]
            self._index = None

    def add(self, name: str, value: str) -> None:
        self._part()
        if self._index is not None:
            _note(self._index, name.lower(), len(self.raw))
        self.raw.append((name, value))

    def extend(self, fields: Sequence[tuple[str, str]]) -> None:
        """Add several fields."""
        self.raw = [*self.raw, *fields]
        self._index = self.origin = None

    def remove(self, name: str) -> bool:
        """Drop a field; says whether it was there."""
        positions = self._positions(name)
        if not positions:
            return False
        self._part()
        self.base = None
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
            self._index = self.origin = self.base = None

    def copy(self) -> Headers:
        return Headers(self.raw)

    def __contains__(self, name: str) -> bool:
        index, base, lowered = self._index, self.base, name.lower()
        if index is not None:
            return lowered in index
        if base is None:
            return lowered in self._build()
        return lowered in base.index or any(pair[0].lower() == lowered for pair in self.raw[len(base.fields) :])

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

    def _part(self) -> None:
        """Before the list or the index is changed in place: it may be shared with others."""
        if self.origin is not None:
            self.origin = None
            self.raw = self.raw.copy()
            self._index = None if self._index is None else self._index.copy()

    def _build(self) -> Index:
        index = self._index = _indexed(self.raw)
        return index


def _indexed(fields: Sequence[tuple[str, str]]) -> Index:
    index: Index = {pair[0].lower(): position for position, pair in enumerate(fields)}
    if len(index) != len(fields):
        index = {}
        for position, pair in enumerate(fields):
            _note(index, pair[0].lower(), position)
    return index


def _note(index: Index, name: str, position: int) -> None:
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

    __slots__ = ("body", "headers", "http_version", "method", "peer", "ride", "scheme", "size", "target")

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
        self.ride: Any = None
        """Of a request that was sent on before it was looked at: that journey (`http1.express`)."""

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
