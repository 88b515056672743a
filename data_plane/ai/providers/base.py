"""The contract of a provider's adapter: it translates and does no I/O.

The inner format is OpenAI's chat API with unknown fields kept. An adapter turns a chat into the provider's request,
the provider's answer into an OpenAI answer, and the provider's stream, fed in whatever pieces the network made, into
OpenAI chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import orjson

from gateway_schema.plugins.llm import ModelOptions

MAX_TOKENS: Final = 1 << 40
"""What a provider reports beyond that is nonsense."""


@dataclass(slots=True)
class Usage:
    """Tokens as the provider counted them, in OpenAI's sense: prompt includes cached and cache-written ones."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_writes_by_ttl: Mapping[str, int] | None = None
    """What of `cache_write_tokens` the provider broke down by lifetime (`5m`, `1h`)."""


_NOTHING: Final[Mapping[str, str]] = {}


class EncodedRequest:
    """A provider's request: relative to the provider's base URL, not yet authorised."""

    __slots__ = ("body", "headers", "method", "path", "query")

    def __init__(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str] = _NOTHING,
        method: str = "POST",
        query: Mapping[str, str] = _NOTHING,
    ) -> None:
        self.path = path
        """Percent-encoded as it goes on the wire."""
        self.body = body
        self.headers = headers
        self.method = method
        self.query = query


@dataclass(slots=True)
class DecodedResponse:
    """An OpenAI chat completion and what is known of it. `body` is None when the provider's bytes may go as is."""

    body: dict[str, Any] | None
    model: str
    usage: Usage | None
    finish_reason: str = ""
    service_tier: str = ""
    text_length: int = 0
    """Bytes of generated text, for estimates when the provider reports no usage."""


@dataclass(slots=True)
class StreamEvent:
    """What one step of a stream gave: a frame for the client (OpenAI SSE `data:` payload, JSON bytes), perhaps usage.

    `content` tells that the frame holds generated content (for time to first token). `usage_only` marks a usage chunk,
    which is forwarded only to clients that asked for it. `error` marks a frame after which the stream is over.
    """

    data: bytes
    content: bool = False
    usage_only: bool = False
    error: bool = False
    text_length: int = 0
    """Bytes of generated text, for estimates when the provider never reports usage."""


class StreamDecoder(Protocol):
    """Turns a provider's bytes into OpenAI chunks, however they are cut. Knows the sums when it is done."""

    usage: Usage | None
    model: str
    finish_reason: str
    service_tier: str
    done: bool
    """The provider ended its stream in order; the last event was `DONE`."""

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        """Never raises: what cannot be read becomes an error frame, after which everything is ignored."""

    def close(self) -> Sequence[StreamEvent]:
        """The upstream's bytes have ended; the last frames, an error frame when they ended too early."""


class Fields(Protocol):
    """The answer's headers, asked for in lower case."""

    def get(self, name: str, /) -> str | None: ...


class Adapter(Protocol):
    """One provider for one target's model."""

    @property
    def stream_type(self) -> str:
        """Media type of the provider's streams."""

    def encode(self, chat: Mapping[str, Any], *, stream: bool) -> EncodedRequest:
        """Raises LlmError(400) for what the provider cannot do. `chat` is not changed."""

    def decode(self, body: bytes, headers: Fields) -> DecodedResponse:
        """Raises LlmError(500) when a 200 answer is not what it should be."""

    def stream_decoder(self, headers: Fields) -> StreamDecoder: ...


class Unaddressable(Exception):
    """It is not known where a model lives: the field of the target's configuration that would tell, and why."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message
        super().__init__(f"{field}: {message}")


@dataclass(frozen=True, slots=True)
class ProviderRow:
    """What the gateway must know of a provider beside its adapter."""

    adapter: Callable[[str, ModelOptions], Adapter]
    base_url: Callable[[ModelOptions, Mapping[str, str]], str]
    """From a target's options and the environment. Raises Unaddressable."""
    identity: Literal["none", "aws"]
    """Who signs when the configuration names neither header nor parameter."""
    route_types: frozenset[str]


DONE: Final = StreamEvent(b"[DONE]")


def error_event(message: str, kind: str = "upstream_error", code: int | str | None = None) -> StreamEvent:
    """An error in the middle of a stream, as OpenAI's clients understand it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return StreamEvent(orjson.dumps({"error": error}), error=True)


def count(value: Any) -> int:
    """A number of tokens as a provider reported it; nonsense counts as none."""
    return value if type(value) is int and 0 < value <= MAX_TOKENS else 0


def text_size(text: Any) -> int:
    """Bytes of a text in UTF-8; 0 for what is no text."""
    if type(text) is not str:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
