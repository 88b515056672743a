"""Where `-o` writes. A file is replaced whole; a link stays, and what it leads to is replaced.

What is no file (a pipe, a device) is written into: to put a file in its place would take it from everyone else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cli.errors import CliError
from cli.state import write_private


def refuse_loss(path: Path, overwrite: bool, inputs: Iterable[str] = ()) -> None:
    """Raises CliError for a file that must stay: one of the inputs, or one that nobody agreed to overwrite."""
    if not path.is_file():
        return
    if any(os.path.exists(name) and path.samefile(name) for name in inputs):
        raise CliError(f"{path}: is one of the files that are read; name another one to write to")
    if not overwrite:
        raise CliError(f"{path}: exists already; say --yes to overwrite it")


def write(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, or into what is there and is no file."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            write_private(Path(os.path.realpath(path)), text)
    except OSError as error:
        raise CliError(f"{path}: cannot be written: {error.strerror}") from None
