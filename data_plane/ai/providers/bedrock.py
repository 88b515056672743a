"""Amazon Bedrock: Converse for whole answers, ConverseStream for streams (`reference/ai-plugins.md` §2.5)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson

from data_plane.ai.framing import EventMessage, EventStreamReader, FramingError
from data_plane.ai.providers.base import (
    DONE,
    DecodedResponse,
    EncodedRequest,
    Fields,
    ProviderRow,
    StreamEvent,
    Unaddressable,
    Usage,
    count,
    error_event,
    text_size,
)
from data_plane.ai.providers.converse import converse_request
from data_plane.errors import LlmError
from gateway_schema.plugins.llm import ModelOptions

_FINISH_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "stop",
    "malformed_tool_use": "stop",
}

_EXCEPTION_CODES: Final = {
    "internalServerException": 500,
    "modelStreamErrorException": 424,
    "validationException": 400,
    "throttlingException": 429,
    "serviceUnavailableException": 503,
    "modelTimeoutException": 408,
}


class BedrockAdapter:
    stream_type = "application/vnd.amazon.eventstream"

    def __init__(self, model: str, options: ModelOptions) -> None:
        self._model = model
        # Everything but unreserved characters, the slashes and colons of ARNs too: the id is one path segment.
        self._path = f"/model/{quote(model, safe='')}"
        self._forced_latency = options.bedrock.performance_config_latency if options.bedrock is not None else None

    def encode(self, chat: Mapping[str, Any], *, stream: bool) -> EncodedRequest:
        body = orjson.dumps(converse_request(chat, self._model, self._forced_latency))
        return EncodedRequest(self._path + ("/converse-stream" if stream else "/converse"), body)

    def decode(self, body: bytes, headers: Fields) -> DecodedResponse:
        answer = _loads(body)
        output = answer.get("output") if isinstance(answer, dict) else None
        message = output.get("message") if isinstance(output, dict) else None
        if not isinstance(answer, dict) or not isinstance(message, dict):
            raise LlmError(
                500,
                "transformation failed from type bedrock://llm/v1/chat: 'output' not in bedrock://llm/v1/chat response",
                kind="transformation",
            )
        usage = read_usage(answer.get("usage"))
        finish_reason = _FINISH_REASONS.get(str(answer.get("stopReason")), "stop")
        text, calls = _read_content(message.get("content"))
        completion = _completion(_answer_id(headers), self._model, text, calls, finish_reason, usage)
        if isinstance(answer.get("trace"), dict):
            completion["trace"] = answer["trace"]
        length = text_size(text)
        for call in calls:
            length += text_size(call["function"]["arguments"])
        return DecodedResponse(completion, self._model, usage, finish_reason, _service_tier(answer), length)

    def stream_decoder(self, headers: Fields) -> ConverseStream:
        return ConverseStream(self._model, _answer_id(headers))


class ConverseStream:
    """Frames become chunks. The usage comes after the stop, so the end mark waits for it, or for the stream's end."""

    def __init__(self, model: str, answer_id: str) -> None:
        self.usage: Usage | None = None
        self.model = model
        self.finish_reason = ""
        self.service_tier = ""
        self.done = False
        self._failed = False
        self._reader = EventStreamReader()
        self._head = {"id": answer_id, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._tools: dict[Any, int] = {}
        """contentBlockIndex → index among the tool calls, which OpenAI counts apart from texts."""

    def feed(self, data: bytes) -> Sequence[StreamEvent]:
        events: list[StreamEvent] = []
        if not self._over:
            try:
                messages = self._reader.feed(data)
            except FramingError as fault:
                return [self._fail(error_event(f"the model's stream cannot be read: {fault}"))]
            for message in messages:
                events += self._translate(message)
                if self._over:
                    break
        return events

    def close(self) -> Sequence[StreamEvent]:
        if self._over:
            return ()
        if self.finish_reason and self._reader.is_between_messages:
            self.done = True
            return (DONE,)
        return (self._fail(error_event("the model's stream ended before its answer was complete")),)

    @property
    def _over(self) -> bool:
        return self.done or self._failed

    def _translate(self, message: EventMessage) -> Sequence[StreamEvent]:
        kind = message.headers.get(":message-type")
        payload = _loads(message.payload)
        if kind == "exception":
            name = message.headers.get(":exception-type", "exception")
            text = payload.get("message") if isinstance(payload, dict) else None
            text = text if isinstance(text, str) and text else name
            return (self._fail(error_event(text, name, _EXCEPTION_CODES.get(name))),)
        if kind == "error":
            code = message.headers.get(":error-code", "error")
            return (self._fail(error_event(message.headers.get(":error-message") or code, code)),)
        if not isinstance(payload, dict):
            return (self._fail(error_event("the model's stream holds an event that is not JSON")),)
        handler = self._HANDLERS.get(message.headers.get(":event-type", ""))
        return handler(self, payload) if handler is not None else ()

    def _message_start(self, payload: dict[str, Any]) -> Sequence[StreamEvent]:
        return (self._chunk({"role": payload.get("role") or "assistant", "content": ""}),)

    def _block_start(self, payload: dict[str, Any]) -> Sequence[StreamEvent]:
        start = payload.get("start")
        tool = start.get("toolUse") if isinstance(start, dict) else None
        if not isinstance(tool, dict):
            return ()
        index = self._tools.setdefault(payload.get("contentBlockIndex"), len(self._tools))
        call = {
            "index": index,
            "id": tool.get("toolUseId"),
            "type": "function",
            "function": {"name": tool.get("name"), "arguments": ""},
        }
        return (self._chunk({"tool_calls": [call]}, content=True),)

    def _block_delta(self, payload: dict[str, Any]) -> Sequence[StreamEvent]:
        delta = payload.get("delta")
        if not isinstance(delta, dict):
            return ()
        text = delta.get("text")
        if isinstance(text, str):
            return (self._chunk({"content": text}, content=bool(text), text_length=text_size(text)),)
        tool = delta.get("toolUse")
        arguments = tool.get("input") if isinstance(tool, dict) else None
        if not isinstance(arguments, str):
            return ()
        index = self._tools.setdefault(payload.get("contentBlockIndex"), len(self._tools))
        call = {"index": index, "function": {"arguments": arguments}}
        return (self._chunk({"tool_calls": [call]}, content=True, text_length=text_size(arguments)),)

    def _message_stop(self, payload: dict[str, Any]) -> Sequence[StreamEvent]:
        self.finish_reason = _FINISH_REASONS.get(str(payload.get("stopReason")), "stop")
        return (self._chunk({}),)

    def _metadata(self, payload: dict[str, Any]) -> Sequence[StreamEvent]:
        self.usage = read_usage(payload.get("usage"))
        self.service_tier = _service_tier(payload)
        events: list[StreamEvent] = []
        if self.usage is not None:
            body = {**self._head, "choices": [], "usage": _usage_record(self.usage)}
            events.append(StreamEvent(orjson.dumps(body), usage_only=True))
        if self.finish_reason:
            self.done = True
            events.append(DONE)
        return events

    _HANDLERS: Final = {
        "messageStart": _message_start,
        "contentBlockStart": _block_start,
        "contentBlockDelta": _block_delta,
        "messageStop": _message_stop,
        "metadata": _metadata,
    }

    def _chunk(self, delta: dict[str, Any], *, content: bool = False, text_length: int = 0) -> StreamEvent:
        choice = {"index": 0, "delta": delta, "finish_reason": self.finish_reason or None}
        data = orjson.dumps({**self._head, "choices": [choice]})
        return StreamEvent(data, content=content, text_length=text_length)

    def _fail(self, event: StreamEvent) -> StreamEvent:
        self._failed = True
        return event


def _read_content(content: Any) -> tuple[str, list[dict[str, Any]]]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        if isinstance(block.get("text"), str):
            texts.append(block["text"])
        tool = block.get("toolUse")
        if isinstance(tool, dict):
            arguments = orjson.dumps(tool.get("input") or {}).decode()
            function = {"name": tool.get("name"), "arguments": arguments}
            calls.append({"id": tool.get("toolUseId"), "type": "function", "function": function})
    return "".join(texts), calls


def _completion(
    answer_id: str, model: str, text: str, calls: list[dict[str, Any]], finish_reason: str, usage: Usage | None
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    completion: dict[str, Any] = {
        "id": answer_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
    }
    if usage is not None:
        completion["usage"] = _usage_record(usage)
    return completion


def read_usage(usage: Any) -> Usage | None:
    """Converse's usage record. Bedrock counts cached tokens apart from the input; OpenAI's prompt includes them."""
    if not isinstance(usage, dict):
        return None
    cached = count(usage.get("cacheReadInputTokens"))
    written = count(usage.get("cacheWriteInputTokens"))
    details = usage.get("cacheDetails")
    if not details and not cached and not written:
        return Usage(count(usage.get("inputTokens")), count(usage.get("outputTokens")))
    by_ttl: dict[str, int] = {}
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and isinstance(detail.get("ttl"), str):
            by_ttl[detail["ttl"]] = by_ttl.get(detail["ttl"], 0) + count(detail.get("inputTokens"))
    return Usage(
        prompt_tokens=count(usage.get("inputTokens")) + cached + written,
        completion_tokens=count(usage.get("outputTokens")),
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_writes_by_ttl=by_ttl or None,
    )


def _usage_record(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _service_tier(answer: Mapping[str, Any]) -> str:
    tier = answer.get("serviceTier")
    kind = tier.get("type") if isinstance(tier, dict) else None
    return kind if isinstance(kind, str) else ""


def _answer_id(headers: Fields) -> str:
    return f"chatcmpl-{headers.get('x-amzn-requestid') or os.urandom(12).hex()}"


def _loads(data: bytes) -> Any:
    """JSON, or None for what is not."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


_REGION: Final = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")


def region_of(options: ModelOptions, environment: Mapping[str, str]) -> str:
    """The AWS region of a target; it becomes part of a host name, so nothing else may stand in it."""
    configured = options.bedrock.aws_region if options.bedrock is not None else None
    region = configured or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region:
        raise Unaddressable("model.options.bedrock.aws_region", "AWS region not specified anywhere")
    if not _REGION.fullmatch(region):
        raise Unaddressable("model.options.bedrock.aws_region", f"'{region}' is not the name of an AWS region")
    return region


def _base_url(options: ModelOptions, environment: Mapping[str, str]) -> str:
    """As AWS' SDKs do: the service's own variable first, then the general one, else the region's host."""
    region = region_of(options, environment)
    override = environment.get("AWS_ENDPOINT_URL_BEDROCK_RUNTIME") or environment.get("AWS_ENDPOINT_URL")
    if override and environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        return override.rstrip("/")
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://bedrock-runtime.{region}.{suffix}"


ROW: Final = ProviderRow(
    adapter=BedrockAdapter, base_url=_base_url, identity="aws", route_types=frozenset({"llm/v1/chat"})
)
