"""The `ai.proxy` object of the log record (`reference/ai-plugins.md` §4.1). Times in milliseconds, cost in USD."""

from __future__ import annotations

from typing import Any

import orjson

from data_plane.ai.calls import MAX_PAYLOAD, Attempt, Payload
from data_plane.ai.decision import Decision
from data_plane.exchange import LlmCall


def ai_proxy_object(decision: Decision) -> dict[str, Any] | None:
    """What the serving target's `logging` allows; None when nothing was asked or it allows nothing."""
    attempt = decision.last
    if attempt is None:
        return None
    record: dict[str, Any] = {}
    if attempt.target.config.logging.log_statistics:
        record["meta"] = _meta(attempt.call)
        record["usage"] = _usage(attempt.call)
        record["tried_targets"] = [_tried(target.describe(), outcome) for target, outcome in decision.attempts]
        record["decision_id"] = decision.id
    if attempt.payload is not None:
        record["payload"] = _payload(attempt, attempt.payload)
    return record or None


def _meta(call: LlmCall) -> dict[str, Any]:
    return {
        "plugin_id": call.plugin_id,
        "provider_name": call.provider,
        "request_model": call.request_model or "UNSPECIFIED",
        "response_model": call.response_model or call.request_model,
        "llm_latency": int(call.duration * 1000),
        "request_mode": "stream" if call.stream else "oneshot",
    }


def _usage(call: LlmCall) -> dict[str, Any]:
    latency = call.duration * 1000
    first = latency if call.ttft is None else call.ttft * 1000
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "total_tokens": call.prompt_tokens + call.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": call.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": call.reasoning_tokens},
        "cost": (call.cost_nano_usd or 0) / 1_000_000_000,
        "time_per_token": latency / call.completion_tokens if call.completion_tokens else 0,
        "time_to_first_token": int(first),
        "token_source": call.token_source,
    }


def _tried(target: dict[str, Any], outcome: str) -> dict[str, Any]:
    return {**target, "outcome": outcome}


def _payload(attempt: Attempt, payload: Payload) -> dict[str, str]:
    return {"request": _text(payload.request), "response": _text(payload.response or _rebuilt(attempt, payload))}


def _rebuilt(attempt: Attempt, payload: Payload) -> bytes:
    """A streamed answer as one completion: its texts joined."""
    if not payload.texts:
        return b""
    call = attempt.call
    message = {"role": "assistant", "content": "".join(payload.texts)}
    completion = {
        "object": "chat.completion",
        "model": call.response_model or call.request_model,
        "choices": [{"index": 0, "message": message, "finish_reason": call.finish_reason or None}],
        "usage": {
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
            "total_tokens": call.prompt_tokens + call.completion_tokens,
        },
    }
    return orjson.dumps(completion)


def _text(data: bytes) -> str:
    return data[:MAX_PAYLOAD].decode("utf-8", "replace")
