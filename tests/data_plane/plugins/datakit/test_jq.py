"""jq inside Datakit: what programs see, what they give, how they fail, and that none of them can stop the worker."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.plugins.datakit.programs import EvaluatorPool, evaluate, message_of
from data_plane.plugins.datakit.values import NodeError, Value, dumps, loads, object_of
from gateway_schema.plugins.datakit_jq import as_text, compile_program
from tests.data_plane.plugins.datakit.kit import (
    Kit,
    call,
    failure,
    jq,
    json_of,
    json_response,
    leave,
    result_of,
    static,
)


@pytest.mark.parametrize(
    ("program", "body", "result"),
    [
        ('gsub("^\\\\s+|\\\\s+$"; "")', "  fast \n", "fast"),
        (". as $in | $in.a | .b = $in.c", {"a": {"x": 1}, "c": [2]}, {"x": 1, "b": [2]}),
        ('rtrimstr("\\n") | ltrimstr("\\"")', '"smart\n', "smart"),
        ('test("^sm")', "smart", True),
        ("@base64", "abc", "YWJj"),
        ("{a: 1, b: 2,}", None, {"a": 1, "b": 2}),
        ("# a comment\n.a # and another", {"a": 7}, 7),
        ("empty", {"a": 1}, None),
        (".[]", [3, 4], 3),
        (".a.b.c", {}, None),
        (".Apikey // .apikey", {"Apikey": "x"}, "x"),
        ("[range(3)]", None, [0, 1, 2]),
        ('reduce .[] as $x (0; . + $x) | "\\(.)"', [1, 2], "3"),
        ("env | length", None, 0),
        ("$ENV | length", None, 0),
    ],
)
async def test_programs_give_their_first_result(program: str, body: Any, result: Any) -> None:
    assert await result_of(program, body) == result


@pytest.mark.parametrize(
    ("program", "body", "reason"),
    [
        ('gsub("a"; "b")', None, "null (null) cannot be matched, as it is not a string"),
        (".x", "text", 'Cannot index string with string ("x")'),
        ('error("not allowed")', {}, "not allowed"),
        ('[range(1)] | error("in the process")', {}, "in the process"),
        (". - 1", {"apikey": "s3cret-value"}, "object (…) cannot be subtracted"),
        ('test("x")', {"apikey": "s3cret-value"}, "object (…) cannot be matched, as it is not a string"),
        (
            '[range(1)], .apikey | test("x"; 1)',
            {"apikey": "s3cret-value"},
            "array (…) cannot be matched, as it is not a string",
        ),
    ],
)
async def test_a_programs_failure_is_its_nodes_without_the_values_it_quotes(
    program: str, body: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    kit = Kit([jq("J", program, input="request.body")])
    response = await kit.send(orjson.dumps(body), headers={"Content-Type": "application/json"})
    await kit.handler.close()

    assert failure(response) == ("J", reason)
    assert "s3cret" not in caplog.text


def test_quoted_values_are_masked_and_messages_kept_short() -> None:
    assert message_of('object ({"a":"(b)"}) and string ("c") cannot be added') == "object (…) cannot be added"
    assert message_of("null (null) has no keys") == "null (null) has no keys"
    assert len(message_of("x" * 1000)) == 300


async def test_what_a_program_sees_depends_on_how_it_is_connected() -> None:
    async def script(request: Any) -> Any:
        return json_response([1], **{"X-A": "b"})

    nodes = [
        call("CALL"),
        static("S", {"k": "v", "list": []}),
        jq("VALUE", ".", input="CALL.body"),
        jq("WHOLE", ".", input="CALL"),
        jq("ONE", ".", inputs={"body": "CALL.body"}),
        jq("MAP", ".", input="S"),
        jq("KEY", ".", input="S.k"),
        jq("NOTHING", "."),
        jq("ALL", ".", inputs={n.lower(): n for n in ("VALUE", "WHOLE", "ONE", "MAP", "KEY", "NOTHING")}),
        leave(inputs={"body": "ALL"}),
    ]

    assert json_of(await Kit(nodes, script=script).send()) == {
        "value": [1],
        "whole": {
            "body": [1],
            "headers": {"Content-Type": "application/json", "X-A": "b"},
            "status": 200,
            "raw_body": "[1]",
        },
        "one": {"body": [1]},
        "map": {"k": "v", "list": []},
        "key": "v",
        "nothing": None,
    }


async def test_the_whole_request_has_all_its_fields() -> None:
    nodes = [jq("J", ".", input="request"), leave(inputs={"body": "J"})]

    seen = json_of(
        await Kit(nodes).send(b"text", target="/a%2Fb//c?x=1&x=2&flag&y=%20z+", headers={"Host": "api.test:8443"})
    )

    assert seen == {
        "body": "text",
        "headers": {"Host": "api.test:8443"},
        "query": {"x": ["1", "2"], "flag": True, "y": " z "},
        "path": "/a%2Fb/c",
        "raw_path": "/a%2Fb//c",
        "port": 8443,
        "method": "POST",
        "scheme": "http",
        "version": 1.1,
    }


# Programs that do not end


async def test_a_program_without_end_fails_its_node_and_leaves_the_loop_free() -> None:
    pool = EvaluatorPool(timeout=0.3)
    program = compile_program("until(false; .)")
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(turn())
    with pytest.raises(NodeError, match=r"took more than 0\.3 s"):
        await pool.evaluate(program, "null")
    beside.cancel()

    assert turns > 10
    assert (await pool.evaluate(compile_program("[range(2)]"), "null")).text == "[0,1]"
    await pool.close()


async def test_a_program_that_eats_memory_is_ended() -> None:
    pool = EvaluatorPool(timeout=30)

    with pytest.raises(NodeError, match=r"memory|took more"):
        await pool.evaluate(compile_program('"x" | until(false; . + .)'), "null")
    await pool.close()


async def test_cancelling_ends_the_process_and_gives_its_place_back() -> None:
    pool = EvaluatorPool(timeout=30, processes=1)
    task = asyncio.ensure_future(pool.evaluate(compile_program("until(false; .)"), "null"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with asyncio.timeout(20):
        assert (await pool.evaluate(compile_program("[range(1)]"), "null")).text == "[0]"
    await pool.close()


async def test_more_evaluations_than_processes_wait_their_turn() -> None:
    pool = EvaluatorPool(processes=1)
    program = compile_program("[range(.)] | length")

    results = await asyncio.gather(*(pool.evaluate(program, str(n)) for n in range(5)))

    assert [result.data for result in results] == [0, 1, 2, 3, 4]
    await pool.close()


async def test_large_inputs_are_worked_on_elsewhere_with_the_same_result() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 200_000}], "n": 12345678901234567890123}
    kit = Kit([jq("J", "{messages, n}", input="request.body", output="service_request.body")])

    await kit.send(b"%b" % dumps(body).encode(), headers={"Content-Type": "application/json"})

    assert loads(kit.upstream.body) == body
    await kit.handler.close()


async def test_closing_while_one_is_busy_ends_it_when_it_is_done() -> None:
    pool = EvaluatorPool()
    task = asyncio.ensure_future(pool.evaluate(compile_program("[range(100000)] | length"), "null"))
    await asyncio.sleep(0)
    await pool.close()

    assert (await task).data == 100000


# JSON

NUMBERS = st.one_of(st.integers(), st.integers(min_value=-(10**40), max_value=10**40))
TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and so are types and the order of keys."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_values_survive_text_and_jq_unchanged(data: Any) -> None:
    text = Value(data).text
    assert same(Value.of_text(text).data, data)

    through = next(iter(compile_program(".").compiled.input_text(text)))
    assert same(loads(through), data)


@given(VALUES, VALUES)
@settings(max_examples=50, deadline=None)
def test_members_survive_being_put_together_and_taken_apart(left: Any, right: Any) -> None:
    text = object_of([("left", Value(left)), ("right", Value.of_text(Value(right).text))]).text

    assert same(loads(text), {"left": left, "right": right})
    assert same(loads(next(iter(compile_program("[.right, .left]").compiled.input_text(text)))), [right, left])


async def test_a_body_goes_through_to_the_service_with_every_digit() -> None:
    raw = b'{"b":[],"a":{},"n":null,"big":123456789012345678901234567890,"f":1.0,"e":0.10,"t":"\xc3\xa9\\u0000"}'
    kit = Kit([jq("J", ". as $in | $in | .x = 1", input="request.body", output="service_request.body")])

    await kit.send(raw, headers={"Content-Type": "application/json; charset=utf-8"})

    assert kit.upstream.body == raw[:-1] + b',"x":1}'
    await kit.handler.close()


def test_the_evaluators_program_is_the_one_that_runs_inline() -> None:
    program = compile_program("def f: .n; f # x")
    assert next(iter(program.compiled.input_text('{"n":12345678901234567890123}'))) == "12345678901234567890123"
    assert as_text(program.source).startswith("(def f: .n; f # x\n")


def test_a_small_program_needs_no_event_loop() -> None:
    result = evaluate(compile_program("{model}"), Value({"model": "fast"}), EvaluatorPool())

    assert isinstance(result, Value)
    assert result.data == {"model": "fast"}
