from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.templates import format_float, render

ENV = {
    "DECK_TEXT": "hello",
    "DECK_EMPTY": "",
    "DECK_INT": "42",
    "DECK_BOOL": "T",
    "DECK_FLOAT": "1000000",
    "DECK_LINES": "one\ntwo\nthree",
    "DECK_BAD": "s3cret-value",
    "HOME": "/root",
}


def rendered(text: str) -> str:
    result = render(text, ENV)
    assert result.faults == []
    return result.text


def fault(text: str) -> str:
    (found,) = render(text, ENV).faults
    return found[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a: ${{ env "DECK_TEXT" }}', "a: hello"),
        ('a: ${{env "DECK_TEXT"}}', "a: hello"),
        ("a: ${{ env `DECK_TEXT` }}", "a: hello"),
        ('a: "${{ env "DECK_TEXT" }}-${{ env "DECK_INT" }}"', 'a: "hello-42"'),
        ('a: ${{ env "DECK_EMPTY" }}', "a: "),
        ('a: ${{ env "DECK_INT" | toInt }}', "a: 42"),
        ('a: ${{ toInt "007" }}', "a: 7"),
        ('a: ${{ toInt (env "DECK_INT") }}', "a: 42"),
        ('a: ${{ env "DECK_BOOL" | toBool }}', "a: true"),
        ('a: ${{ "F" | toBool }}', "a: false"),
        ('a: ${{ env "DECK_FLOAT" | toFloat }}', "a: 1e+06"),
        ('a: ${{ "1.50" | toFloat }}', "a: 1.5"),
        ('a: |\n  ${{ env "DECK_LINES" | indent 2 }}', "a: |\n  one\n  two\n  three"),
        ('${{ "}}" }}', "}}"),
        (r'${{ "a\"b\tc" }}', 'a"b\tc'),
        ("no expression: $ { {", "no expression: $ { {"),
        ('  # ${{ env "NOT_OURS" }} ${{', '  # ${{ env "NOT_OURS" }} ${{'),
    ],
)
def test_expressions_mean_what_they_mean_to_deck(text: str, expected: str) -> None:
    assert rendered(text) == expected


def test_a_comment_behind_a_value_is_no_comment_line() -> None:
    assert rendered('a: 1 # ${{ env "DECK_TEXT" }}') == "a: 1 # hello"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('${{ env "HOME" }}', "must be prefixed with 'DECK_', found: 'HOME'"),
        ('${{ env "DECK_NOT_THERE" }}', "environment variable 'DECK_NOT_THERE' is not set"),
        ('${{ env "DECK_TEXT" ', "is not closed"),
        ('${{ getenv "DECK_TEXT" }}', "unknown function 'getenv'"),
        ("${{ env }}", "env takes 1 argument(s), got 0"),
        ("${{ env 5 }}", "env expects a text, got an integer"),
        ('${{ env "DECK_INT" | toInt | toFloat }}', "toFloat expects a text, got an integer"),
        ('${{ env "DECK_TEXT" | indent }}', "indent takes 2 argument(s), got 1"),
        ('${{ if env "DECK_TEXT" }}', "did not expect 'env'"),
        ("${{- env `DECK_TEXT` }}", "cannot read the expression at '-'"),
        ("${{ .Values.x }}", "cannot read the expression at '.'"),
        ("${{ }}", "expected a function"),
        ('${{ env "DECK_TEXT" | "x" }}', "expected a function"),
        ('${{ (env "DECK_TEXT" }}', "a parenthesis is not closed"),
        (r'${{ "\q" }}', "unknown escape"),
    ],
)
def test_whatever_else_is_refused_with_a_reason(text: str, message: str) -> None:
    assert message in fault(text)


@pytest.mark.parametrize("function", ["toInt", "toBool", "toFloat"])
def test_a_value_of_the_wrong_kind_is_not_shown(function: str) -> None:
    message = fault(f'${{{{ env "DECK_BAD" | {function} }}}}')
    assert message.startswith(function)
    assert "s3cret" not in message


@pytest.mark.parametrize("text", ["1_000", " 1", "0x10", "9223372036854775808", "", "1.0"])
def test_to_int_is_as_strict_as_go(text: str) -> None:
    assert "not an integer" in fault(f'${{{{ "{text}" | toInt }}}}')


@pytest.mark.parametrize("text", ["1_0.5", "nan", "0x1p-2", "1e999", "."])
def test_to_float_refuses_what_yaml_cannot_have(text: str) -> None:
    assert "toFloat" in fault(f'${{{{ "{text}" | toFloat }}}}')


def test_all_missing_variables_are_named_with_their_lines() -> None:
    result = render('a: ${{ env "DECK_A" }}\nb: 1\nc: ${{ env "DECK_C" }}\n', {})
    assert [(line, "DECK_A" in text, "DECK_C" in text) for line, text in result.faults] == [
        (1, True, False),
        (3, False, True),
    ]


def test_lines_lead_back_to_the_file_when_values_have_several() -> None:
    result = render('a: 1\nb: |\n  ${{ env "DECK_LINES" | indent 2 }}\nc: 3\n', ENV)
    places = [result.source_line(number) for number in range(len(result.text.split("\n")))]
    assert places == [1, 2, 3, 3, 3, 4, 5]


def test_the_variables_that_were_read_are_known() -> None:
    assert render('${{ env "DECK_TEXT" }} ${{ env "DECK_EMPTY" }}', ENV).used == {
        "DECK_TEXT": "hello",
        "DECK_EMPTY": "",
    }


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.0, "1"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (100.0, "100"),
        (123456.0, "123456"),
        (1234567.0, "1.234567e+06"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (-2.5e-07, "-2.5e-07"),
        (1e22, "1e+22"),
    ],
)
def test_floats_look_as_go_prints_them(number: float, expected: str) -> None:
    assert format_float(number) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_value(number: float) -> None:
    assert float(format_float(number)) == number


@given(st.text())
def test_any_text_is_rendered_or_refused(text: str) -> None:
    result = render(text, ENV)
    assert len(result.source_lines) == len(result.text.split("\n"))


@given(st.text(alphabet='${}"`|() envDECK_toIntTEXT0123456789\n#-.', max_size=80))
def test_any_expression_is_rendered_or_refused(text: str) -> None:
    render(f"${{{{ {text} }}}}", ENV)
