"""The request's chat: parsed once, shared by all AI plugins, checked as Kong checks it."""

from __future__ import annotations

from typing import Any, Final

import orjson

from data_plane.errors import LlmError, PayloadTooLarge
from data_plane.exchange import Chat, Exchange

INVALID_PROMPTS: Final = "request body doesn't contain valid prompts"


async def read_chat(exchange: Exchange, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object. `limit` in bytes, 0: none.

    Raises LlmError(400) when there is none, when it is too long (Kong never says 413 here), not JSON or no object. Who
    changes the object calls `mark_changed`.
    """
    chat = exchange.chat
    if chat is not None:
        return chat.body
    content_type = exchange.request.headers.get("content-type")
    if content_type is not None and "application/json" not in content_type.lower():
        raise LlmError(400, INVALID_PROMPTS)
    try:
        body = orjson.loads(await exchange.body_bytes(limit))
    except (PayloadTooLarge, orjson.JSONDecodeError):
        raise LlmError(400, INVALID_PROMPTS) from None
    if not isinstance(body, dict):
        raise LlmError(400, INVALID_PROMPTS)
    exchange.chat = Chat(body)
    return body


def replace_chat(exchange: Exchange, body: dict[str, Any]) -> None:
    """Put another object in the place of the one that was read; the bytes follow when somebody asks for them."""
    exchange.chat = Chat(body, dirty=True)


def mark_changed(exchange: Exchange) -> None:
    """Say that the object which `read_chat` gave was changed in place."""
    if exchange.chat is not None:
        exchange.chat.dirty = True


def has_messages(chat: dict[str, Any]) -> bool:
    messages = chat.get("messages")
    return isinstance(messages, list) and bool(messages)


def check_is_chat(chat: dict[str, Any]) -> None:
    """Raises LlmError(400), with Kong's sentence, for a body that is not one of `llm/v1/chat`."""
    prompt = chat.get("prompt")
    if has_messages(chat):
        if prompt is not None:
            raise LlmError(400, "request matches multiple LLM request formats")
        return
    if isinstance(prompt, str):
        raise LlmError(400, "[llm/v1/completions] message format is not compatible with [llm/v1/chat] route type")
    raise LlmError(400, INVALID_PROMPTS)
