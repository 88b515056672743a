"""Node lists of the model-based-routing recipe: as its file has them, and as its page explains them."""

from __future__ import annotations

from typing import Any

APPLIED: list[dict[str, Any]] = [
    {"name": "EXTRACT_PROMPT", "type": "jq", "input": "request.body", "jq": '({"messages": .messages})\n'},
    {
        "name": "EXTRACT_AUTH",
        "type": "jq",
        "input": "request.headers",
        "output": "service_request.headers",
        "jq": '{\n  apikey: "internal-router-key"\n}\n',
    },
    {
        "name": "CALL_MODEL_SELECTOR",
        "type": "call",
        "url": "http://localhost:8000/model-selection",
        "method": "POST",
        "inputs": {"body": "EXTRACT_PROMPT", "headers": "EXTRACT_AUTH"},
    },
    {
        "name": "EXTRACT_MODEL",
        "type": "jq",
        "inputs": {"body": "CALL_MODEL_SELECTOR.body"},
        "jq": '.body.choices[0].message.content | gsub("^\\\\s+|\\\\s+$"; "")\n',
    },
    {
        "name": "UPDATE_REQUEST",
        "type": "jq",
        "inputs": {"original": "request.body", "selected": "EXTRACT_MODEL"},
        "output": "service_request.body",
        "jq": ". as $in | $in.original | .model = $in.selected\n",
    },
]

EXPLAINED: list[dict[str, Any]] = [
    {
        "name": "EXTRACT_PROMPT",
        "type": "jq",
        "input": "request.body",
        "output": "prompt_data",
        "jq": "{messages: .messages}",
    },
    {
        "name": "EXTRACT_AUTH",
        "type": "jq",
        "input": "request.headers",
        "output": "auth_header",
        "jq": "{apikey: (.apikey // .Apikey)}",
    },
    {
        "name": "CALL_MODEL_SELECTOR",
        "type": "call",
        "url": "http://localhost:8000/model-selection",
        "method": "POST",
        "inputs": {"body": "EXTRACT_PROMPT.prompt_data", "headers": "EXTRACT_AUTH.auth_header"},
    },
    {
        "name": "EXTRACT_MODEL",
        "type": "jq",
        "input": "CALL_MODEL_SELECTOR.body",
        "output": "tier",
        "jq": '.choices[0].message.content | rtrimstr("\\n") | ltrimstr("\\"")',
    },
    {
        "name": "UPDATE_REQUEST",
        "type": "jq",
        "inputs": {"original": "request.body", "selected": "EXTRACT_MODEL.tier"},
        "output": "modified_body",
        "jq": '.original | .model = (.selected | gsub("\\""; ""))',
    },
    {"name": "service_request", "inputs": {"body": "UPDATE_REQUEST.modified_body"}},
]

MENDED_PROGRAMS = {
    "EXTRACT_AUTH": '{apikey: "internal-router-key"}',
    "UPDATE_REQUEST": '. as $in | $in.original | .model = ($in.selected | gsub("\\""; ""))',
}
"""The explained list's two slips: by the time it looks, key-auth has hidden the client's key; and on the right of `=`
the dot is the original body, which has no `selected`."""


def mended(*names: str) -> list[dict[str, Any]]:
    """The explained list with these nodes' programs mended (none named: all)."""
    wanted = names or tuple(MENDED_PROGRAMS)
    return [{**node, "jq": MENDED_PROGRAMS[node["name"]]} if node["name"] in wanted else node for node in EXPLAINED]
