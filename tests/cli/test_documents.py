from __future__ import annotations

import contextlib
import json
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("~", None),
        ("true", True),
        ("Off", False),
        ("y", "y"),
        ("42", 42),
        ("-7", -7),
        ("0x1F", 31),
        ("0b101", 5),
        ("0o17", 15),
        ("017", 15),
        ("08", 8),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e+06", 1e6),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("3.0.1", "3.0.1"),
        ("0x", "0x"),
        ("hello", "hello"),
    ],
)
def test_plain_scalars_mean_what_they_mean_to_deck(text: str, expected: Any) -> None:
    value = resolve(text)
    assert value == expected
    assert type(value) is type(expected)


def test_quotes_make_texts() -> None:
    assert read("""{a: "1", b: 'true', c: !!str 5, d: ! 6, "1": x, 2: y, true: z}""") == {
        "a": "1",
        "b": "true",
        "c": "5",
        "d": "6",
        "1": "x",
        "2": "y",
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
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\nuse:\n  <<: [*b, *m]\n  x: 0\n"
    assert read(text)["use"] == {"x": 0, "y": 2, "z": 4}


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
        ("a: 1" + "0" * 5000 + ".0e9", 0, "not a number that JSON has"),
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
    refused("a: " + "9" * 100_000)


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
