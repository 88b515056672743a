"""Where the command writes: results to stdout, everything else to stderr, both masked, styled only on a terminal."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import Unwritten
from cli.masking import Mask
from cli.texts import one_line, shortened

_PLAIN_WIDTH = 10_000
"""Columns of output that is not a terminal: wide enough that nothing is ever folded or cut."""


@dataclass(slots=True)
class Output:
    """One run's output. `mask` is applied to all text; data is masked by who lays it out.

    What cannot be written to stdout raises Unwritten; what cannot be written to stderr is lost, since there is nowhere
    left to say so.
    """

    mask: Mask = field(default_factory=Mask)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    closed: bool = False
    """Whether nobody can read stdout: the caller has closed it."""
    done: str = ""
    """What this run has changed for good, in words: a report that cannot be written does not undo it."""

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line of the result."""
        with self._writing():
            self._console(self.stdout).print(Text(self._shown(text), style or ""), soft_wrap=True)

    def note(self, text: str, style: str | None = None) -> None:
        """A line for the person who watches."""
        with contextlib.suppress(OSError):
            self._console(self.stderr).print(Text(self._shown(text), style or ""), soft_wrap=True)

    def notes(self, text: str) -> None:
        """The same for a text of several lines."""
        for line in text.split("\n"):
            self.note(line)

    def error(self, text: str) -> None:
        """Lines that say what is wrong; those that begin with a blank go on with the one before."""
        for line in self.mask.text(text).split("\n"):
            self.note(line if line.startswith(" ") else f"error: {shortened(line)}", "red")

    def raw(self, text: str) -> None:
        """Text that must arrive as it is: a dump, an export line. The caller answers for what is in it.

        Programs and files have UTF-8, whatever a terminal has.
        """
        with self._writing():
            if isinstance(self.stdout, io.TextIOWrapper):
                self.stdout.flush()
                _write_all(self.stdout.buffer, text.encode(errors="backslashreplace"))
            else:
                self.stdout.write(text)
            self.stdout.flush()

    def json(self, data: Any) -> None:
        """JSON that the caller has masked where it must be."""
        self.raw(json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
        """Rows under headings; the columns named in `right` hold numbers. Aligned plain text off a terminal."""
        masked = [[one_line(self.mask.text(cell)) for cell in row] for row in rows]
        if self.stdout.isatty():
            with self._writing():
                self._console(self.stdout).print(_rich_table(columns, masked, right))
            return
        widths = [max(len(row[index]) for row in [list(columns), *masked]) for index in range(len(columns))]
        for row in [list(columns), *masked]:
            cells = [
                _aligned(cell, width, name in right) for cell, width, name in zip(row, widths, columns, strict=True)
            ]
            with self._writing():
                self.stdout.write("  ".join(cells).rstrip() + "\n")
                self.stdout.flush()

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
        return one_line(self.mask.text(text), keeping="\t")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):  # What is still to be written would fail too, at the latest at the end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stdout.fileno())
            raise Unwritten(error) from None

    def _console(self, stream: TextIO) -> Console:
        plain = not stream.isatty()
        return _Console(
            file=stream,
            highlight=False,
            markup=False,
            emoji=False,
            width=_PLAIN_WIDTH if plain else None,
            no_color=True if plain or os.environ.get("NO_COLOR") else None,
            force_terminal=False if plain else None,
        )


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """An unbuffered stream (PYTHONUNBUFFERED) takes no more than a pipe has room for."""
    rest = memoryview(data)
    while rest:
        taken = stream.write(rest)
        rest = rest[taken:]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process; what that means here is for the command to say."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def standard_output() -> Output:
    """Where a process writes. Streams that the caller closed lead nowhere; what an encoding lacks is escaped."""
    closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return Output(closed=closed)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _aligned(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
