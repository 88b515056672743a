"""Regular expressions of routes: the dialect of Rust's `regex` crate, run by Python's `re`.

Kong matches with that crate, which knows neither look-around nor back-references. What it cannot do is refused here
too, so that a configuration means the same everywhere; what it spells differently is translated.
"""

from __future__ import annotations

import re

_NAMED = re.compile(r"\?P?<([A-Za-z_][A-Za-z0-9_.\[\]]*)>")
_FLAGS = re.compile(r"\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_LEADING_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)")
_KNOWN_FLAGS = frozenset("imsux")
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7F",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\x0B\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


class PatternError(ValueError):
    """A pattern that the dialect does not know, with the reason in its text."""


def compile_path(pattern: str) -> re.Pattern[str]:
    """A route's path regex: bound to the path's beginning, not to its end. Use `search`, as an alternative other than
    the first is not bound."""
    flags, rest = _split_flags(pattern)
    return _compile(flags, "^" + rest)


def compile_value(pattern: str) -> re.Pattern[str]:
    """A header's regex (`~*…`): in any case, anywhere in the value."""
    flags, rest = _split_flags(pattern)
    return _compile(flags + "i", rest)


def literal_prefix(pattern: str) -> str:
    """The plain text that every match of a path pattern begins with; used to index patterns. Empty when unsure."""
    flags, rest = _split_flags(pattern)
    if flags or "|" in rest:
        return ""
    text = re.match(r"[A-Za-z0-9/_~!&',;=:@%-]*", rest)
    prefix = text[0] if text else ""
    if rest[len(prefix) : len(prefix) + 1] in ("*", "?", "+", "{"):
        prefix = prefix[:-1]
    return prefix


def _split_flags(pattern: str) -> tuple[str, str]:
    leading = _LEADING_FLAGS.match(pattern)
    return (leading[1], pattern[leading.end() :]) if leading else ("", pattern)


def _compile(flags: str, pattern: str) -> re.Pattern[str]:
    if unknown := set(flags) - _KNOWN_FLAGS:
        raise PatternError(f"flag '{min(unknown)}' is not supported")
    text = _Translator(pattern, multiline="m" in flags).translate()
    flags = "".join(sorted(set(flags) - {"u"}))
    try:
        return re.compile(f"(?{flags}){text}" if flags else text)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(str(error)) from None


class _Translator:
    def __init__(self, pattern: str, *, multiline: bool) -> None:
        self._pattern = pattern
        self._position = 0
        self._multiline = multiline
        self._out: list[str] = []

    def translate(self) -> str:
        while self._position < len(self._pattern):
            self._step(self._pattern[self._position])
        return "".join(self._out)

    def _take(self, count: int, text: str) -> None:
        self._position += count
        self._out.append(text)

    def _step(self, char: str) -> None:
        if char == "\\":
            self._escape(inside_class=False)
        elif char == "(":
            self._group()
        elif char == "[":
            self._class()
        elif char == "$" and not self._multiline:
            self._take(1, r"\Z")  # Python's own $ also matches before a final newline
        elif char in "*+?}" and self._pattern[self._position + 1 : self._position + 2] == "+":
            raise PatternError("possessive quantifiers are not supported")
        else:
            self._take(1, char)

    def _escape(self, *, inside_class: bool) -> None:
        following = self._pattern[self._position + 1 : self._position + 2]
        if following == "":
            raise PatternError("it ends with a backslash")
        if following.isdigit() and not inside_class:
            raise PatternError("back-references are not supported")
        if following in "pP":
            raise PatternError(r"Unicode classes (\p) are not supported")
        if following == "z":
            self._take(2, r"\Z")
        elif following == "x" and (braced := re.match(r"\\x\{([0-9A-Fa-f]{1,6})\}", self._pattern[self._position :])):
            self._take(braced.end(), rf"\U{int(braced[1], 16):08x}")
        elif following == "Z":
            raise PatternError(r"unknown escape \Z (use \z or $)")
        else:
            self._take(2, "\\" + following)

    def _group(self) -> None:
        rest = self._pattern[self._position + 1 : self._position + 80]
        if not rest.startswith("?"):
            self._take(1, "(")
        elif rest.startswith(("?=", "?!", "?<=", "?<!")):
            raise PatternError("look-around is not supported")
        elif named := _NAMED.match(rest):
            self._take(1 + named.end(), f"(?P<{named[1]}>")
        elif flags := _FLAGS.match(rest):
            self._flagged(flags)
        else:
            raise PatternError(f"unknown group '({rest[:3]}'")

    def _flagged(self, flags: re.Match[str]) -> None:
        if flags[3] == ")":
            raise PatternError("flags in the middle of a pattern are not supported: write (?i:…)")
        if unknown := (set(flags[1]) | set(flags[2] or "")) - _KNOWN_FLAGS:
            raise PatternError(f"flag '{min(unknown)}' is not supported")
        self._take(1 + flags.end(), "(" + flags[0].replace("u", ""))

    def _class(self) -> None:
        """Between brackets: copied, with POSIX classes spelt out; set operations and nested classes are refused."""
        self._take(1, "[")
        if self._pattern[self._position : self._position + 1] == "^":
            self._take(1, "^")
        if self._pattern[self._position : self._position + 1] == "]":
            self._take(1, r"\]")
        while True:
            char = self._pattern[self._position : self._position + 1]
            if char == "":
                raise PatternError("unterminated character set")
            if char == "]":
                self._take(1, "]")
                return
            self._class_member(char)

    def _class_member(self, char: str) -> None:
        rest = self._pattern[self._position : self._position + 16]
        if char == "\\":
            self._escape(inside_class=True)
        elif posix := re.match(r"\[:(\w+):\]", rest):
            if posix[1] not in _POSIX:
                raise PatternError(f"unknown class [:{posix[1]}:]")
            self._take(posix.end(), _POSIX[posix[1]])
        elif char == "[":
            raise PatternError("nested classes are not supported (escape '[')")
        elif rest[:2] in ("&&", "--", "~~"):
            raise PatternError(f"set operation '{rest[:2]}' is not supported")
        else:
            self._take(1, rf"\{char}" if char in "|" else char)
