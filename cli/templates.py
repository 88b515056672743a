"""Environment expressions in declarative files: `${{ env "DECK_X" | toInt }}`, as decK knows them.

Expressions are Go template pipelines over five functions. They are evaluated on the text, before YAML is parsed, so a
value is pasted as it is and its place decides what it becomes. Lines whose first character is `#` are left alone. The
value of a variable never appears in an error: it may be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

PREFIX = "DECK_"
OPEN, CLOSE = "${{", "}}"

Value = str | bool | int | float


class TemplateError(ValueError):
    """An expression that cannot be evaluated, and why."""


@dataclass(slots=True)
class Rendered:
    """A file's text with every expression replaced, and the way back from its lines to the file's own."""

    text: str = ""
    source_lines: list[int] = field(default_factory=list)
    """For each rendered line (from 0) the line of the file it came from (from 1)."""
    edited: set[int] = field(default_factory=set)
    """Rendered lines (from 0) on which columns no longer mean what they meant in the file."""
    used: dict[str, str] = field(default_factory=dict)
    """The variables that were read, with their values."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """(line of the file, what is wrong there), for all expressions that could not be evaluated."""

    def source_line(self, line: int) -> int:
        """The file's line (from 1) for a rendered line (from 0)."""
        if not self.source_lines:
            return 1
        return self.source_lines[min(line, len(self.source_lines) - 1)]


def render(text: str, environment: Mapping[str, str]) -> Rendered:
    """Replace every expression outside comment lines; faults are collected, not raised."""
    rendered = Rendered()
    pieces: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        result = line
        if OPEN in line and not line.lstrip().startswith("#"):
            try:
                result = _render_line(line, environment, rendered.used)
            except TemplateError as error:
                rendered.faults.append((number, str(error)))
        count = result.count("\n") + 1
        if result != line:
            rendered.edited.update(range(len(rendered.source_lines), len(rendered.source_lines) + count))
        rendered.source_lines.extend([number] * count)
        pieces.append(result)
    rendered.text = "\n".join(pieces)
    return rendered


def literal(text: str) -> str:
    """The text with every opening of an expression written as an expression that yields it."""
    return text.replace(OPEN, f"{OPEN} `{OPEN}` {CLOSE}")


def _render_line(line: str, environment: Mapping[str, str], used: dict[str, str]) -> str:
    pieces: list[str] = []
    position = 0
    while (start := line.find(OPEN, position)) >= 0:
        pieces.append(line[position:start])
        tokens, position = _tokens(line, start + len(OPEN))
        pieces.append(_text(_Evaluation(tokens, environment, used).result()))
    pieces.append(line[position:])
    return "".join(pieces)


class Token(NamedTuple):
    kind: str
    text: str


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+)|(?P<close>\}\})|(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>[-+]?\d+)(?![\w.])"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<mark>[|()])"""
)


def _tokens(line: str, position: int) -> tuple[list[Token], int]:
    """The expression's tokens and the position behind its closing braces."""
    tokens: list[Token] = []
    while position < len(line):
        match = _TOKEN.match(line, position)
        if match is None:
            raise TemplateError(f"cannot read the expression at {line[position]!r}: {_HELP}")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "close":
            return tokens, position
        if kind != "space":
            tokens.append(Token(kind, match.group()))
    raise TemplateError("the expression opened by ${{ is not closed by }} on the same line")


_HELP = 'supported are env "DECK_…", toInt, toBool, toFloat, indent N, joined by |'


class _Evaluation:
    """One expression: a pipeline whose last value is handed on as the next function's last argument."""

    def __init__(self, tokens: Sequence[Token], environment: Mapping[str, str], used: dict[str, str]) -> None:
        self._tokens = list(tokens)
        self._environment = environment
        self._used = used

    def result(self) -> Value:
        value = self._pipeline()
        if self._tokens:
            raise TemplateError(f"did not expect {self._tokens[0].text!r}: {_HELP}")
        return value

    def _pipeline(self) -> Value:
        value = self._command(None)
        while self._tokens and self._tokens[0].text == "|":
            self._tokens.pop(0)
            value = self._command(value)
        return value

    def _command(self, piped: Value | None) -> Value:
        if not self._tokens or self._tokens[0].kind != "name":
            values = list(self._arguments())
            if len(values) != 1 or piped is not None:
                raise TemplateError(f"expected a function: {_HELP}")
            return values[0]
        name = self._tokens.pop(0).text
        arguments = list(self._arguments())
        if piped is not None:
            arguments.append(piped)
        return self._call(name, arguments)

    def _arguments(self) -> Iterator[Value]:
        while self._tokens and self._tokens[0].text not in ("|", ")"):
            token = self._tokens.pop(0)
            if token.text == "(":
                yield self._pipeline()
                if not self._tokens or self._tokens.pop(0).text != ")":
                    raise TemplateError("a parenthesis is not closed")
            elif token.kind == "string":
                yield _literal(token.text)
            elif token.kind == "number":
                yield int(token.text)
            else:
                raise TemplateError(f"did not expect {token.text!r}: {_HELP}")

    def _call(self, name: str, arguments: list[Value]) -> Value:
        if name == "env":
            return self._variable(*_checked(name, arguments, (str,)))
        if name not in _FUNCTIONS:
            raise TemplateError(f"unknown function {name!r}: {_HELP}")
        kinds, function = _FUNCTIONS[name]
        return function(*_checked(name, arguments, kinds))

    def _variable(self, name: str) -> str:
        if not name.startswith(PREFIX):
            raise TemplateError(f"environment variables in the file must be prefixed with '{PREFIX}', found: '{name}'")
        if name not in self._environment:
            raise TemplateError(f"environment variable '{name}' is not set (export {name}=…)")
        value = self._used[name] = self._environment[name]
        return value


def _literal(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        raise TemplateError("cannot read the quoted text: an unknown escape sequence") from None


def _checked(name: str, arguments: list[Value], kinds: tuple[type, ...]) -> list[str]:
    """The arguments, when number and types are right. (Typed loosely: the table below pairs types and functions.)"""
    if len(arguments) != len(kinds):
        raise TemplateError(f"{name} takes {len(kinds)} argument(s), got {len(arguments)}")
    for argument, kind in zip(arguments, kinds, strict=True):
        if type(argument) is not kind:
            raise TemplateError(f"{name} expects {_KIND_NAMES[kind]}, got {_KIND_NAMES[type(argument)]}")
    return arguments  # type: ignore[return-value]


_KIND_NAMES: Mapping[type, str] = {str: "a text", int: "an integer", bool: "a boolean", float: "a number"}


def _to_int(text: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,19}", text, re.ASCII) or not -(2**63) <= int(text) < 2**63:
        raise TemplateError("toInt: the value is not an integer")
    return int(text)


def _to_bool(text: str) -> bool:
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise TemplateError("toBool: the value is not a boolean (true or false)")


def _to_float(text: str) -> float:
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", text, re.ASCII):
        raise TemplateError("toFloat: the value is not a number")
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise TemplateError("toFloat: the value is out of range")
    return number


def _indent(width: int, text: str) -> str:
    return text.replace("\n", "\n" + " " * max(width, 0))


_FUNCTIONS: Mapping[str, tuple[tuple[type, ...], Callable[..., Value]]] = {
    "toInt": ((str,), _to_int),
    "toBool": ((str,), _to_bool),
    "toFloat": ((str,), _to_float),
    "indent": ((int, str), _indent),
}


def _text(value: Value) -> str:
    """A value as Go prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_float(value)
    return str(value)


def format_float(number: float) -> str:
    """Shortest digits, with an exponent below 1e-4 and from 1e6 on: Go's default for floating-point numbers."""
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    scale = len(digits) + int(exponent) - 1
    if number == 0:
        return "-0" if sign else "0"
    mantissa = "".join(map(str, digits))
    if -4 <= scale < 6:
        return f"{Decimal(repr(number)).normalize():f}"
    fraction = f".{mantissa[1:]}" if len(mantissa) > 1 else ""
    return f"{'-' if sign else ''}{mantissa[0]}{fraction}e{'-' if scale < 0 else '+'}{abs(scale):02d}"
