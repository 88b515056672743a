"""jq programs as Datakit judges them: what runs in the event loop, and what only runs where it can be killed."""

from __future__ import annotations

import pytest

from gateway_schema.plugins.datakit_jq import compile_program
from tests.gateway_schema.datakit_lists import APPLIED, EXPLAINED, mended

SHORT = '{"a":[1,2,3],"b":"text"}'


@pytest.mark.parametrize("program", sorted({node["jq"] for node in [*APPLIED, *EXPLAINED, *mended()] if "jq" in node}))
def test_the_recipes_programs_run_inline(program: str) -> None:
    assert compile_program(program).runs_inline(SHORT)


@pytest.mark.parametrize(
    "program",
    [
        "{messages, model}",
        "{model: .model, range: 1}",
        'map(select(.role == "user")) | .[-1].content',
        '.messages |= map(.) | .x = 1 | .["y"] = 2',
        'if .a then "x" elif .b then "y" else null end',
        ".a // .b | not",
        '.headers | with_entries(select(.key | startswith("x-")))',
        '@base64 "plain" # a comment with range(9) and *',
        '.x | test("^a+$")',
        '.x | sub("a"; "b")',
        "[.[] | {a: .b}]",
        'try error("x") catch .',
        ". # a comment that would go on \\",
    ],
)
def test_programs_whose_work_the_input_bounds_run_inline(program: str) -> None:
    assert compile_program(program).runs_inline(SHORT)


@pytest.mark.parametrize(
    "program",
    [
        "[range(.n)]",
        "until(. > 100; . + 1)",
        "[limit(3; repeat(1))]",
        "[recurse(if . < 3 then . + 1 else empty end)]",
        "last(while(true; .))",
        "def f: f; 1",
        'reduce .[] as $x ("a"; . + .)',
        "[foreach .[] as $x (0; . + $x)]",
        "label $out | .[] | break $out",
        ".n * .s",
        ".[.n] = 1",
        "setpath([.n]; 1)",
        "getpath([.n]) |= 1 | setpath([1]; 2)",
        "[combinations]",
        "transpose",
        "pick(.[1000000000])",
        "$ENV",
        "env.HOME",
        "[inputs]",
        "input",
        "debug",
        '"\\(.a)"',
        '.x | test("(a+)+$")',
        '.x | test("a*b*c*$")',
        '.x | test("(a)\\\\1")',
        ".x | test(.pattern)",
        '.x | test("a" + .rest)',
        '# a comment that goes on \\\n"\n[range(.n)] # "',
    ],
)
def test_programs_that_may_work_without_end_never_run_inline(program: str) -> None:
    assert not compile_program(program).runs_inline("null")


def test_large_inputs_never_run_inline() -> None:
    assert compile_program(".a").runs_inline("x" * 65536)
    assert not compile_program(".a").runs_inline("x" * 65537)


def test_regular_expressions_run_inline_on_short_texts_only() -> None:
    program = compile_program('gsub("^\\\\s+|\\\\s+$"; "")')

    assert program.runs_inline("x" * 2048)
    assert not program.runs_inline("x" * 2049)


def test_loops_in_loops_run_inline_on_few_members_only() -> None:
    """`[.[] as $a | .[] as $b | …]` takes as many steps as there are pairs."""
    program = compile_program("[.[] as $a | .[] as $b | [$a, $b]]")

    assert program.runs_inline("[" + "1," * 100 + "1]")
    assert not program.runs_inline("[" + "1," * 1000 + "1]")


@pytest.mark.parametrize("program", ["", "  ", "# nothing", ".a |", ".a) | (.b", "def f: 1;", "$x", "nothing_such"])
def test_what_does_not_compile_is_refused_with_a_reason_on_one_line(program: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        compile_program(program)
    assert "\n" not in str(refused.value)


def test_results_are_text_in_which_numbers_keep_their_digits() -> None:
    text = '{"long":12345678901234567890123,"whole":1.0,"none":[],"empty":{},"z":null,"a":0.10}'

    assert next(iter(compile_program(". # as it is").compiled.input_text(text))) == text
