"""YAML (and so JSON) read into plain values, each of which remembers the file and line where it stood.

Built from the parser's events with an own stack: depth and the growth that aliases cause are bounded before they cost
anything, duplicate keys are found, and nothing but maps, lists, texts, numbers, booleans and nulls can come out.
Plain scalars mean what they mean to decK (YAML 1.1 booleans, Go's numbers, no dates, no sexagesimal numbers).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from cli.templates import OPEN, literal

MAX_DEPTH = 100
MAX_ALIASED = 16 * 1024 * 1024
"""How many characters aliases may add to a file, all together; a bomb of nine lines asks for billions."""

_MERGE = object()
_STR, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
_CORE_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "map", "seq"))

_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])_(?=[0-9])")
_INT = re.compile(r"([-+]?)(?:0[bB]([01]+)|0[oO]?([0-7]+)|0[xX]([0-9a-fA-F]+)|(0|[1-9][0-9]{0,19}))|0b([-+][01]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TRUE = frozenset({"y", "Y", "true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"n", "N", "false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class DocumentFault(ValueError):
    """Something that stops the reading; `line` and `column` count from 0 in the text that was parsed."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


@dataclass(slots=True)
class Mark:
    """Where a value stands (for a member of a map: where its key stands), and where its members stand."""

    file: str
    line: int
    """From 0, in the text that was parsed; `files.py` turns it into the file's own line."""
    column: int
    children: dict[str | int, Mark] | None = None

    def at(self, path: tuple[str | int, ...] | list[str | int]) -> Mark:
        """The mark of a path, or of the deepest part of it that exists."""
        mark = self
        for part in path:
            if mark.children is None or part not in mark.children:
                break
            mark = mark.children[part]
        return mark


@dataclass(slots=True)
class _Frame:
    """A map or a list that is still open."""

    value: dict[str, Any] | list[Any]
    mark: Mark
    anchor: str | None
    weight: int = 1
    key: Any = None
    key_mark: Mark | None = None
    merges: list[tuple[dict[str, Any], Mark]] = field(default_factory=list)

    @property
    def children(self) -> dict[str | int, Mark]:
        assert self.mark.children is not None
        return self.mark.children


def read_yaml(text: str, file: str) -> tuple[Any, Mark]:
    """The one document of a text. Raises DocumentFault."""
    return _Builder(file).build(text)


class _Builder:
    def __init__(self, file: str) -> None:
        self._file = file
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, Mark, int]] = {}
        self._aliased = 0
        self._root: tuple[Any, Mark] | None = None

    def build(self, text: str) -> tuple[Any, Mark]:
        try:
            for event in yaml.parse(text, Loader=yaml.CLoader):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = (mark.line, mark.column) if mark else (0, 0)
            raise DocumentFault(_sentence(error), *where) from None
        except yaml.reader.ReaderError as error:
            before = text[: error.position] if isinstance(error.position, int) else ""
            line = before.count("\n")
            raise DocumentFault(f"not YAML: {error.reason}", line, len(before) - before.rfind("\n") - 1) from None
        if self._root is None:
            return None, Mark(self._file, 0, 0)
        return self._root

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
            raise self._fault(event, "a second document starts here: put it into a file of its own")

    def _fault(self, event: yaml.Event, message: str) -> DocumentFault:
        mark = self._mark(event)
        return DocumentFault(message, mark.line, mark.column)

    def _mark(self, event: yaml.Event) -> Mark:
        start = event.start_mark
        return Mark(self._file, start.line, start.column) if start else Mark(self._file, 0, 0)

    # Containers

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise self._fault(event, f"nested more than {MAX_DEPTH} levels deep: no declarative file needs that")
        self._check_tag(event)
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            raise self._fault(event, "a list or a map cannot be a key: keys are texts")
        mark = self._mark(event)
        mark.children = {}
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._anchors.pop(event.anchor or "", None)
        self._stack.append(_Frame(value, mark, event.anchor))

    def _close(self) -> None:
        frame = self._stack.pop()
        if isinstance(frame.value, dict):
            for merged, mark in frame.merges:
                for key in merged.keys() - frame.value.keys():
                    frame.value[key] = merged[key]
                    frame.children[key] = (mark.children or {}).get(key, mark)
        if frame.anchor:
            self._anchors[frame.anchor] = (frame.value, frame.mark, frame.weight)
        self._add(frame.value, frame.mark, frame.weight)

    def _alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self._anchors:
            inside = any(frame.anchor == event.anchor for frame in self._stack)
            reason = "stands inside what it repeats" if inside else "repeats nothing: no such anchor before it"
            raise self._fault(event, f"the alias *{event.anchor} {reason}")
        value, anchored, weight = self._anchors[event.anchor]
        self._aliased += weight
        if self._aliased > MAX_ALIASED:
            raise self._fault(
                event,
                f"aliases make this file grow by more than {MAX_ALIASED >> 20} MiB: write the repeated parts out, "
                "or share plugin configurations through _plugin_configs",
            )
        mark = self._mark(event)
        mark.children = anchored.children
        self._add(value, mark, weight)

    def _add(self, value: Any, mark: Mark, weight: int) -> None:
        if not self._stack:
            self._root = (value, mark)
            return
        frame = self._stack[-1]
        frame.weight += weight
        if isinstance(frame.value, list):
            frame.children[len(frame.value)] = mark
            frame.value.append(value)
        elif frame.key is None:
            self._key(frame, value, mark)
        elif frame.key is _MERGE:
            frame.merges.extend(_merged(value, mark))
            frame.key = None
        else:
            frame.value[frame.key] = value
            assert frame.key_mark is not None
            frame.children[frame.key] = Mark(mark.file, frame.key_mark.line, frame.key_mark.column, mark.children)
            frame.key = None

    def _key(self, frame: _Frame, value: Any, mark: Mark) -> None:
        if value is None or isinstance(value, dict | list):
            raise DocumentFault("a key is missing: keys are texts", mark.line, mark.column)
        key = value if isinstance(value, str) else _key_text(value)
        if key in frame.value:
            first = frame.children[key].line
            raise DuplicateKey(key, first, mark.line, mark.column)
        frame.key, frame.key_mark = key, mark

    # Scalars

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._check_tag(event)
        frame = self._stack[-1] if self._stack else None
        is_key = frame is not None and isinstance(frame.value, dict) and frame.key is None
        plain = event.implicit[0] and event.tag is None
        if frame is not None and is_key and plain and event.value == "<<":
            frame.key = _MERGE
            return
        value = self._value(event, plain)
        mark, weight = self._mark(event), 1 + len(event.value)
        if event.anchor:
            self._anchors[event.anchor] = (value, mark, weight)
        self._add(value, mark, weight)

    def _value(self, event: yaml.ScalarEvent, plain: bool) -> Any:
        if event.tag == _STR or not (plain or event.tag in _CORE_TAGS):
            return event.value
        value = None if event.tag == _NULL else resolve(event.value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._fault(event, "not a number that JSON has: infinities and NaN cannot be sent")
        return value

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag != "!" and event.tag not in _CORE_TAGS:
            raise self._fault(event, f"the YAML tag {event.tag} means nothing here: remove it")


class DuplicateKey(DocumentFault):
    """One key twice in a map. `first` is the line of the first one, from 0."""

    def __init__(self, key: str, first: int, line: int, column: int) -> None:
        super().__init__(f"duplicate key '{key}'", line, column)
        self.first = first


def resolve(text: str) -> str | bool | int | float | None:
    """What a plain scalar means."""
    if text in _NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text[0] not in "+-.0123456789":
        return text
    if _NOT_FINITE.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    number = _number(_BETWEEN_DIGITS.sub("", text) if text.startswith(".") else text.replace("_", ""))
    return text if number is None else number


def _number(text: str) -> int | float | None:
    """As Go reads it: an integer that 64 bits hold, by its prefix; else a decimal number that a double holds."""
    if found := _INT.fullmatch(text):
        sign, *digits, signed = found.groups()
        value = int(signed, 2) if signed else 0
        for base, part in zip((2, 8, 16, 10), digits, strict=True):
            if part is not None:
                value = int(f"{sign}{part}", base)
        if -(2**63) <= value < 2**64:
            return value
    if not _FLOAT.fullmatch(text):
        return None
    # A leading zero may stand before a decimal number, too: 08 is 8.
    number = float(text)
    return (int(number) if re.fullmatch(r"[-+]?[0-9]{1,15}", text) else number) if math.isfinite(number) else None


def _merged(value: Any, mark: Mark) -> Iterator[tuple[dict[str, Any], Mark]]:
    """The maps that `<<` names: one, or a list of them, the first of which wins."""
    if isinstance(value, dict):
        yield value, mark
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        for index, entry in enumerate(value):
            yield entry, (mark.children or {}).get(index, mark)
    else:
        raise DocumentFault("<< takes a map or a list of maps", mark.line, mark.column)


def _key_text(value: bool | int | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(error: yaml.MarkedYAMLError) -> str:
    context = f" ({error.context})" if error.context else ""
    return f"not YAML: {error.problem or 'cannot be read'}{context}"


# Writing

Form = Literal["yaml", "json"]


def written(document: Mapping[str, Any], form: Form) -> str:
    """A document as a file that reads as itself, also where a text looks like an expression."""
    return literal(write_yaml(document) if form == "yaml" else _write_json(document))


def _write_json(document: Mapping[str, Any]) -> str:
    """JSON that is YAML too: not every character that a JSON text may hold as it is may stand in YAML."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def write_yaml(document: Mapping[str, Any]) -> str:
    """YAML that reads as the same values here and in decK: keys in the document's order, no anchors."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def write_double_quoted(self, text: str, split: bool = True) -> None:
        super().write_double_quoted(text, split and OPEN not in text)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted where a plain scalar would be read as something else; several lines as a block, where that is exact."""
    style: str | None = '"'
    if OPEN in text and "#" in text:
        # On one line: one that begins with # would be a comment to the reader of expressions.
        pass
    elif "\n" in text and text.replace("\n", "").isprintable():
        style = "|"
    elif text.isprintable() and isinstance(resolve(text), str):
        style = None
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _represent_text)
