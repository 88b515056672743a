"""The execution trace: who gets it, what it says, and what it never shows."""

from __future__ import annotations

from typing import Any

import pytest

from data_plane.messages import Response
from data_plane.plugins.datakit.trace import mask
from tests.data_plane.plugins.datakit.kit import Kit, Sent, call, jq, json_of, json_response

NODES = [
    jq("AUTH", '{apikey: "internal-router-key", "X-Plain": "shown"}'),
    call("ASK", inputs={"headers": "AUTH"}),
    jq("CONDITION", "false"),
    {"name": "B", "type": "branch", "input": "CONDITION", "then": ["NEVER"]},
    jq("NEVER"),
]


async def answer(request: Sent) -> Response:
    return json_response({"access_token": "t0k3n", "total_tokens": 5})


ASKED = {"X-DataKit-Debug-Trace": "1"}


@pytest.mark.parametrize(
    ("debug", "allowed", "headers"),
    [(True, True, {}), (True, False, ASKED), (False, True, ASKED), (True, True, {"X-DataKit-Debug-Trace": "no"})],
)
async def test_a_trace_needs_debug_the_operators_leave_and_the_header(
    debug: bool, allowed: bool, headers: dict[str, str]
) -> None:
    kit = Kit(NODES, debug=debug, script=answer, debug_trace_allowed=allowed)

    assert json_of(await kit.send(headers=headers)) == {"ok": True}


@pytest.mark.parametrize("value", ["true", "YES", "on", "1", "enabled"])
async def test_a_trace_takes_the_responses_place_after_the_service_was_called(value: str) -> None:
    kit = Kit(NODES, script=answer, debug_trace_allowed=True)

    trace = json_of(await kit.send(headers={"X-DataKit-Debug-Trace": value}))

    assert kit.upstream.called
    assert trace["status"] == "complete"
    assert [(node["name"], node["status"]) for node in trace["nodes"]] == [
        ("AUTH", "NODE_COMPLETE"),
        ("ASK", "NODE_COMPLETE"),
        ("CONDITION", "NODE_COMPLETE"),
        ("B", "NODE_COMPLETE"),
        ("NEVER", "NODE_SKIPPED"),
    ]
    assert [event["action"] for event in trace["events"] if event["name"] == "AUTH"] == ["run", "complete"]
    assert [event["action"] for event in trace["events"] if event["name"] == "ASK"] == ["dispatch", "complete"]
    assert all(0 <= event["at"] <= trace["duration"] for event in trace["events"])


async def test_secrets_are_masked() -> None:
    kit = Kit(NODES, script=answer, debug_trace_allowed=True)

    response = await kit.send(headers=ASKED)

    assert isinstance(response.body, bytes)
    assert b"internal-router-key" not in response.body
    assert b"t0k3n" not in response.body
    assert b"shown" in response.body
    assert b'"total_tokens":5' in response.body


async def test_a_failure_is_traced_too() -> None:
    async def refuse(request: Sent) -> Response:
        return Response(403)

    kit = Kit(NODES, script=refuse, debug_trace_allowed=True)

    response = await kit.send(headers=ASKED)
    trace: dict[str, Any] = json_of(response)

    assert (response.status, trace["status"]) == (500, "fail")
    failed = next(node for node in trace["nodes"] if node["name"] == "ASK")
    assert failed == {"name": "ASK", "type": "call", "status": "NODE_ERROR", "error": "non-2XX response code: 403"}


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "proxy-authorization",
        "apikey",
        "API-Key",
        "x-api-key",
        "Cookie",
        "set-cookie",
        "client_secret",
        "password",
        "access_token",
        "X-Consumer-Username",
        "X-Credential-Identifier",
        "aws_access_key_id",
        "key",
    ],
)
def test_members_of_these_names_are_masked(name: str) -> None:
    assert mask({"a": [{name: "s3cret"}]}) == {"a": [{name: "********"}]}


def test_other_members_are_shown_and_long_texts_cut() -> None:
    assert mask({"max_tokens": 5, "keys": ["a"], "apikey": None}) == {"max_tokens": 5, "keys": ["a"], "apikey": None}
    assert len(mask("x" * 5000)) < 2100
    assert mask(b"\xff\xfe") == "(2 bytes)"
    assert mask("Bearer abc") == "********"
    assert mask('{"apikey":"s3cret"}') == '{"apikey":"********"}'
    assert mask("{not json") == "{not json"
