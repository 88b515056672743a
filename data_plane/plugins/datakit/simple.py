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
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import orjson

from data_plane.plugins.datakit.values import Value
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
_MINUS_ZERO: Final = re.compile(r"(?:^|[:\[,\s])-0").search
_EXACT: Final = 2**53
_BLANKS: Final = " \t\n\v\f\r"
_DEEPEST: Final = 200


class _Other(Exception):
    """Nothing that is understood here."""


def evaluate(source: str, value: Value) -> Value | None:
    """What the program makes of a value; None when libjq is to say."""
    program = _compiled(source)
    if program is None:
        return None
    text = value.text
    if len(text) > INLINE_INPUT or text.count("{") + text.count("[") > _DEEPEST or _is_odd(text):
        return None
    try:
        return Value(_exact(program(orjson.loads(text))))
    except (_Other, ValueError):  # ValueError: JSON that only jq can read
        return None


def _is_odd(text: str) -> bool:
    """Whether it may hold what jq writes in its own way and what cannot be told from the data: minus zero, and DEL."""
    return "\x7f" in text or "\\u007" in text or ("-0" in text and _MINUS_ZERO(text) is not None)


def _exact(value: Any) -> Any:
    """The same, unless there are numbers in it that jq would write digit for digit, and we could not."""
    kind = type(value)
    if kind is dict:
        for member in value.values():
            _exact(member)
    elif kind is list:
        for member in value:
            _exact(member)
    elif kind is float or (kind is int and not -_EXACT <= value <= _EXACT):
        raise _Other
    return value


@lru_cache(maxsize=512)
def _compiled(source: str) -> Callable[[Any], Any] | None:
    try:
        terms = _Parser(source).program()
    except _Other:
        return None

    def run(value: Any) -> Any:
        scope: dict[str, Any] = {}
        for term in terms:
            value = term(value, scope)
        return value

    return run


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
            return _trimmed
        if text == "{":
            return self._object()
        if text == "." and self._peek() == "as":
            return self._binding()
        if kind == "member" and self._peek() == "=":
            self._next()
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
        return lambda value, scope: {key: member(value, scope) for key, member in members}

    def _value(self) -> Term:
        kind, text = self._next()
        if kind == "text":
            return lambda value, scope: text[1:-1]
        return self._path(kind, text)

    def _path(self, kind: str, text: str) -> Term:
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
        return lambda value, scope: _pick(value if variable is None else scope[variable], keys)

    def _peek(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise _Other
        return self._tokens.pop(0)

    def _expect(self, text: str) -> None:
        if self._next()[1] != text:
            raise _Other


def _pick(value: Any, keys: list[str | int]) -> Any:
    for key in keys:
        if value is None:
            return None
        if isinstance(key, str):
            if type(value) is not dict:
                raise _Other
            value = value.get(key)
        elif type(value) is not list:
            raise _Other
        else:
            value = value[key] if -len(value) <= key < len(value) else None
    return value


def _setting(key: str, member: Term) -> Term:
    def set_(value: Any, scope: Scope) -> Any:
        if value is not None and type(value) is not dict:
            raise _Other
        return {**(value or {}), key: member(value, scope)}

    return set_


def _trimmed(value: Any, scope: Scope) -> Any:
    if type(value) is not str or not value.isascii():
        raise _Other
    return value.strip(_BLANKS)
