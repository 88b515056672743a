"""Amazon Bedrock's Converse and ConverseStream, as bytes: JSON answers, binary event-stream frames, errors."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from cli.simulator.answers import Answer, Turn, answer, text_of

PROVIDER = "bedrock"
EVENT_STREAM = "application/vnd.amazon.eventstream"


class BedrockError(Exception):
    """An error answer: status, the `x-amzn-errortype` header and the message."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        self.status = status
        self.error_type = error_type
        super().__init__(message)


class Conversation:
    """One Converse request, answered."""

    def __init__(self, request: Any, model: str) -> None:
        if not isinstance(request, Mapping):
            raise BedrockError(400, "SerializationException", "Unexpected start of list or value.")
        unknown = set(request) - _KNOWN
        if unknown:
            raise BedrockError(400, "ValidationException", f"Unknown parameter in input: {', '.join(sorted(unknown))}")
        self.model = model
        limit = (request.get("inferenceConfig") or {}).get("maxTokens")
        self.answer: Answer = answer(model, self._turns(request), limit)
        self._tool = self._forced_tool(request)

    def _turns(self, request: Mapping[str, Any]) -> list[Turn]:
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BedrockError(400, "ValidationException", "A conversation must have at least one message.")
        turns = [Turn("system", text_of([block])) for block in request.get("system") or []]
        expected = "user"
        for message in messages:
            role, content = message.get("role"), message.get("content")
            if role != expected:
                raise BedrockError(
                    400,
                    "ValidationException",
                    "A conversation must start with a user message, and roles must alternate.",
                )
            if not content or any(block.get("text") == "" for block in content):
                raise BedrockError(400, "ValidationException", "The text field in the ContentBlock is blank.")
            turns.append(Turn(role, text_of(content)))
            expected = "assistant" if role == "user" else "user"
        return turns

    def _forced_tool(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        config = request.get("toolConfig") or {}
        choice, tools = config.get("toolChoice") or {}, config.get("tools") or []
        name = None
        if "tool" in choice:
            name = choice["tool"].get("name")
        elif "any" in choice and tools:
            name = tools[0]["toolSpec"]["name"]
        return None if name is None else {"toolUseId": "tooluse_simulated", "name": name}

    @property
    def stop_reason(self) -> str:
        return "tool_use" if self._tool else "max_tokens" if self.answer.truncated else "end_turn"

    def usage(self) -> dict[str, int]:
        prompt, completion = self.answer.prompt_tokens, self.answer.completion_tokens
        return {"inputTokens": prompt, "outputTokens": completion, "totalTokens": prompt + completion}

    def whole(self) -> bytes:
        content: dict[str, Any] = {"text": self.answer.text}
        if self._tool:
            content = {"toolUse": {**self._tool, "input": {"simulated": True}}}
        return orjson.dumps(
            {
                "output": {"message": {"role": "assistant", "content": [content]}},
                "stopReason": self.stop_reason,
                "usage": self.usage(),
                "metrics": {"latencyMs": 1},
            }
        )

    def events(self) -> Iterator[tuple[bytes, bool]]:
        """Event-stream frames, each with whether it carries a piece of the answer."""
        yield event("messageStart", {"role": "assistant"}), False
        if self._tool:
            yield event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": self._tool}}), False
            delta = {"toolUse": {"input": '{"simulated": true}'}}
            yield event("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta}), True
        else:
            for piece in self.answer.pieces:
                yield event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}, "p": "abc"}), True
        yield event("contentBlockStop", {"contentBlockIndex": 0}), False
        yield event("messageStop", {"stopReason": self.stop_reason}), False
        yield event("metadata", {"usage": self.usage(), "metrics": {"latencyMs": 1}}), False


_KNOWN = frozenset(
    {
        "messages",
        "system",
        "inferenceConfig",
        "toolConfig",
        "guardrailConfig",
        "additionalModelRequestFields",
        "additionalModelResponseFieldPaths",
        "performanceConfig",
        "promptVariables",
        "requestMetadata",
    }
)


def event(name: str, payload: Mapping[str, Any]) -> bytes:
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, orjson.dumps(payload))


def exception(name: str, message: str) -> bytes:
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, orjson.dumps({"message": message}))


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One event-stream message: prelude, headers (all strings, type 7), payload, checksums."""
    block = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + block + payload
    return message + struct.pack("!I", zlib.crc32(message))
