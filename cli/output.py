"""Where the command writes: results to stdout, everything else to stderr, both masked, styled only on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.masking import Mask

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey; texts from files and servers may hold it."""

_PLAIN_WIDTH = 10_000
"""Columns of output that is not a terminal: wide enough that nothing is ever folded or cut."""


@dataclass(slots=True)
class Output:
    """One run's output. `mask` is applied to all text; data is masked by who lays it out."""

    mask: Mask = field(default_factory=Mask)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line of the result."""
        self._console(self.stdout).print(Text(self._shown(text), style or ""), soft_wrap=True)

    def note(self, text: str, style: str | None = None) -> None:
        """A line for the person who watches."""
        self._console(self.stderr).print(Text(self._shown(text), style or ""), soft_wrap=True)

    def error(self, text: str) -> None:
        for line in text.split("\n"):
            self.note(f"error: {line}" if not line.startswith(" ") else line, "red")

    def raw(self, text: str) -> None:
        """Text that must arrive as it is: a dump, an export line. The caller answers for what is in it."""
        self.stdout.write(text)
        self.stdout.flush()

    def json(self, data: Any) -> None:
        """JSON that the caller has masked where it must be."""
        self.raw(json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        """Rows under headings; the columns named in `right` hold numbers. Aligned plain text off a terminal."""
        masked = [[self._shown(cell) for cell in row] for row in rows]
        if self.stdout.isatty():
            self._console(self.stdout).print(_rich_table(columns, masked, right))
            return
        widths = [max(len(row[index]) for row in [list(columns), *masked]) for index in range(len(columns))]
        for row in [list(columns), *masked]:
            cells = [
                _aligned(cell, width, name in right) for cell, width, name in zip(row, widths, columns, strict=True)
            ]
            self.raw("  ".join(cells).rstrip() + "\n")

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show that something takes a while: a spinner on a terminal, one plain line elsewhere."""
        if self.stderr.isatty():
            with self._console(self.stderr).status(self._shown(text)):
                yield
        else:
            self.note(text)
            yield

    def _shown(self, text: str) -> str:
        return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", self.mask.text(text))

    def _console(self, stream: TextIO) -> Console:
        plain = not stream.isatty()
        return Console(
            file=stream,
            highlight=False,
            markup=False,
            emoji=False,
            width=_PLAIN_WIDTH if plain else None,
            no_color=True if plain or os.environ.get("NO_COLOR") else None,
            force_terminal=False if plain else None,
        )


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _aligned(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
