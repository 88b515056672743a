"""The facts of one attempt at a model, gathered until it is over, then entered once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from data_plane.ai import accounting
from data_plane.ai.providers.base import Usage
from data_plane.ai.targets import Ready, Target
from data_plane.exchange import Exchange, LlmCall

_KINDS_BY_STATUS: Final = {
    401: "auth",
    403: "auth",
    408: "timeout",
    429: "rate_limited",
    500: "provider_error",
    502: "provider_error",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}

MAX_PAYLOAD: Final = 1024 * 1024
"""Bytes of a request or an answer that are kept for the log."""


@dataclass(slots=True)
class Payload:
    """What `log_payloads` keeps: the request as it was sent, the answer in OpenAI's shape."""

    request: bytes = b""
    response: bytes = b""
    texts: list[str] = field(default_factory=list)
    """Pieces of a streamed answer."""
    size: int = 0

    def add_text(self, text: str) -> None:
        if self.size < MAX_PAYLOAD:
            self.texts.append(text)
            self.size += len(text)


class Attempt:
    """One attempt under way. Every way it may end leads to `end`, which counts only the first time."""

    __slots__ = ("_chat", "_ended", "call", "payload", "ready", "started", "target")

    def __init__(
        self, exchange: Exchange, plugin_id: str, target: Target, ready: Ready, chat: Mapping[str, Any], stream: bool
    ) -> None:
        self._chat = chat
        self.started = time.monotonic()
        self._ended = False
        self.target = target
        self.ready = ready
        self.payload = Payload() if target.logs_payloads else None
        previous = exchange.llm_calls
        role = "fallback" if previous else "selected"
        # By position, which takes half as long: plugin, provider, the models, alias, stream, no status, no error, role.
        self.call = LlmCall(plugin_id, target.provider, ready.model, "", target.alias_text, stream, 0, "", role)
        previous.append(self.call)

    @property
    def has_ended(self) -> bool:
        return self._ended

    def content_arrived(self) -> None:
        """Generated content is on its way to the client; the first time counts."""
        if self.call.ttft is None:
            self.call.ttft = time.monotonic() - self.started

    def refused(self, status: int) -> None:
        """The provider answered with something else than 200."""
        self.call.status = status
        self.end(None, kind=_KINDS_BY_STATUS.get(status, "provider_error" if status >= 500 else "refused"))

    def answered(
        self, usage: Usage | None, text_length: int, model: str, finish_reason: str, service_tier: str, kind: str = ""
    ) -> None:
        """The provider said 200 and then this much. Without its own count the usage is estimated, and marked so."""
        call = self.call
        call.status = 200
        call.response_model = model or call.request_model
        call.finish_reason = finish_reason
        call.token_source = "provider"  # noqa: S105 (says who counted)
        if usage is None:
            usage = accounting.estimate(self._chat, text_length, stream=call.stream)
            call.token_source = "estimated"  # noqa: S105
        self.end(usage, kind=kind, service_tier=service_tier)

    def abandoned(self) -> None:
        """The client left before the provider had answered; what the provider did meanwhile is a guess."""
        self.call.token_source = "estimated"  # noqa: S105
        self.end(accounting.estimate(self._chat, 0, stream=self.call.stream), kind="client_closed")

    def end(self, usage: Usage | None, *, kind: str = "", service_tier: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        call = self.call
        call.duration = time.monotonic() - self.started
        call.error_kind = kind
        if usage is not None:
            call.prompt_tokens = usage.prompt_tokens
            call.completion_tokens = usage.completion_tokens
            call.cached_tokens = usage.cached_tokens
            call.cache_write_tokens = usage.cache_write_tokens
            call.reasoning_tokens = usage.reasoning_tokens
            call.cost_nano_usd = accounting.cost(usage, self.ready.options, service_tier)
