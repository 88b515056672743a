from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli.documents import DocumentFault, DuplicateKey, Form, Mark, read_yaml, resolve, write_yaml, written
from cli.files import parse_text
from cli.templates import OPEN


def read(text: str) -> Any:
    return read_yaml(text, "f.yaml")[0]


def refused(text: str) -> DocumentFault:
    with pytest.raises(DocumentFault) as caught:
        read_yaml(text, "f.yaml")
    return caught.value


DECKS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"), False),
    **{text: text for text in ("hello", "yEs", "tRue", "nULL", "1:30", "12:30:45", "2026-01-31", "3.0.1", "1,000")},
    **{
        text: text
        for text in ("2026-01-31T12:00:00Z", "=", "_1", ".", ".e1", "1e", ".5_", "._5", "0b2", "0o8", "\u0663")
    },
    **{text: text for text in ("0x", "0o", "0b", "0x-1F", "0x1p-2", "0x1.8p1", "0X1P3", "0x.8p1", "+.nan", "-.nan")},
    **{
        text: text
        for text in ("inf", "Inf", "-inf", "Infinity", "nan", "NaN", "1e400", "-1e400", "0x1FFFFFFFFFFFFFFFF")
    },
    **dict.fromkeys(("0x1F", "0X1F", "+0x1F", "0x_1F", "0x1_F", "0_x1F", "31", "+31", "3_1", "037", "0o37"), 31),
    **dict.fromkeys(("-0b11", "-3", "-_3", "-0o3", "-03", "-3_"), -3),
    **dict.fromkeys(("0b11", "0B11", "+0b11", "0b1_1", "0b+11", "0_3"), 3),
    **dict.fromkeys(("0O17", "0o17", "017", "0_17", "0o1_7", "0_o17", "15"), 15),
    "0b-1": -1,
    "08": 8,
    "09": 9,
    "0_8": 8,
    "0": 0,
    "00": 0,
    "+0": 0,
    "1_000": 1000,
    "1__000": 1000,
    **dict.fromkeys(("1_0e1", "1e2", "1E2", "1e+2", "01e2", "1e_2", "1e2_", "1_e2", "10_0.", "100.0"), 100.0),
    "1e1_0": 1e10,
    "1_000.5": 1000.5,
    ".5_5": 0.55,
    "1_000._5": 1000.5,
    "08.5": 8.5,
    ".5": 0.5,
    "+.5": 0.5,
    "-.5e3": -500.0,
    "1e-400": 0.0,
    "9223372036854775807": 2**63 - 1,
    "0xFFFFFFFFFFFFFFFF": 2**64 - 1,
    "9" * 23: 1e23,
}
"""What decK's own reader makes of plain scalars; numbers are doubles in the end."""


@pytest.mark.parametrize(("text", "expected"), DECKS.items())
def test_plain_scalars_mean_what_they_mean_to_deck(text: str, expected: Any) -> None:
    value = resolve(text)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("text", [text for text, meaning in DECKS.items() if not isinstance(meaning, str)])
def test_a_text_that_deck_would_take_for_something_else_is_quoted(text: str) -> None:
    assert write_yaml({"a": text}) == f'a: "{text}"\n'


_number_like = st.text(alphabet="0123456789_+-.eExXoObBaAfFpPinN", min_size=1, max_size=12)


@given(st.one_of(_number_like, st.sampled_from(list(DECKS)), st.text(max_size=12)))
def test_a_text_stays_a_text_when_it_is_dumped_and_read(text: str) -> None:
    dumped = write_yaml({"a": text})
    assert read(dumped) == {"a": text}
    if text and dumped == f"a: {text}\n":  # Plain: then it must be what Go, too, cannot read as a number.
        assert not _might_be_a_number(text)


def _might_be_a_number(text: str) -> bool:
    """By Python's own syntax of numbers, which is wider than Go's."""
    if not text.isascii() or text[0] not in "+-.0123456789" or "n" in text.lower() or ("_" in text and text[0] == "."):
        return False
    plain = text if text.startswith(".") else text.replace("_", "")
    for number in (float, lambda digits: float(int(digits, 0))):
        with contextlib.suppress(ValueError, OverflowError):
            return math.isfinite(number(plain))
    return False


def test_quotes_make_texts() -> None:
    assert read("""{a: "1", b: 'true', c: !!str 5, d: ! 6, "1": x, 2: w, true: z}""") == {
        "a": "1",
        "b": "true",
        "c": "5",
        "d": "6",
        "1": "x",
        "2": "w",
        "true": "z",
    }


def test_json_is_read_as_it_is() -> None:
    data = {"a": [1, 2.5, None, True, {"b": "ü\n\t"}], "c": {}}
    assert read(json.dumps(data)) == data


def test_every_value_knows_its_line() -> None:
    _, mark = read_yaml("a:\n  - b: 1\n    c:\n      - x\n      - y\n", "f.yaml")

    def line(*path: str | int) -> int:
        return mark.at(path).line

    assert [line("a"), line("a", 0), line("a", 0, "c"), line("a", 0, "c", 1)] == [0, 1, 2, 4]
    assert line("a", 0, "c", 7, "deeper") == 2
    assert mark.at(("missing",)) is mark


def test_a_key_twice_names_both_lines() -> None:
    error = refused("a:\n  name: x\n  other: 1\n  name: y\n")
    assert isinstance(error, DuplicateKey)
    assert (error.first, error.line, error.message) == (1, 3, "duplicate key 'name'")


def test_merge_keys_fill_in_what_is_missing() -> None:
    text = "base: &b {a: 1, b: 2}\nmore: &m {b: 3, c: 4}\nuse:\n  <<: [*b, *m]\n  a: 0\n"
    assert read(text)["use"] == {"a": 0, "b": 2, "c": 4}


def test_aliases_repeat_values() -> None:
    value, mark = read_yaml("a: &x {k: [1]}\nb: *x\n", "f.yaml")
    assert value["b"] == {"k": [1]}
    assert (mark.at(("b",)).line, mark.at(("b", "k")).line) == (1, 0)


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 12)]
    error = refused("\n".join(lines))
    assert "aliases make this file grow" in error.message
    assert error.line > 0


def test_one_large_text_repeated_often_is_a_bomb_too() -> None:
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 400) + "]"
    assert "aliases make this file grow" in refused(text).message


def test_an_alias_inside_what_it_repeats_is_refused() -> None:
    assert "stands inside what it repeats" in refused("a: &x [1, *x]").message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [1, 2", 0, "not YAML"),
        ("a: 1\nb: %d", 1, "not YAML: found character that cannot start any token"),
        ("a: 1\n\tb: 2", 1, "not YAML"),
        ("a: 1\nb: \x07", 1, "not YAML: control characters"),
        ("a: *nowhere", 0, "no such anchor"),
        ("a: 1\n---\nb: 2", 1, "a second document"),
        ("x: !!python/object:os.system {}", 0, "means nothing here"),
        ("x: !include other.yaml", 0, "means nothing here"),
        ("{[1]: 2}", 0, "cannot be a key"),
        ("{null: 2}", 0, "a key is missing"),
        ("a: .inf", 0, "not a number that JSON has"),
        ("a: -.INF", 0, "not a number that JSON has"),
        ("a: 1\n<<: 5", 1, "<< takes a map"),
        ("[" * 200, 0, "nested more than 100"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, message: str) -> None:
    error = refused(text)
    assert message in error.message
    if message != "not YAML":
        assert error.line == line


def test_a_number_of_many_digits_is_no_way_to_stop_us() -> None:
    assert read("a: " + "9" * 300) == {"a": float("9" * 300)}
    for text in ("9" * 100_000, "1" + "0" * 5000 + ".0e9"):
        assert read(f"a: {text}") == {"a": text}


def read_or_refuse(text: str) -> None:
    with contextlib.suppress(DocumentFault):
        value, _ = read_yaml(text, "f.yaml")
        json.dumps(value, allow_nan=False)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    read_or_refuse(text)


@given(st.text(alphabet="ab:-[]{},&*!<>|#'\"\n \t0.~?%@", max_size=60))
def test_any_yaml_like_text_is_read_or_refused(text: str) -> None:
    read_or_refuse(text)


_scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text()
_data = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(st.dictionaries(st.text(), _data, max_size=4))
def test_what_was_written_as_yaml_comes_back(data: dict[str, Any]) -> None:
    value, mark = read_yaml(write_yaml(data), "f.yaml")
    assert value == data
    _same_shape(value, mark)


_expression_like = st.text(alphabet="${}#`\"'\\ \n\tx-:é\x00", max_size=40)
_pieces = st.lists(st.sampled_from(["${{", "}}", "#", "\n", " ", "`", '"', "word " * 30, "é", "\0"]), max_size=12)
_hostile = st.one_of(_expression_like, _pieces.map("".join), st.text())


@pytest.mark.parametrize("form", ["yaml", "json"])
@given(st.dictionaries(_hostile, _hostile | st.lists(_hostile), max_size=3))
@example({"a": "# ${{ env `DECK_X` }}\n  # ${{\n"})
@example({"a": "word " * 25 + "\x00" + "word " * 25 + "\n # ${{ word" + " word" * 40})
def test_what_was_written_as_a_dump_comes_back_through_the_expressions(form: Form, data: dict[str, Any]) -> None:
    text = written(data, form)
    assert parse_text(text, "dump", {}).document == data
    # decK's templates know no comments: there must not be one that hides an expression.
    assert not [line for line in text.split("\n") if line.lstrip().startswith("#") and OPEN in line]


def _same_shape(value: Any, mark: Mark) -> None:
    if isinstance(value, dict):
        assert set(mark.children or {}) == set(value)
        for key, member in value.items():
            _same_shape(member, (mark.children or {})[key])
    elif isinstance(value, list):
        assert len(mark.children or {}) == len(value)
