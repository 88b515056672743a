"""What runs when: concurrency, branches, exits, failures, cancellation, deadlines, the two phases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.errors import InvalidResponse, UpstreamTimeout
from data_plane.messages import Headers, Response
from data_plane.plugins.datakit import handler
from data_plane.plugins.datakit.engine import Stage, run_stage
from data_plane.plugins.datakit.sources import read_output
from data_plane.plugins.datakit.state import State
from data_plane.plugins.datakit.values import Value
from gateway_schema.plugins.datakit_jq import Program
from tests.data_plane.plugins.datakit.kit import (
    Kit,
    Node,
    Sent,
    call,
    failure,
    forever,
    jq,
    json_of,
    json_response,
    leave,
    prop,
    static,
)

BOTH = [
    call("CAT"),
    call("DOG"),
    jq("JOIN", "{cat: .cat.from, dog: .dog.from}", inputs={"cat": "CAT.body", "dog": "DOG.body"}),
    leave(inputs={"body": "JOIN"}, status=201),
]


async def test_two_calls_overlap_and_both_are_combined() -> None:
    met = asyncio.Barrier(2)

    async def script(request: Sent) -> Response:
        await met.wait()  # each waits for the other: one after the other they would wait for ever
        return json_response({"from": request.url})

    kit = Kit(BOTH, script=script)

    async with asyncio.timeout(5):
        response = await kit.send()

    assert response.status == 201
    assert json_of(response) == {"cat": "http://cat.test/", "dog": "http://dog.test/"}
    assert response.headers.get("content-type") == "application/json"
    assert not kit.upstream.called


async def test_calls_that_overlap_count_once_as_callout_time() -> None:
    kit = Kit(BOTH)
    started = time.monotonic()

    await kit.send()

    assert 0 < kit.exchange.marks.callouts <= time.monotonic() - started


async def test_a_failure_cancels_what_still_runs_and_waits_for_its_end() -> None:
    ended = asyncio.Event()

    async def script(request: Sent) -> Response:
        if "dog" in request.url:
            return Response(503)
        try:
            await forever()
        finally:
            ended.set()
        raise AssertionError

    kit = Kit(BOTH, script=script)

    assert failure(await kit.send()) == ("DOG", "non-2XX response code: 503")
    assert ended.is_set()
    assert kit.network.closed == 1


async def test_two_calls_that_fail_at_once_are_told_as_the_first() -> None:
    met = asyncio.Barrier(2)

    async def script(request: Sent) -> Response:
        await met.wait()
        return Response(500)

    assert failure(await Kit(BOTH, script=script).send()) == ("CAT", "non-2XX response code: 500")


async def test_an_exit_cancels_what_still_runs() -> None:
    reached = asyncio.Event()
    ended = asyncio.Event()

    async def script(request: Sent) -> Response:
        if "quick" in request.url:
            await reached.wait()
            return json_response({})
        reached.set()
        try:
            await forever()
        finally:
            ended.set()
        raise AssertionError

    kit = Kit([call("QUICK"), call("SLOW"), leave(inputs={"body": "QUICK.body"})], script=script)

    assert (await kit.send()).status == 200
    assert ended.is_set()


async def test_a_client_that_leaves_cancels_the_calls() -> None:
    reached = asyncio.Event()
    ended: list[str] = []

    async def script(request: Sent) -> Response:
        reached.set()
        try:
            await forever()
        finally:
            ended.append(request.url)
        raise AssertionError

    for nodes in (BOTH, [call("ALONE")]):
        ended.clear()
        reached.clear()
        task = asyncio.create_task(Kit(nodes, script=script).send())
        await reached.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(ended) == sum(node["type"] == "call" for node in nodes)


async def test_nodes_that_wait_for_nothing_run_while_a_call_is_under_way() -> None:
    release = asyncio.Event()

    async def script(request: Sent) -> Response:
        await release.wait()
        return json_response({})

    kit = Kit([call("SLOW"), prop("SET", "kong.ctx.shared.x", input="request.method")], script=script)
    task = asyncio.create_task(kit.send())
    while "x" not in kit.exchange.shared:
        await asyncio.sleep(0)
        assert not task.done()
    release.set()

    assert (await task).status == 200


async def test_a_call_for_its_side_effect_alone_is_made() -> None:
    kit = Kit([call("PING")])

    assert (await kit.send()).status == 200
    assert [sent.url for sent in kit.network.sent] == ["http://ping.test/"]


@pytest.mark.parametrize("error", [UpstreamTimeout("timeout_connect"), InvalidResponse("refused", "at 10.1.2.3")])
async def test_a_call_that_gets_no_answer_fails_its_node_by_kind(error: Exception) -> None:
    async def script(request: Sent) -> Response:
        raise error

    name, reason = failure(await Kit([call("C")], script=script).send())

    assert name == "C"
    assert reason in {"the call failed: timeout connect", "the call failed: refused"}


async def test_a_call_is_given_its_own_timeout_and_never_more_than_the_exchange_has_left() -> None:
    kit = Kit([call("C", timeout=1500)])
    await kit.send()
    assert kit.network.sent[0].options["timeout"] == 1.5

    await kit.send(prepare=lambda subject: setattr(subject, "deadline", time.monotonic() + 0.5))
    assert 0 < kit.network.sent[1].options["timeout"] <= 0.5

    response = await kit.send(prepare=lambda subject: setattr(subject, "deadline", time.monotonic() - 1))
    assert failure(response) == ("C", "the workflow took too long")
    assert len(kit.network.sent) == 2


async def test_a_fault_of_ours_is_not_dressed_as_a_nodes_failure() -> None:
    async def script(request: Sent) -> Response:
        raise ZeroDivisionError

    for nodes in (BOTH, [call("ALONE")]):
        response = await Kit(nodes, script=script).send(headers={"Accept": "application/json"})
        assert (response.status, json_of(response)["message"]) == (500, "An unexpected error occurred")


# Branches


def branching(**extra: Any) -> list[dict[str, Any]]:
    return [
        jq("IS_BIG", ".n > 5", input="request.body"),
        {"name": "SIZE", "type": "branch", "input": "IS_BIG", "then": ["BIG"], "else": ["SMALL"], **extra},
        call("BIG"),
        call("SMALL"),
        jq("EITHER", "{big: .b, small: .s}", inputs={"b": "BIG.body", "s": "SMALL.body"}),
        leave(inputs={"body": "EITHER"}),
    ]


@pytest.mark.parametrize(("n", "taken"), [(9, "big"), (1, "small")])
async def test_a_branch_runs_one_side_and_readers_of_the_other_see_null(n: int, taken: str) -> None:
    kit = Kit(branching())

    result = json_of(await kit.send({"n": n}))

    assert [sent.url for sent in kit.network.sent] == [f"http://{taken}.test/"]
    assert {side for side, body in result.items() if body is not None} == {taken}


async def test_a_condition_that_is_no_boolean_fails_the_branch() -> None:
    nodes = [jq("J", '"true"'), {"name": "B", "type": "branch", "input": "J", "then": ["K"]}, jq("K")]
    assert failure(await Kit(nodes).send()) == ("B", "input: expected a boolean, got string")

    unconnected = [{"name": "B", "type": "branch", "then": ["K"]}, jq("K")]
    assert failure(await Kit(unconnected).send()) == ("B", "input: expected a boolean, got null")


async def test_skipping_a_branch_skips_what_only_it_lists() -> None:
    nodes = [
        static("NO", {"v": False}),
        static("YES", {"v": True}),
        {"name": "OUTER", "type": "branch", "input": "NO.v", "then": ["INNER"]},
        {"name": "INNER", "type": "branch", "input": "YES.v", "then": ["DEEP", "SHARED"]},
        {"name": "OTHER", "type": "branch", "input": "YES.v", "then": ["SHARED"]},
        call("DEEP"),
        call("SHARED"),
    ]
    kit = Kit(nodes)

    await kit.send()

    assert [sent.url for sent in kit.network.sent] == ["http://shared.test/"]


async def test_a_node_runs_when_any_branch_that_lists_it_says_so() -> None:
    nodes = [
        static("S", {"no": False, "yes": True}),
        {"name": "A", "type": "branch", "input": "S.no", "then": ["N"], "else": ["M"]},
        {"name": "B", "type": "branch", "input": "S.yes", "then": ["N"]},
        call("N"),
        call("M"),
    ]
    kit = Kit(nodes)

    await kit.send()

    assert {sent.url for sent in kit.network.sent} == {"http://n.test/", "http://m.test/"}


async def test_a_skipped_exit_lets_the_request_go_on() -> None:
    nodes = [
        jq("OK", '.key == "secret"', input="request.query"),
        {"name": "B", "type": "branch", "input": "OK", "else": ["REFUSE"]},
        leave("REFUSE", status=403),
    ]
    kit = Kit(nodes)

    assert (await kit.send(target="/?key=secret")).status == 200
    assert kit.upstream.called
    assert (await kit.send(target="/?key=other")).status == 403
    assert not kit.upstream.called


# The response phase


async def test_nodes_of_the_response_see_it_and_those_of_the_request_still() -> None:
    nodes = [
        jq("EARLY", ".n", input="request.body"),
        jq(
            "LATE",
            "{n: .early, status: .r.status, body: .r.body, m: .m, t: (.r.headers | keys)}",
            inputs={"early": "EARLY", "r": "WHOLE", "m": "request.method"},
        ),
        jq("WHOLE", ".", input="service_response"),
        jq("OUT", ".", input="LATE", output="response.body"),
    ]
    kit = Kit(nodes)

    response = await kit.send({"n": 1}, upstream=json_response({"v": []}, 202, **{"X-Up": "y"}))

    assert response.status == 202
    assert json_of(response) == {
        "n": 1,
        "status": 202,
        "body": {"v": []},
        "m": "POST",
        "t": ["Content-Type", "X-Up"],
    }
    assert response.headers.get("content-length") == str(len(await response.read()))
    assert response.source == "upstream"


async def test_an_exit_after_the_response_takes_its_place_and_lets_it_go() -> None:
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    upstream = Response(500, Headers([("X-Up", "y")]), b"boom")
    upstream.on_close(close)
    nodes = [jq("S", "{was: .}", input="service_response.status"), leave(inputs={"body": "S"}, status=200)]

    response = await Kit(nodes).send(upstream=upstream)

    assert (response.status, json_of(response)) == (200, {"was": 500})
    assert "x-up" not in response.headers
    assert closed.is_set()


async def test_a_failure_after_the_response_lets_it_go() -> None:
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    upstream = Response(200, Headers([("Content-Type", "application/json")]), b"not json")
    upstream.on_close(close)

    response = await Kit([jq("J", input="service_response.body")]).send(upstream=upstream)

    assert failure(response) == ("J", "the body is not valid JSON, though its content type says so")
    assert closed.is_set()


async def test_response_sinks_fed_early_wait_for_the_response_and_leave_its_stream_alone() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"

    body = pieces()
    upstream = Response(200, Headers([("X-Old", "1"), ("X-Kept", "2")]), body)
    nodes = [static("H", {"X-New": ["a", "b"], "X-Old": None}, output="response.headers")]

    response = await Kit(nodes).send(upstream=upstream)

    assert response.body is body
    assert response.headers.raw == [("X-Kept", "2"), ("X-New", "a"), ("X-New", "b")]


async def test_nodes_that_read_only_status_and_headers_leave_the_stream_alone() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"

    body = pieces()
    nodes = [jq("H", '{"X-Was": tostring}', input="service_response.status", output="response.headers")]

    response = await Kit(nodes).send(upstream=Response(201, body=body))

    assert response.body is body
    assert response.headers.get("x-was") == "201"


async def test_a_stream_that_nodes_read_is_buffered() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a"'
        yield b":1}"

    upstream = Response(200, Headers([("Content-Type", "application/json")]), pieces())
    nodes = [jq("J", ".a", input="service_response.body", output="K"), jq("K", "{b: .}", output="response.body")]
    kit = Kit(nodes)

    response = await kit.send(upstream=upstream, headers={"Accept-Encoding": "gzip"})

    assert json_of(response) == {"b": 1}
    assert "accept-encoding" not in kit.exchange.request.headers


async def test_a_stream_of_events_is_never_buffered() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"

    body = pieces()
    upstream = Response(200, Headers([("Content-Type", "text/event-stream; charset=utf-8")]), body)

    response = await Kit([jq("J", '"x"', input="service_response.body", output="response.body")]).send(
        upstream=upstream
    )

    assert response.body is body


async def test_a_response_too_long_to_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_plane.plugins.datakit.handler.MAX_BODY", 10)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"12345"

    response = await Kit([jq("J", input="service_response.body")]).send(upstream=Response(200, body=pieces()))

    assert failure(response) == ("service_response", "the body is longer than 10 bytes")


# What is foreseen


@st.composite
def workflows(draw: st.DrawFn) -> list[Node]:
    """Nodes of several kinds, each fed by some before it, in any order."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 8))):
        name = f"N{number}"
        sources = [node["name"] for node in nodes if node["type"] not in ("exit", "branch")]
        inputs = {
            f"i{position}": source
            for position, source in enumerate(draw(st.lists(st.sampled_from(sources or ["request.body"]), max_size=3)))
        }
        kind = draw(st.sampled_from(["jq", "pooled", "failing", "call", "call", "exit", "branch", "property"]))
        if kind == "jq":
            nodes.append(jq(name, f'{{at: "{name}", saw: .}}', inputs=inputs))
        elif kind == "pooled":
            nodes.append(jq(name, f'def f: {{at: "{name}"}}; f', inputs=inputs))
        elif kind == "failing":
            nodes.append(jq(name, draw(st.sampled_from([".", "error", "$__loc__"])), inputs=inputs))
        elif kind == "call":
            nodes.append(call(name, method="POST", inputs={"body": next(iter(inputs.values()), "request.body")}))
        elif kind == "exit":
            nodes.append(leave(name, inputs={"body": next(iter(inputs.values()), "request.body")}))
        elif kind == "property":
            nodes.append(prop(name, "kong.ctx.shared.last", input=next(iter(inputs.values()), "request.method")))
        else:
            flag = static(f"S{number}", {"is": draw(st.booleans())})
            listed = [node["name"] for node in nodes if draw(st.booleans())]
            later = {"name": name, "type": "branch", "input": f"S{number}.is"}
            split = draw(st.integers(0, len(listed)))
            sides = {"then": listed[:split], "else": listed[split:]}
            nodes += [flag, later | {side: names for side, names in sides.items() if names}]
    return list(draw(st.permutations(nodes)))


async def course_of(nodes: list[Node], *, foresees: bool) -> Any:
    kit = Kit(nodes)
    if not foresees:
        kit.handler._before.foreseen = kit.handler._before.opening = ()
    kit.handler._pool.evaluate = evaluated  # type: ignore[method-assign]
    outputs: dict[str, Any] = {}

    async def watched(stage: Stage, state: State) -> Response | None:
        try:
            return await run_stage(stage, state)
        finally:
            outputs.update((name, read_output(output, None).text) for name, output in state.outputs.items())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler, "run_stage", watched)
        response = await kit.send({"a": [1]}, prepare=lambda subject: setattr(subject, "id", "same"))
    for node in nodes:
        if node["type"] == "exit":
            outputs.pop(node["name"], None)
    calls = [(sent.method, sent.url, sent.headers, sent.body) for sent in kit.network.sent]
    shared = kit.exchange.shared.get("last")
    return response.status, response.body, calls, shared, outputs, kit.upstream.called, kit.network.closed


async def evaluated(program: Program, text: str) -> Value:
    """What a process would say, a moment later."""
    await asyncio.sleep(0)
    return Value.of_text(next(iter(program.compiled.input_text(text))))


@settings(deadline=None)
@given(workflows())
async def test_what_is_foreseen_takes_the_course_that_it_would_have_taken(nodes: list[Node]) -> None:
    assert await course_of(nodes, foresees=True) == await course_of(nodes, foresees=False)


@pytest.mark.parametrize(
    ("nodes", "foreseen"),
    [
        ([jq("A", inputs={"b": "B"}), jq("B"), call("C", inputs={"body": "A"}), jq("D", inputs={"c": "C.body"})], 4),
        ([call("A"), jq("B")], 0),
        ([call("A"), jq("B", inputs={"a": "A.body"})], 2),
        ([jq("A"), call("B", inputs={"body": "A"}), call("C", inputs={"body": "A"})], 1),
        ([static("S", {"a": True}), {"name": "B", "type": "branch", "input": "S.a", "then": ["C"]}, jq("C")], 2),
    ],
)
def test_what_waits_for_nothing_else_is_foreseen(nodes: list[Node], foreseen: int) -> None:
    assert len(Kit(nodes).handler._before.foreseen) == foreseen


async def test_a_program_for_a_process_leaves_the_rest_to_their_turns() -> None:
    nodes = [
        jq("SLOW", "def f: {at: 1}; f", input="request.body"),
        prop("SET", "kong.ctx.shared.x", input="request.method"),
        jq("END", "{slow: .s}", inputs={"s": "SLOW"}),
        leave(inputs={"body": "END"}),
    ]
    kit = Kit(nodes)
    assert len(kit.handler._before.foreseen) == 4

    shared: list[Any] = []

    async def evaluate(program: Program, text: str) -> Value:
        await asyncio.sleep(0)
        shared.append(kit.exchange.shared["x"])
        return await evaluated(program, text)

    kit.handler._pool.evaluate = evaluate  # type: ignore[method-assign]

    assert json_of(await kit.send({})) == {"slow": {"at": 1}}
    assert shared == ["POST"]
