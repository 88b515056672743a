"""Programs that are worked out without jq give what jq gives, or are left to it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import jq
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_plane.plugins.datakit.simple import _MINUS_ZERO
from data_plane.plugins.datakit.simple import compiled as simple
from data_plane.plugins.datakit.values import NULL, Value, dumps, loads, object_of, read_body
from gateway_schema.plugins.datakit_jq import as_text

TRIM = r'gsub("^\\s+|\\s+$"; "")'
RECIPE = (
    '({"messages": .messages})\n',
    '{\n  apikey: "internal-router-key"\n}\n\n',
    r'.body.choices[0].message.content | gsub("^\\s+|\\s+$"; "")' + "\n\n\n",
    ". as $in | $in.original | .model = $in.selected\n",
)
PROGRAMS = (
    *RECIPE,
    ".",
    ".a",
    ".a.b[0].c",
    ".[1]",
    ".a[-1]",
    "(.a|.b)",
    "{}",
    '{"a b": .a, c: "d"}',
    '{a: ., a: .a, "if": .b}',
    '.a = "x"',
    ".a = .b",
    ".b = . | .c",
    '. as $x | {a: $x.a, b: $x} | .c = "1"',
    TRIM,
    ".a | " + TRIM,
    ". as $x | .a | {b: ., c: $x.a[0]}",
)

KEYS = st.sampled_from(
    ["a", "b", "c", "body", "choices", "message", "messages", "content", "original", "selected", "model"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.text(alphabet=" \t\n\v\f\rab\x1c\x1f\x85\xa0\u2003\x7f", max_size=6)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@lru_cache(maxsize=64)
def compiled(program: str) -> Any:
    return jq.compile(as_text(program))


def by_libjq(program: str, text: str) -> Any:
    try:
        return ("value", next(iter(compiled(program).input_text(text))))
    except ValueError:
        return ("error", None)


def evaluate(program: str, value: Value) -> Value | None:
    known = simple(program)
    return None if known is None else known.of(value)


def agrees(program: str, text: str) -> bool:
    """Whether both ways give the same, down to the digits of numbers and the order of keys; False when left to jq."""
    mine = evaluate(program, Value.of_text(text))
    if mine is None:
        return False
    kind, theirs = by_libjq(program, text)
    assert kind == "value"
    assert repr(mine.data) == repr(loads(theirs))
    return True


@settings(deadline=None)
@given(st.sampled_from(PROGRAMS), VALUES)
@example(TRIM, " a \n b ")
@example(TRIM, " \n ")
@example(TRIM, "a\n\n")
@example(TRIM, "")
@example(".a.b[0].c", {"a": {"b": []}})
@example(".a", [1])
@example('.a = "x"', None)
def test_what_is_worked_out_is_what_jq_says(program: str, value: Any) -> None:
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a number beyond 64 bits
        return
    agrees(program, text)


@settings(deadline=None)
@given(
    st.sampled_from(PROGRAMS),
    st.sampled_from(
        [
            '{"a":1.0}',
            '{"a":[1e2]}',
            '{"a":-0}',
            "-0",
            "1.50",
            '{"a":100000000000000000000}',
            '{"a":"\\ud800"}',
            '{"a":1,"b":2,"a":{"b":3}}',
            ' { "a" : [ 0.10 , 2 ] } ',
            '{"a":"\\u0000 "}',
            '{"a":"\\u007f"}',
            "[" * 300 + "]" * 300,
        ]
    ),
)
def test_odd_texts_are_the_same_either_way(program: str, text: str) -> None:
    agrees(program, text)


PIECES = st.sampled_from(
    [
        ".",
        "a",
        ".a",
        "[0]",
        "[-1]",
        "$x",
        "as",
        " ",
        "|",
        "{",
        "}",
        ":",
        ",",
        "=",
        "(",
        ")",
        '"t"',
        "if",
        ". as $x |",
        TRIM,
    ]
)


@settings(deadline=None)
@given(
    st.lists(PIECES, max_size=9).map("".join), st.sampled_from(['{"a":{"a":[1,"t "]},"t":2}', "null", '[" a"]', '"s "'])
)
@example(".a|", "null")
@example("(.a)|(.a)", "null")
@example("..a", '{"a":1}')
@example(". .a", '{"a":1}')
@example(".a .a", '{"a":{"a":1}}')
@example(".a [0]", '{"a":[1]}')
@example("{if: .a}", "null")
@example(".a = .a = .a", "null")
def test_a_program_that_jq_refuses_is_never_worked_out(program: str, text: str) -> None:
    agrees(program, text)


@pytest.mark.parametrize("program", RECIPE)
def test_the_recipe_needs_no_jq(program: str) -> None:
    value = {
        "messages": [{"role": "user", "content": "hi"}],
        "body": {"choices": [{"message": {"content": " fast\n"}}]},
        "original": {"model": "x", "messages": []},
        "selected": "fast",
    }
    assert agrees(program, orjson.dumps(value).decode())


def grown(text: str, origin: str) -> Value:
    """A value as one node or another would make it."""
    if origin == "text":
        return Value.of_text(text)
    if origin == "body":
        return read_body(text.encode(), "application/json")
    if origin == "data":
        return Value(loads(text))
    return evaluate(".", Value.of_text(text)) or Value.of_text(text)


TEXTS = VALUES.map(dumps) | st.sampled_from(
    [
        "-0",
        "1.50",
        "12345678901234567890123",
        "[9007199254740993]",
        '"\\u007f"',
        '"' + "x" * 5000 + '"',
        "[" * 300 + "]" * 300,
    ]
)
LONG = "[" + "1," * 40_000 + "1]"
MEMBERS = st.dictionaries(
    st.sampled_from(["a", "b", "body", "original", "selected"]),
    st.tuples(TEXTS, st.sampled_from(["text", "body", "data", "result"])),
    min_size=1,
)


@settings(deadline=None)
@given(st.sampled_from(PROGRAMS), MEMBERS)
@example(RECIPE[3], {"original": ('{"model":"x","n":1}', "body"), "selected": ('"fast"', "result")})
@example(".a", {"a": ('"' + "x" * 5000 + '"', "result"), "b": (LONG, "body")})
def test_members_give_what_the_object_made_of_them_gives(program: str, members: dict[str, tuple[str, str]]) -> None:
    made = {name: grown(*member) for name, member in members.items()}
    known = simple(program)
    assert known is not None

    for _ in range(2):  # the second time with what is known about the values by then
        mine = known.of_members(made)  # type: ignore[arg-type]
        if mine is not None:
            kind, theirs = by_libjq(program, object_of(made.items()).text)
            assert kind == "value"
            assert repr(mine.data) == repr(loads(theirs))
            assert loads(mine.text) == mine.data


@settings(deadline=None)
@given(st.sampled_from(PROGRAMS), TEXTS, st.sampled_from(["text", "body", "data", "result"]))
def test_it_does_not_matter_how_a_value_came_to_be(program: str, text: str, origin: str) -> None:
    value = grown(text, origin)
    before = value.text
    mine = evaluate(program, value)
    if mine is not None:
        kind, theirs = by_libjq(program, text)
        assert kind == "value"
        assert repr(mine.data) == repr(loads(theirs))
    assert value.text == before


@settings(deadline=None)
@given(st.sampled_from([RECIPE[1], "{}", '{a: "b", "c d": "e"}', '. as $x | {a: "b"}']), VALUES)
def test_a_program_that_never_looks_at_its_input_is_a_constant(program: str, value: Any) -> None:
    known = simple(program)
    assert known is not None
    assert known.constant
    always = known.of(NULL)
    assert always is not None
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        return
    assert by_libjq(program, text) == ("value", always.text)


@pytest.mark.parametrize("program", [".", ".a", "{a: .}", '.a = "b"', '{a: "b"} | .a', TRIM, ". as $x | {a: $x}"])
def test_a_program_that_looks_at_its_input_is_none(program: str) -> None:
    known = simple(program)
    assert known is not None
    assert not known.constant


@given(st.text(alphabet="-0:,[ \na9", max_size=10))
def test_minus_zero_is_looked_for_where_a_number_may_begin(text: str) -> None:
    assert (_MINUS_ZERO(text) is not None) == (re.search(r"(?:^|[:\[,\s])-0", text) is not None)


def test_a_date_in_an_answer_needs_no_jq() -> None:
    assert agrees(".model", '{"model":"gpt-4o-2024-08-06"}')
