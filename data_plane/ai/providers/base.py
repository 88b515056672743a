"""The contract of a provider's adapter: it translates and does no I/O.

The inner format is OpenAI's chat API with unknown fields kept. An adapter turns a chat into the provider's request,
the provider's answer into an OpenAI answer, and the provider's stream, fed in whatever pieces the network made, into
OpenAI chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Usage:
    """Tokens as the provider counted them, in OpenAI's sense: prompt includes cached and cache-written ones."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(slots=True)
class EncodedRequest:
    """A provider's request: relative to the provider's base URL, not yet authorised."""

    path: str
    """Percent-encoded as it goes on the wire."""
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    query: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class DecodedResponse:
    """An OpenAI chat completion and what is known of it; `body` is None when the provider's bytes may go as they are."""

    body: dict[str, Any] | None
    model: str
    usage: Usage | None
    finish_reason: str = ""


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
    done: bool
    """The provider ended its stream in order."""

    def feed(self, data: bytes) -> Sequence[StreamEvent]: ...

    def close(self) -> Sequence[StreamEvent]:
        """The upstream's bytes have ended; the last frames, an error frame when they ended too early."""


class Adapter(Protocol):
    """One provider for one target's model."""

    def encode(self, chat: Mapping[str, Any], *, stream: bool) -> EncodedRequest:
        """Raises LlmError(400) for what the provider cannot do."""

    def decode(self, body: bytes, headers: Mapping[str, str]) -> DecodedResponse:
        """Raises LlmError(500) when a 200 answer is not what it should be."""

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder: ...
