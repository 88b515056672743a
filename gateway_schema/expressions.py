"""The syntax of router expressions, such as `http.path ^= "/a" && http.method == "GET"`.

A text that passes is well-formed: parentheses and quotes close, every predicate is a field, an operator and a value.
Whether a field exists and an operator fits its type is for the router that runs it.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<raw>r\#".*?"\#)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<network>[0-9A-Fa-f:]*(?::[0-9A-Fa-f:]*){2,}(?:/\d+)?|\d+\.\d+\.\d+\.\d+(?:/\d+)?)
    | (?P<number>-?(?:0x[0-9A-Fa-f]+|\d+))
    | (?P<symbol>\&\&|\|\||==|!=|\^=|=\^|>=|<=|[>\<~!()])
    | (?P<word>[A-Za-z_][A-Za-z0-9_.\-]*(?:\[\*\])?)
    )""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = frozenset({"==", "!=", "~", "^=", "=^", ">", ">=", "<", "<=", "in", "contains"})
_TRANSFORMS = frozenset({"lower", "any"})
_VALUES = frozenset({"raw", "string", "network", "number"})
_MAX_LENGTH = 65_536
_MAX_DEPTH = 64

Token = tuple[str, str, int]


class ExpressionError(ValueError):
    """What is wrong, and at which character (counted from 1)."""


def check_expression(text: str) -> None:
    """Raises ExpressionError."""
    if len(text) > _MAX_LENGTH:
        raise ExpressionError(f"length must be at most {_MAX_LENGTH}")
    _Parser(_tokens(text), len(text)).parse()


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            what = "a text that is not closed" if text[start] == '"' else f"an unexpected '{text[start]}'"
            raise ExpressionError(f"{what} at character {start + 1}")
        found.append((match.lastgroup, match.group(match.lastgroup), match.start(match.lastgroup) + 1))
        position = match.end()
    return found


class _Parser:
    def __init__(self, tokens: list[Token], length: int) -> None:
        self._tokens = tokens
        self._next = 0
        self._end: Token = ("end", "the end", length + 1)

    def parse(self) -> None:
        self._either(0)
        if self._peek()[0] != "end":
            self._refuse("'&&', '||' or the end")

    def _either(self, depth: int) -> None:
        """Terms joined by `&&` and `||`; how they bind says nothing about whether they are well-formed."""
        if depth > _MAX_DEPTH:
            raise ExpressionError(f"parentheses must not be nested deeper than {_MAX_DEPTH} levels")
        self._term(depth)
        while self._peek()[1] in {"&&", "||"} and self._peek()[0] == "symbol":
            self._next += 1
            self._term(depth)

    def _term(self, depth: int) -> None:
        if self._takes("symbol", "!"):
            if not self._takes("symbol", "("):
                self._refuse("'('")
        elif not self._takes("symbol", "("):
            self._predicate()
            return
        self._either(depth + 1)
        if not self._takes("symbol", ")"):
            self._refuse("')'")

    def _predicate(self) -> None:
        self._field(0)
        kind, text, _ = self._peek()
        if kind == "word" and text == "not":
            self._next += 1
            text = self._peek()[1]
            if text != "in":
                self._refuse("'in'")
        if kind not in {"symbol", "word"} or text not in _OPERATORS:
            self._refuse("an operator")
        self._next += 1
        if self._peek()[0] not in _VALUES:
            self._refuse("a value")
        self._next += 1

    def _field(self, depth: int) -> None:
        kind, text, _ = self._peek()
        if kind != "word" or depth > _MAX_DEPTH:
            self._refuse("a field")
        self._next += 1
        if text in _TRANSFORMS and self._takes("symbol", "("):
            self._field(depth + 1)
            if not self._takes("symbol", ")"):
                self._refuse("')'")

    def _peek(self) -> Token:
        return self._tokens[self._next] if self._next < len(self._tokens) else self._end

    def _takes(self, kind: str, text: str) -> bool:
        found = self._peek()
        if found[0] != kind or found[1] != text:
            return False
        self._next += 1
        return True

    def _refuse(self, expected: str) -> None:
        kind, text, position = self._peek()
        shown = text if kind == "end" else f"'{text}'"
        raise ExpressionError(f"expected {expected}, found {shown} at character {position}")
