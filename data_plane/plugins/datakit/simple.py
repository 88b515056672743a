"""jq programs so simple that they need no jq: picking members, building an object, setting a key, trimming a text.

Most programs of most workflows are of this kind, and libjq takes ten times as long for them, most of it for reading and
writing JSON. What is understood here gives exactly what libjq gives; everything else (other programs, an input of
another type than the program expects, numbers that would not come out digit for digit) is left to libjq, errors too.

    program    = term { "|" term }
    term       = path | object | ". as $name" | ".key = value" | trim     perhaps all in parentheses
    path       = "." | [ "$name" ] { ".key" | "[" number "]" }
    object     = "{" [ key ":" value { "," key ":" value } ] "}"
    value      = path | text
    trim       = gsub("^\\s+|\\s+$"; "")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from data_plane.plugins.datakit.values import UNREAD, Value
from gateway_schema.plugins.datakit_jq import INLINE_INPUT

Scope = dict[str, Any]
"""The values of variables."""
Term = Callable[[Any, Scope], Any]

_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<trim>gsub\("\^\\\\s\+\|\\\\s\+\$";\s*""\))
  | (?P<text>"[^"\\\x00-\x1f\x7f]*")
  | (?P<member>\.[A-Za-z_][A-Za-z0-9_]*)
  | (?P<index>\[-?\d{1,4}\])
  | (?P<variable>\$[A-Za-z_][A-Za-z0-9_]*)
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<sign>[.|{}:,()=])
  )\s*""",
    re.VERBOSE | re.ASCII,
)
_RESERVED: Final = frozenset(
    "__loc__ and as catch def elif else end foreach if import include label module or reduce then try".split()  # noqa: SIM905
)
_MINUS_ZERO: Final = re.compile(r"-0(?<![^:\[,\s]-0)").search
"""Where a number may begin, not in `2024-08-06`. It looks for the `-0` first, which is found fast."""
_EXACT: Final = 2**53
_BLANKS: Final = " \t\n\v\f\r"
_DEEPEST: Final = 200


class _Other(Exception):
    """Nothing that is understood here."""


class Simple:
    """A program that is understood here. Both ways of running it give None when libjq is to say."""

    __slots__ = ("_run", "constant")

    def __init__(self, run: Term, *, constant: bool) -> None:
        self._run = run
        self.constant = constant
        """Whether it gives the same for every input, which it never fails for."""

    def of(self, value: Value) -> Value | None:
        """What the program makes of a value."""
        plain = value.plain
        if plain is None:
            plain = value.plain = _examined(value)
        return self._result(plain[0]) if plain is not _ODD else None

    def of_members(self, members: Mapping[str | None, Value]) -> Value | None:
        """What it makes of the object with these members, which need not be composed as text for that."""
        data: dict[str | None, Any] = {}
        size = brackets = 1
        for name, value in members.items():
            plain = value.plain
            if plain is None:
                plain = value.plain = _examined(value)
            data[name], length, own = plain
            size += length
            brackets += own
        return self._result(data) if size <= INLINE_INPUT and brackets <= _DEEPEST else None

    def _result(self, data: Any) -> Value | None:
        try:
            result = self._run(data, {})
            if type(result) is not str:
                _check_exact(result)
        except _Other:
            return None
        return Value(result, None, result)


_ODD: Final = (None, INLINE_INPUT + 1, 0)
"""What is known of a value that only libjq is to see: it is too long for all others."""
_SHORT: Final = 4096


def _examined(value: Value) -> tuple[Any, int, int]:
    """A value's data, its text's length, and the number of its brackets; `_ODD` when it is for libjq."""
    data = value.parsed
    if type(data) is str and not value.is_written and len(data) < _SHORT and data.isascii() and "\x7f" not in data:
        return data, 6 * len(data) + 2, 0  # its length if every character were escaped
    text = value.text
    brackets = text.count("{") + text.count("[")
    if len(text) > INLINE_INPUT or brackets > _DEEPEST or _is_odd(text):
        return _ODD
    try:
        return orjson.loads(text) if data is UNREAD else data, len(text), brackets
    except ValueError:  # JSON that only jq can read
        return _ODD


def _is_odd(text: str) -> bool:
    """Whether it may hold what jq writes in its own way and what cannot be told from the data: minus zero, and DEL."""
    return "\x7f" in text or "\\u007" in text or ("-0" in text and _MINUS_ZERO(text) is not None)


def _check_exact(value: Any) -> None:
    """Refuse numbers that jq would write digit for digit, and we could not."""
    kind = type(value)
    for member in value.values() if kind is dict else value if kind is list else (value,):
        kind = type(member)
        if kind is str:
            continue
        if kind is dict or kind is list:
            _check_exact(member)
        elif kind is float or (kind is int and not -_EXACT <= member <= _EXACT):
            raise _Other


@lru_cache(maxsize=512)
def compiled(source: str) -> Simple | None:
    """None for a program that is not understood here."""
    try:
        parser = _Parser(source)
        terms = parser.program()
    except _Other:
        return None

    def run(value: Any, scope: Scope) -> Any:
        for term in terms:
            value = term(value, scope)
        return value

    return Simple(terms[0] if len(terms) == 1 else run, constant=parser.is_constant)


class _Parser:
    def __init__(self, source: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        source = source.strip(" \t\r\n")
        while position < len(source):
            found = _TOKEN.match(source, position)
            if found is None or found.lastgroup is None:
                raise _Other
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            position = found.end()
        self._known: set[str] = set()
        self.is_constant = True

    def program(self) -> list[Term]:
        if self._peek() == "(":
            if self._tokens[-1][1] != ")":
                raise _Other
            self._tokens = self._tokens[1:-1]
        terms = [self._term()]
        while self._tokens:
            self._expect("|")
            terms.append(self._term())
        return terms

    def _term(self) -> Term:
        kind, text = self._next()
        if kind == "trim":
            self.is_constant = False
            return _trimmed
        if text == "{":
            return self._object()
        if text == "." and self._peek() == "as":
            return self._binding()
        if kind == "member" and self._peek() == "=":
            self._next()
            self.is_constant = False
            return _setting(text[1:], self._value())
        return self._path(kind, text)

    def _binding(self) -> Term:
        self._expect("as")
        kind, name = self._next()
        if kind != "variable" or name in ("$ENV", "$__loc__", "$__prog_args") or self._peek() != "|":
            raise _Other
        self._known.add(name)

        def bind(value: Any, scope: Scope) -> Any:
            scope[name] = value
            return value

        return bind

    def _object(self) -> Term:
        members: list[tuple[str, Term]] = []
        while self._peek() != "}":
            if members:
                self._expect(",")
            kind, key = self._next()
            if kind == "text":
                key = key[1:-1]
            elif kind != "word" or key in _RESERVED:
                raise _Other
            self._expect(":")
            members.append((key, self._value()))
        self._expect("}")
        return _object(members)

    def _value(self) -> Term:
        kind, text = self._next()
        if kind == "text":
            literal = text[1:-1]
            return lambda value, scope: literal
        return self._path(kind, text)

    def _path(self, kind: str, text: str) -> Term:
        self.is_constant = False
        variable = None
        keys: list[str | int] = []
        if kind == "variable" and text in self._known:
            variable = text
        elif kind == "member":
            keys.append(text[1:])
        elif text != ".":
            raise _Other
        while self._tokens and self._tokens[0][0] in ("member", "index"):
            kind, step = self._next()
            if text == "." and not keys and kind == "member":
                raise _Other  # `. .a` is a matter of jq's version
            keys.append(step[1:] if kind == "member" else int(step[1:-1]))
        return _path(variable, tuple(keys))

    def _peek(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise _Other
        return self._tokens.pop(0)

    def _expect(self, text: str) -> None:
        if self._next()[1] != text:
            raise _Other


def _object(members: list[tuple[str, Term]]) -> Term:
    if len(members) == 1:
        ((name, only),) = members
        return lambda value, scope: {name: only(value, scope)}
    return lambda value, scope: {key: member(value, scope) for key, member in members}


def _path(variable: str | None, keys: tuple[str | int, ...]) -> Term:
    if variable is not None:
        return lambda value, scope: _pick(scope[variable], keys)
    if len(keys) == 1 and isinstance(keys[0], str):
        (name,) = keys
        return lambda value, scope: value.get(name) if type(value) is dict else _pick(value, keys)
    return lambda value, scope: _pick(value, keys)


def _pick(value: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        kind = type(value)
        if kind is dict and type(key) is str:
            value = value.get(key)
        elif kind is list and type(key) is int:
            value = value[key] if -len(value) <= key < len(value) else None
        elif value is None:
            return None
        else:
            raise _Other
    return value


def _setting(key: str, member: Term) -> Term:
    def set_(value: Any, scope: Scope) -> Any:
        if type(value) is not dict:
            if value is not None:
                raise _Other
            value = {}
        copy = value.copy()
        copy[key] = member(value, scope)
        return copy

    return set_


def _trimmed(value: Any, scope: Scope) -> Any:
    if type(value) is not str or not value.isascii():
        raise _Other
    return value.strip(_BLANKS)
