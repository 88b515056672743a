"""OpenAI's chat completions, as bytes: whole answers, server-sent events, errors."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from cli.simulator.answers import Answer, Turn, answer, text_of

PROVIDER = "openai"


class OpenAiError(Exception):
    """An error answer; `status` and the body that OpenAI would send."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None) -> None:
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        super().__init__(message)


def check_token(expected: str | None, authorization: str | None) -> None:
    """Compare the whole Authorization header; None accepts any bearer token."""
    if authorization is None:
        raise OpenAiError(401, "You didn't provide an API key.", "invalid_request_error")
    if expected is not None and not hmac.compare_digest(authorization.encode(), expected.encode()):
        raise OpenAiError(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")


class Completion:
    """One chat request, answered."""

    def __init__(self, request: Any, number: int) -> None:
        if not isinstance(request, Mapping):
            raise OpenAiError(400, "We could not parse the JSON body of your request.", "invalid_request_error")
        self.model = self._model(request)
        self.stream = bool(request.get("stream"))
        options = request.get("stream_options") or {}
        self.include_usage = bool(options.get("include_usage")) if isinstance(options, Mapping) else False
        self.answer: Answer = answer(self.model, self._turns(request), self._limit(request))
        self._id = f"chatcmpl-simulated-{number}"
        self._created = int(time.time())
        self._tool = self._forced_tool(request)

    def _model(self, request: Mapping[str, Any]) -> str:
        model = request.get("model")
        if not isinstance(model, str) or not model:
            raise OpenAiError(400, "you must provide a model parameter", "invalid_request_error")
        if model.startswith(("o1", "o3", "o4", "gpt-5")) and "max_tokens" in request:
            raise OpenAiError(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
                "invalid_request_error",
                "unsupported_parameter",
            )
        return model

    def _turns(self, request: Mapping[str, Any]) -> list[Turn]:
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise OpenAiError(400, "Missing required parameter: 'messages'.", "invalid_request_error")
        turns = []
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise OpenAiError(400, "Invalid type for 'messages[0]': expected an object.", "invalid_request_error")
            turns.append(Turn(message["role"], text_of(message.get("content"))))
        return turns

    def _limit(self, request: Mapping[str, Any]) -> int | None:
        limit = request.get("max_completion_tokens", request.get("max_tokens"))
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise OpenAiError(400, "max_tokens is too small or not an integer.", "invalid_request_error")
        return limit

    def _forced_tool(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """A tool is called when the client insists on it (`required`, or one by name)."""
        choice, tools = request.get("tool_choice"), request.get("tools") or []
        name = None
        if isinstance(choice, Mapping):
            name = (choice.get("function") or {}).get("name")
        elif choice == "required" and tools:
            name = (tools[0].get("function") or {}).get("name")
        if name is None:
            return None
        arguments = orjson.dumps({"simulated": True}).decode()
        return {"id": "call_simulated", "type": "function", "function": {"name": name, "arguments": arguments}}

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self._tool else "length" if self.answer.truncated else "stop"

    def usage(self) -> dict[str, Any]:
        prompt, completion = self.answer.prompt_tokens, self.answer.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def whole(self) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": self.answer.text, "refusal": None}
        if self._tool:
            message |= {"content": None, "tool_calls": [self._tool]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return orjson.dumps(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self.model,
                "choices": [choice],
                "usage": self.usage(),
                "service_tier": "default",
                "system_fingerprint": "fp_simulated",
            }
        )

    def events(self) -> Iterator[tuple[bytes, bool]]:
        """Server-sent events, each with whether it carries a piece of the answer."""
        yield self._chunk({"role": "assistant", "content": "", "refusal": None}), False
        if self._tool:
            yield self._chunk({"tool_calls": [{"index": 0, **self._tool}]}), True
        else:
            for piece in self.answer.pieces:
                yield self._chunk({"content": piece}), True
        yield self._chunk({}, self.finish_reason), False
        if self.include_usage:
            yield self._frame({"choices": [], "usage": self.usage()}), False
        yield b"data: [DONE]\n\n", False

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._frame({"choices": [choice], **({"usage": None} if self.include_usage else {})})

    def _frame(self, rest: Mapping[str, Any]) -> bytes:
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }
        return b"data: " + orjson.dumps({**head, **rest}) + b"\n\n"


def error_event(message: str) -> bytes:
    return b"data: " + orjson.dumps({"error": {"message": message, "type": "server_error", "code": None}}) + b"\n\n"
