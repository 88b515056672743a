"""Showing the logs of a stack's processes, and following them as they grow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from cli.output import Output
from cli.processes import last_lines

POLL = 0.2
"""Seconds between two looks at files that are followed."""


def show(output: Output, files: Mapping[str, Path], lines: int) -> None:
    """The last lines of each log, each under its process's name."""
    for name, path in files.items():
        for line in last_lines(path, lines) if lines else []:
            output.line(_prefixed(name, line, files))


def follow(output: Output, files: Mapping[str, Path]) -> None:
    """Print what is appended from now on, until interrupted."""
    positions = {name: path.stat().st_size for name, path in files.items()}
    while True:
        for name, path in files.items():
            lines, positions[name] = appended(path, positions[name])
            for line in lines:
                output.line(_prefixed(name, line, files))
        time.sleep(POLL)


def appended(path: Path, position: int) -> tuple[list[str], int]:
    """The whole lines that were written behind `position`, and the new position; from the start of a rotated file."""
    size = path.stat().st_size if path.exists() else 0
    if size < position:
        position = 0
    if size == position:
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read(size - position)
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), position + len(whole)


def _prefixed(name: str, line: str, files: Mapping[str, Path]) -> str:
    return line if len(files) == 1 else f"{name}: {line}"
