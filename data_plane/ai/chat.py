"""The request's chat: parsed once, shared by all AI plugins, checked as Kong checks it."""

from __future__ import annotations

from typing import Any, Final

import orjson

from data_plane.errors import LlmError, PayloadTooLarge
from data_plane.exchange import Chat, Exchange
from data_plane.messages import BufferedBody

INVALID_PROMPTS: Final = "request body doesn't contain valid prompts"
_JSON: Final = "application/json"


async def read_chat(exchange: Exchange, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object. `limit` in bytes, 0: none.

    Raises LlmError(400) when there is none, when it is too long (Kong never says 413 here), not JSON or no object. Who
    changes the object calls `mark_changed`.
    """
    chat = chat_at_hand(exchange, limit)
    if chat is not None:
        return chat
    try:
        data = await exchange.body_bytes(limit)
    except PayloadTooLarge:
        raise LlmError(400, INVALID_PROMPTS) from None
    return _parse(exchange, data)


def chat_at_hand(exchange: Exchange, limit: int) -> dict[str, Any] | None:
    """What `read_chat` gives, where nothing must be waited for; else None. Most chats are here, whole, by now."""
    chat = exchange.chat
    if chat is not None:
        return chat.body
    request = exchange.request
    content_type = request.headers.get("content-type")
    if content_type is not None and content_type != _JSON and _JSON not in content_type.lower():
        raise LlmError(400, INVALID_PROMPTS)
    body = request.body
    if type(body) is not BufferedBody or 0 < limit < len(body.data):
        return None
    return _parse(exchange, body.data)


def _parse(exchange: Exchange, data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise LlmError(400, INVALID_PROMPTS) from None
    if type(body) is not dict:
        raise LlmError(400, INVALID_PROMPTS)
    exchange.chat = Chat(body)
    return body


def mark_changed(exchange: Exchange) -> None:
    """Say that the object which `read_chat` gave was changed in place; the bytes follow when somebody asks for them."""
    if exchange.chat is not None:
        exchange.chat.dirty = True


def has_messages(chat: dict[str, Any]) -> bool:
    messages = chat.get("messages")
    return type(messages) is list and bool(messages)


def check_is_chat(chat: dict[str, Any]) -> None:
    """Raises LlmError(400), with Kong's sentence, for a body that is not one of `llm/v1/chat`."""
    messages, prompt = chat.get("messages"), chat.get("prompt")
    if type(messages) is list and messages:
        if prompt is not None:
            raise LlmError(400, "request matches multiple LLM request formats")
        return
    if isinstance(prompt, str):
        raise LlmError(400, "[llm/v1/completions] message format is not compatible with [llm/v1/chat] route type")
    raise LlmError(400, INVALID_PROMPTS)
