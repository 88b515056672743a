"""OpenAI chats as Amazon Bedrock's Converse requests.

Tuning that Converse does not know (`seed`, `n`, `logit_bias`, penalties, `response_format`, `reasoning_effort`, `user`)
is dropped. Content that it does not know (image URLs, audio, files, functions of the old kind) is refused with 400,
since an answer that ignores a part of the question is worse than none. Table: `reference/ai-plugins.md` §2.5.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from data_plane.errors import LlmError

Block = dict[str, Any]

_COPIED: Final = ("guardrailConfig", "performanceConfig", "additionalModelRequestFields")
_TUNING: Final = (("temperature", "temperature"), ("top_p", "topP"))
_SYSTEM_ROLES: Final = frozenset({"system", "developer"})
_DATA_URI: Final = re.compile(r"data:image/(?P<format>[a-z+.-]+)(?:;[^;,]*)*;base64,", re.IGNORECASE)
_IMAGE_FORMATS: Final = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "gif": "gif", "webp": "webp"}

_WITHOUT_SYSTEM: Final = re.compile(
    r"amazon\.titan-|cohere\.command-text|cohere\.command-light-text|mistral\.mistral-7b-instruct|"
    r"mistral\.mixtral-8x7b-instruct"
)
"""Models that know no system prompts; perhaps behind a region's prefix (`us.`) or inside an ARN."""


def converse_request(chat: Mapping[str, Any], model: str, forced_latency: str | None) -> dict[str, Any]:
    """The body of a Converse or ConverseStream call. Raises LlmError(400) for what cannot be said there."""
    system, messages = _conversation(chat.get("messages"))
    if system and _WITHOUT_SYSTEM.search(model):
        raise LlmError(400, f"system prompts are unsupported for model '{model}'")
    request: dict[str, Any] = {"messages": messages}
    if system:
        request["system"] = system
    if inference := _inference(chat):
        request["inferenceConfig"] = inference
    if tools := _tool_config(chat, messages):
        request["toolConfig"] = tools
    for name in _COPIED:
        if isinstance(chat.get(name), dict):
            request[name] = chat[name]
    if chat.get("top_k") is not None:
        extra = request.get("additionalModelRequestFields", {})
        request["additionalModelRequestFields"] = {**extra, "top_k": chat["top_k"]}
    if forced_latency:
        request["performanceConfig"] = {**request.get("performanceConfig", {}), "latency": forced_latency}
    return request


def _inference(chat: Mapping[str, Any]) -> dict[str, Any]:
    config = {theirs: chat[ours] for ours, theirs in _TUNING if chat.get(ours) is not None}
    limit = chat.get("max_completion_tokens")
    if limit is None:
        limit = chat.get("max_tokens")
    if limit is not None:
        config["maxTokens"] = limit
    stop = chat.get("stop")
    if stop:
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    return config


def _conversation(messages: Any) -> tuple[list[Block], list[dict[str, Any]]]:
    """System blocks, and messages whose roles alternate: what follows in the same role is put into one message."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise LlmError(400, f"{where}: expected an object")
        role = message.get("role")
        if role in _SYSTEM_ROLES:
            system += _content(message.get("content"), where, images=False)
            continue
        speaker, blocks = _turn(role, message, where)
        if not blocks:
            continue  # Bedrock refuses blank text, and an empty turn says nothing.
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": speaker, "content": blocks})
    return system, turns


def _turn(role: Any, message: Mapping[str, Any], where: str) -> tuple[str, list[Block]]:
    if role == "user":
        return "user", _content(message.get("content"), where)
    if role == "assistant":
        blocks = _content(message.get("content"), where, images=False)
        return "assistant", blocks + _tool_uses(message.get("tool_calls"), where)
    if role == "tool":
        return "user", [_tool_result(message, where)]
    raise LlmError(400, f"{where}.role: '{role}' is not supported by bedrock")


def _content(content: Any, where: str, *, images: bool = True) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"text": content}] if content.strip() else []
    if not isinstance(content, list):
        raise LlmError(400, f"{where}.content: expected a string or an array")
    blocks = (_part(part, f"{where}.content[{number}]", images) for number, part in enumerate(content))
    return [block for block in blocks if block is not None]


def _part(part: Any, where: str, images: bool) -> Block | None:
    if isinstance(part, str):
        return {"text": part} if part.strip() else None
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            raise LlmError(400, f"{where}.{kind}: expected a string")
        return {"text": text} if text.strip() else None
    if kind == "image_url" and images:
        return _image(part.get("image_url"), where)
    raise LlmError(400, f"{where}.type: '{kind}' is not supported by bedrock here")


def _image(image: Any, where: str) -> Block:
    url = image.get("url") if isinstance(image, dict) else image
    head = _DATA_URI.match(url) if isinstance(url, str) else None
    if head is None or not isinstance(url, str):
        raise LlmError(400, f"{where}.image_url: bedrock takes images only as data URIs (data:image/png;base64,…)")
    image_format = _IMAGE_FORMATS.get(head["format"].lower())
    if image_format is None:
        raise LlmError(400, f"{where}.image_url: bedrock takes png, jpeg, gif and webp images")
    data = url[head.end() :]
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise LlmError(400, f"{where}.image_url: the data URI is not valid base64") from None
    return {"image": {"format": image_format, "source": {"bytes": data}}}


def _tool_uses(calls: Any, where: str) -> list[Block]:
    blocks: list[Block] = []
    for number, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise LlmError(400, f"{where}.tool_calls[{number}]: expected a function call")
        arguments = _arguments(function.get("arguments"), f"{where}.tool_calls[{number}].function.arguments")
        blocks.append({"toolUse": {"toolUseId": call.get("id"), "name": function.get("name"), "input": arguments}})
    return blocks


def _arguments(text: Any, where: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        arguments = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise LlmError(400, f"{where}: expected a JSON object, written as a string")
    return arguments


def _tool_result(message: Mapping[str, Any], where: str) -> Block:
    content = message.get("content")
    blocks = [_result_block(content)] if isinstance(content, str) else _content(content, where)
    return {"toolResult": {"toolUseId": message.get("tool_call_id"), "content": blocks}}


def _result_block(text: str) -> Block:
    """JSON goes as JSON, which Bedrock wants to be an object: anything else is wrapped. Other text goes as text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"text": text} if text.strip() else {"json": {"result": text}}
    return {"json": value if isinstance(value, dict) else {"result": value}}


def _tool_config(chat: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    tools = chat.get("tools")
    if not isinstance(tools, list) or not tools:
        return None
    choice = chat.get("tool_choice")
    if choice == "none":
        # There is no such choice at Bedrock; leaving the tools out says it, but a conversation that has used tools
        # already is refused without them.
        return {"tools": _tool_specs(tools)} if _has_used_tools(messages) else None
    config: dict[str, Any] = {"tools": _tool_specs(tools)}
    if choice == "auto":
        config["toolChoice"] = {"auto": {}}
    elif choice == "required":
        config["toolChoice"] = {"any": {}}
    elif isinstance(choice, dict):
        function = choice.get("function")
        config["toolChoice"] = {"tool": {"name": function.get("name") if isinstance(function, dict) else None}}
    return config


def _tool_specs(tools: Sequence[Any]) -> list[dict[str, Any]]:
    specs = []
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise LlmError(400, f"tools[{number}]: bedrock takes tools of the type 'function' only")
        spec: dict[str, Any] = {"name": function.get("name")}
        if function.get("description"):
            spec["description"] = function["description"]
        spec["inputSchema"] = {"json": function.get("parameters") or {"type": "object", "properties": {}}}
        specs.append({"toolSpec": spec})
    return specs


def _has_used_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any("toolUse" in block or "toolResult" in block for message in messages for block in message["content"])
