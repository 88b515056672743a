"""Declarative files as people give them: paths, folders, `-`, several at once; rendered, parsed and merged.

What comes out is one document as JSON values, plus the way back: `Declared.place` turns the control plane's path of a
fault (`["services", 0, "plugins", 2]`) into `file:line`, whichever of the files it came from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from cli.documents import DocumentFault, DuplicateKey, Mark, read_yaml
from cli.errors import CliError, Faults
from cli.templates import Rendered, render

MAX_FILE_BYTES = 16 * 1024 * 1024
STDIN = "-"
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})


@dataclass(slots=True)
class Declared:
    """A declarative document, rendered and merged, and where each part of it was written."""

    document: dict[str, Any]
    mark: Mark
    used: dict[str, str] = field(default_factory=dict)
    """Environment variables that its expressions read, with their values: what outputs must mask."""
    sources: dict[str, Rendered] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def place(self, path: Sequence[str | int]) -> str:
        """`file:line` of a path, or of the deepest part of it that was written."""
        mark = self.mark.at(list(path))
        if not mark.file:
            return ", ".join(self.files)
        rendered = self.sources[mark.file]
        return f"{mark.file}:{rendered.source_line(mark.line)}"


def read_files(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, stdin: BinaryIO | None = None
) -> Declared:
    """Read, render, parse and merge. Raises Faults naming every file and line that is wrong, CliError otherwise."""
    environment = os.environ if environment is None else environment
    faults: list[str] = []
    parts: list[Declared] = []
    for name, text in _texts(arguments, stdin):
        try:
            parts.append(parse_text(text, name, environment))
        except Faults as error:
            faults.extend(error.faults)
    if faults:
        raise Faults(faults)
    if all(not part.document for part in parts):
        raise CliError(f"{', '.join(part.files[0] for part in parts)}: empty, there is nothing to apply")
    return merge(parts)


def parse_text(text: str, name: str, environment: Mapping[str, str]) -> Declared:
    """One file's text as a document. Raises Faults."""
    rendered = render(text, environment)
    if rendered.faults:
        raise Faults([f"{name}:{line}: {message}" for line, message in rendered.faults])
    try:
        document, mark = read_yaml(rendered.text, name)
    except DocumentFault as error:
        raise Faults([f"{_position(error, name, rendered)}: {_message(error, rendered)}"]) from None
    if document is None:
        document, mark = {}, Mark(name, 0, 0, {})
    if not isinstance(document, dict):
        raise Faults([f"{name}:1: expected a declarative document: a map with _format_version, services, …"])
    return Declared(document, mark, rendered.used, {name: rendered}, (name,))


def _position(error: DocumentFault, name: str, rendered: Rendered) -> str:
    """file:line:column; without the column where a pasted value has moved it."""
    column = "" if error.line in rendered.edited else f":{error.column + 1}"
    return f"{name}:{rendered.source_line(error.line)}{column}"


def _message(error: DocumentFault, rendered: Rendered) -> str:
    if isinstance(error, DuplicateKey):
        return f"{error.message} (the first one is on line {rendered.source_line(error.first)})"
    hint = ""
    if error.line in rendered.edited:
        hint = '; the value of an environment variable was pasted here: put quotes around it, "${{ env … }}"'
    return error.message + hint


# Finding and reading


def _texts(arguments: Sequence[str], stdin: BinaryIO | None) -> list[tuple[str, str]]:
    if not arguments:
        if (stdin or sys.stdin).isatty():
            raise CliError("no file given: name files or folders, or - to read from standard input")
        arguments = [STDIN]
    if list(arguments).count(STDIN) > 1:
        raise CliError("- may be given once: standard input can be read only once")
    texts: list[tuple[str, str]] = []
    for path in _expand(arguments):
        if path == STDIN:
            texts.append(("<stdin>", _decode(_bounded(stdin or sys.stdin.buffer, "<stdin>"), "<stdin>")))
        else:
            with _opened(path) as file:
                texts.append((path, _decode(_bounded(file, path), path)))
    return texts


def _expand(arguments: Sequence[str]) -> list[str]:
    """Folders become the declarative files below them, in the order of their names; each file once."""
    found: dict[str, None] = {}
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN or not path.is_dir():
            found[argument] = None
            continue
        inside = sorted(str(file) for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not inside:
            raise CliError(f"{argument}: no .yaml, .yml or .json file in this folder")
        found.update(dict.fromkeys(inside))
    return list(found)


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"{path}: cannot be read: {error.strerror}") from None


def _bounded(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise CliError(
            f"{name}: larger than {MAX_FILE_BYTES >> 20} MiB, which is more than a declarative file may have: "
            "split the configuration, for instance by select tags"
        )
    return data


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CliError(f"{name}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


# Merging


def merge(parts: Sequence[Declared]) -> Declared:
    """Lists are appended, maps merged, the first of two single values wins; names of targets must agree.

    Raises Faults for what is a list here and a map or a single value there: one of the two would be lost.
    """
    if len(parts) == 1:
        return parts[0]
    merged = Declared({}, Mark("", 0, 0, {}))
    for part in parts:
        _check_agreement(merged, part)
        _check_kinds(merged, part)
        merged.document = _merge_maps(merged.document, merged.mark, part.document, part.mark)
        merged.used.update(part.used)
        merged.sources.update(part.sources)
        merged.files += part.files
    return merged


_MUST_AGREE: tuple[tuple[str, ...], ...] = (
    ("_format_version",),
    ("_workspace",),
    ("_konnect", "control_plane_name"),
    ("_konnect", "runtime_group_name"),
)


def _check_agreement(merged: Declared, part: Declared) -> None:
    for path in _MUST_AGREE:
        ours, theirs = _at(merged.document, path), _at(part.document, path)
        if ours is not None and theirs is not None and ours != theirs:
            name = ".".join(path)
            raise Faults([f"{part.place(path)}: {name} is '{theirs}' here, but '{ours}' in {merged.place(path)}"])


def _check_kinds(merged: Declared, part: Declared) -> None:
    if faults := [
        f"{part.place(path)}: {'.'.join(path)} is {_kind(_at(part.document, path))} here, but "
        f"{_kind(_at(merged.document, path))} in {merged.place(path)}"
        for path in _differing(merged.document, part.document)
    ]:
        raise Faults(faults)


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The paths of what is of another kind in `theirs`. What is empty has none, and takes nothing away."""
    for key, value in theirs.items():
        known = ours.get(key)
        if known is None or value is None:
            continue
        if isinstance(known, dict) and isinstance(value, dict):
            yield from ((key, *path) for path in _differing(known, value))
        elif _kind(known) != _kind(value):
            yield (key,)


def _kind(value: Any) -> str:
    return "a map" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a single value"


def _at(document: Any, path: Sequence[str]) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _merge_maps(ours: dict[str, Any], mark: Mark, theirs: dict[str, Any], other: Mark) -> dict[str, Any]:
    """`ours` with what `theirs` adds; `mark` is brought up to date with it. Neither map is changed."""
    result = dict(ours)
    children = dict(mark.children or {})
    for key, value in theirs.items():
        known, place = result.get(key), (other.children or {})[key]
        if known is None:
            result[key], children[key] = value, place
        elif isinstance(known, list) and isinstance(value, list):
            children[key] = _appended(children[key], len(known), place)
            result[key] = [*known, *value]
        elif isinstance(known, dict) and isinstance(value, dict):
            nested = Mark(children[key].file, children[key].line, children[key].column, children[key].children)
            result[key] = _merge_maps(known, nested, value, place)
            children[key] = nested
    mark.children = children
    return result


def _appended(mark: Mark, length: int, other: Mark) -> Mark:
    children = dict(mark.children or {})
    children.update({length + int(index): child for index, child in (other.children or {}).items()})
    return Mark(mark.file, mark.line, mark.column, children)
