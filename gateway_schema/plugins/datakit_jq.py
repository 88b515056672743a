"""jq programs: compiled when a configuration is read, and judged by how much work they can make.

libjq cannot be interrupted. So a program whose work is bounded by the size of its input runs where the request is
handled, and every other one in a process of its own that can be killed (`data_plane.plugins.datakit.evaluator`). The
judgement errs towards the process: only names known to be harmless count as bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jq

INLINE_INPUT = 64 * 1024
"""Characters of input above which no program runs inline: libjq reads about 30 MB/s."""
INLINE_REGEX_INPUT = 2 * 1024
"""The same for programs with regular expressions: the work may grow with the square of a string's length, and each
match of a `gsub` costs about 40 µs. The answer of a model that routes requests stays below."""
INLINE_STEPS = 50_000
"""Estimated steps (members of the input to the power of the program's loops) above which none runs inline."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that compiles. `compiled` yields JSON text, in which numbers keep every digit."""

    source: str = field(repr=False)
    compiled: Any = field(repr=False)
    loops: int | None
    """How many loops over its input may stand inside one another; None when its work is not bounded by the input."""
    regex: bool

    def runs_inline(self, text: str) -> bool:
        """Whether this input is small enough to be worked on in the event loop (a few milliseconds at the worst)."""
        if self.loops is None or len(text) > (INLINE_REGEX_INPUT if self.regex else INLINE_INPUT):
            return False
        return self.loops < 2 or (text.count(",") + 1) ** self.loops <= INLINE_STEPS


@lru_cache(maxsize=512)
def compile_program(source: str) -> Program:
    """Raises ValueError with libjq's reason. Compiling takes about 4 ms, so it is done once where that is enough."""
    try:
        compiled = _compile(as_text(source))
    except ValueError:
        _compile(source)  # says what is wrong with the program as it is written
        raise
    if not _parentheses_match(source):
        _compile(source)
    loops, regex = _judge(source)
    return Program(source, compiled, loops, regex)


def as_text(source: str) -> str:
    """The program whose results are the JSON texts of this program's results."""
    return f"({source}\n\n)|tojson"  # two line ends: a comment may be continued by a backslash


def _compile(source: str) -> Any:
    try:
        return jq.compile(source)
    except ValueError as error:
        raise ValueError(_reason(str(error))) from None


def _reason(text: str) -> str:
    """libjq's first complaint on one line, without its banner."""
    first = text.strip().splitlines()[0] if text.strip() else "does not compile"
    return first.removeprefix("jq: error: ").replace(" at <top-level>", "")


# Judging. The measure is what a mistaken program, or a hostile input, can do; not a hostile author, who needs no jq.

_UNBOUNDED_WORDS = frozenset({"def", "reduce", "foreach", "label", "import", "include"})
"""`reduce .[] as $x ("a"; . + .)` doubles its state with every member, a `def` may call itself."""

_FLAT = frozenset(
    (  # noqa: SIM905
        "abs arrays ascii ascii_downcase ascii_upcase booleans ceil empty endswith error explode fabs finites "
        "first floor fromdate fromjson getpath gmtime has have_literal_numbers implode infinite isempty "
        "isinfinite isnan isnormal isvalid iterables keys keys_unsorted last length localtime log log10 log2 "
        "ltrim ltrimstr mktime nan normals not now null nulls numbers objects path rindex round rtrim "
        "rtrimstr scalars select sqrt startswith strftime strings strptime toarray todate tojson tonumber "
        "tostring trim trimstr trunc true false type unique utf8bytelength values "
    ).split()
)
_LOOPS = frozenset(
    (  # noqa: SIM905
        "add all any contains del delpaths flatten from_entries group_by index indices inside join map "
        "map_values max max_by min min_by paths reverse sort sort_by to_entries unique_by walk with_entries "
    ).split()
)
_REGEX = frozenset({"test", "match", "capture", "scan", "split", "splits", "sub", "gsub"})
"""All other names that jq defines (`range`, `until`, `recurse`, `setpath`, `env`, `input`, …) count as unbounded; names
that it does not define can only be keys, in `{model, messages}`."""


@lru_cache(maxsize=1)
def _defined() -> frozenset[str]:
    return frozenset(str(name).partition("/")[0] for name in jq.compile("builtins").input_value(None).first())


_TOKEN = re.compile(
    r"""
    (?P<comment>\#[^\r\n]*)
  | (?P<text>"(?:[^"\\]|\\.)*")
  | (?P<member>\.[A-Za-z_][A-Za-z0-9_]*)
  | (?P<variable>\$(?:__)?[A-Za-z_][A-Za-z0-9_]*)
  | (?P<format>@[A-Za-z0-9]+)
  | (?P<key>[A-Za-z_][A-Za-z0-9_]*(?=\s*:(?!:)))
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<descent>\.\.)
  | (?P<each>\[\s*\])
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_REGEX_CALL = re.compile(r'\b(?:test|match|capture|scan|splits?|g?sub)\s*\(\s*"((?:[^"\\]|\\.)*)"\s*[;)]')
_TEXT_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|#[^\r\n]*')
_ASSIGNMENT = re.compile(r"(?<![=!<>])=(?!=)")
_COMPUTED_INDEX = re.compile(r'\[\s*(?!\s|\]|-?\d{1,4}\s*\]|"")')


def _judge(source: str) -> tuple[int | None, bool]:
    """(loops or None, whether regular expressions are used). See `Program`."""
    if "\\(" in source or "\\\n" in source or "\\\r" in source:
        return None, True  # a program inside a string, or a comment of several lines: these tokens know neither
    loops = 0
    patterns = 0
    for token in _TOKEN.finditer(source):
        kind, text = token.lastgroup, token.group()
        if _is_unbounded(kind, text):
            return None, True
        loops += kind in {"each", "descent"} or (kind == "name" and (text in _LOOPS or text in _REGEX))
        patterns += kind == "name" and text in _REGEX
    if _assigns_by_computed_index(source) or not _patterns_are_plain(source, patterns):
        return None, True
    return loops, patterns > 0


def _parentheses_match(source: str) -> bool:
    """Whether the program surely stays inside the parentheses put around it, as `.a) | (.b` does not."""
    depth = 0
    for token in _TOKEN.finditer(source):
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        if depth < 0:
            return False
    return "\\(" not in source


def _is_unbounded(kind: str | None, text: str) -> bool:
    if kind == "name":
        known = text in _FLAT or text in _LOOPS or text in _REGEX
        return text in _UNBOUNDED_WORDS or (not known and (text.startswith("_") or text in _defined()))
    # A string times a number is as long as the number says; $ENV is the environment, which is empty in the process.
    return (kind == "other" and text == "*") or (kind == "variable" and text == "$ENV")


def _patterns_are_plain(source: str, expected: int) -> bool:
    """Whether all regular expressions are literals that cannot backtrack much: no repeated or back-referenced groups,
    and at most one repetition in each alternative, so that the work grows with the square of the text at the most."""
    found = _REGEX_CALL.findall(source)
    if len(found) != expected:
        return False
    for pattern in found:
        if re.search(r"\)[*+?{]|\\\\[1-9k]", pattern):
            return False
        if any(len(re.findall(r"[*+{]", alternative)) > 1 for alternative in pattern.split("|")):
            return False
    return True


def _assigns_by_computed_index(source: str) -> bool:
    """Whether a path made of data may be assigned to: `.[.n] = 1` makes an array as long as the data says."""
    bare = _TEXT_OR_COMMENT.sub('""', source)
    return _ASSIGNMENT.search(bare) is not None and _COMPUTED_INDEX.search(bare) is not None
