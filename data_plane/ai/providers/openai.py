"""OpenAI's chat completions: the inner format itself, so little is translated and much is only watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from data_plane.ai.framing import FramingError, SseReader
from data_plane.ai.providers.base import (
    DONE,
    MAX_TOKENS,
    DecodedResponse,
    EncodedRequest,
    Fields,
    ProviderRow,
    StreamEvent,
    Usage,
    count,
    error_event,
    text_size,
)
from data_plane.errors import LlmError
from gateway_schema.plugins.llm import ModelOptions

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"

_REASONING_FAMILIES: Final = ("o1", "o3", "o4", "gpt-5")
"""Model families that know the limit as `max_completion_tokens` only."""

_DONE_MARK: Final = b"[DONE]"


class OpenAiAdapter:
    """Chats go as they are, with the model's name in them; answers come back as they are."""

    stream_type = "text/event-stream"

    def __init__(self, model: str, options: ModelOptions) -> None:
        self._model = model
        self._renames_limit = model.startswith(_REASONING_FAMILIES)

    def encode(self, chat: Mapping[str, Any], *, stream: bool) -> EncodedRequest:
        body = {**chat, "model": self._model, "stream": stream}
        body.pop("top_k", None)
        if self._renames_limit and "max_tokens" in body:
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
            body.pop("max_tokens", None)
        if stream:
            wanted = chat.get("stream_options")
            body["stream_options"] = {**(wanted if isinstance(wanted, dict) else {}), "include_usage": True}
        else:
            body.pop("stream_options", None)
        return EncodedRequest("/chat/completions", orjson.dumps(body))

    def decode(self, body: bytes, headers: Fields) -> DecodedResponse:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        choices = answer.get("choices") if type(answer) is dict else None
        if type(choices) is not list:
            raise LlmError(
                500,
                "transformation failed from type openai://llm/v1/chat: 'choices' not in llm/v1/chat response",
                kind="transformation",
            )
        usage = read_usage(answer.get("usage"))
        model, service_tier = answer.get("model"), answer.get("service_tier")
        first = choices[0] if choices else None
        reason = first.get("finish_reason") if type(first) is dict else ""
        return DecodedResponse(
            None,
            model if type(model) is str else "",
            usage,
            reason if type(reason) is str else "",
            service_tier if type(service_tier) is str else "",
            0 if usage is not None else sum([_message_size(choice) for choice in choices]),
        )

    def stream_decoder(self, headers: Fields) -> OpenAiStream:
        return OpenAiStream()


class OpenAiStream:
    """Watches a stream of chunks go by: each is forwarded as it came, after a look inside."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.model = ""
        self.finish_reason = ""
        self.service_tier = ""
        self.done = False
        self._failed = False
        self._reader = SseReader()

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        events: list[StreamEvent] = []
        if not self._over:
            try:
                payloads = self._reader.feed(data)
            except FramingError as fault:
                return [self._fail(f"the model's stream cannot be read: {fault}")]
            for payload in payloads:
                events.append(self._look(payload))
                if self._over:
                    break
        return events

    def close(self) -> Sequence[StreamEvent]:
        """Some compatible servers leave out the last empty line, or the end mark altogether."""
        if self._over:
            return ()
        if self._reader.close() == _DONE_MARK or self.finish_reason:
            self.done = True
            return (DONE,)
        return (self._fail("the model's stream ended before its answer was complete"),)

    @property
    def _over(self) -> bool:
        return self.done or self._failed

    def _look(self, payload: bytes) -> StreamEvent:
        if payload == _DONE_MARK:
            self.done = True
            return DONE
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return self._fail("the model's stream holds an event that is not JSON")
        if not isinstance(chunk, dict):
            return self._fail("the model's stream holds an event that is no chunk")
        if b"\n" in payload:
            payload = payload.replace(b"\n", b" ")  # between tokens: inside strings JSON has no bare line feeds
        if chunk.get("error"):
            self._failed = True
            return StreamEvent(payload, error=True)
        return self._note(payload, chunk)

    def _note(self, payload: bytes, chunk: dict[str, Any]) -> StreamEvent:
        if not self.model:
            self.model = _text(chunk.get("model"))
        usage = chunk.get("usage")
        if usage:
            self.usage = read_usage(usage) or self.usage
            self.service_tier = _text(chunk.get("service_tier")) or self.service_tier
        choices = chunk.get("choices")
        event = StreamEvent(payload, usage_only=not choices and bool(usage))
        if isinstance(choices, list):
            for choice in choices:
                self._note_choice(choice, event)
        return event

    def _note_choice(self, choice: Any, event: StreamEvent) -> None:
        if not isinstance(choice, dict):
            return
        reason = choice.get("finish_reason")
        if reason:
            self.finish_reason = _text(reason)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            text = delta.get("content")
            if text:
                event.content = True
                event.text_length += text_size(text)
            elif delta.get("tool_calls") or delta.get("reasoning_content") or delta.get("refusal"):
                event.content = True
                event.text_length += _tool_calls_size(delta.get("tool_calls")) + text_size(delta.get("refusal"))

    def _fail(self, message: str) -> StreamEvent:
        self._failed = True
        return error_event(message)


def read_usage(usage: Any) -> Usage | None:
    """OpenAI's usage record; None when there is none."""
    if type(usage) is not dict:
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    read = Usage(  # `count`, written out: these two are there nearly always
        prompt if type(prompt) is int and 0 < prompt <= MAX_TOKENS else 0,
        completion if type(completion) is int and 0 < completion <= MAX_TOKENS else 0,
    )
    details = usage.get("prompt_tokens_details")
    if type(details) is dict:
        read.cached_tokens = count(details.get("cached_tokens"))
    details = usage.get("completion_tokens_details")
    if type(details) is dict:
        read.reasoning_tokens = count(details.get("reasoning_tokens"))
    return read


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _message_size(choice: Any) -> int:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return 0
    return text_size(message.get("content")) + _tool_calls_size(message.get("tool_calls"))


def _tool_calls_size(calls: Any) -> int:
    """Bytes of the arguments of tool calls: they are generated text too."""
    size = 0
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            size += text_size(function.get("arguments"))
    return size


def _base_url(options: ModelOptions, environment: Mapping[str, str]) -> str:
    """As OpenAI's SDKs do: OPENAI_BASE_URL includes the version."""
    return (environment.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL).rstrip("/")


ROW: Final = ProviderRow(
    adapter=OpenAiAdapter, base_url=_base_url, identity="none", route_types=frozenset({"llm/v1/chat"})
)
