"""What a benchmark says: rows of a table, and the same as JSON beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parents[2] / "bench-results"


@dataclass(frozen=True, slots=True)
class Row:
    row: str
    figure: str
    """The median, or what else the row is judged by, as people read it."""
    asked: str = ""
    met: bool | None = None
    """None where nothing is asked, or nothing could be measured."""
    runs: Sequence[float] = ()
    """The measurements that count, in the row's own unit: those that were repeated are left out."""
    ratio: float | None = None
    """To the yardstick of the same run."""
    stolen: float | None = None
    """The largest share of a core's time that the host took during one of the measurements (`stolen`)."""


@dataclass(frozen=True, slots=True)
class Section:
    """The rows that were measured together, under one title."""

    title: str
    rows: list[Row] = field(default_factory=list)
    yardstick: str = ""


def quantile(values: Iterable[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def show(sections: Iterable[Section]) -> None:
    console = Console(width=150)
    for section in sections:
        table = Table(title=section.title)
        yardstick = [f"× {section.yardstick}"] if section.yardstick else []
        for title in ("row", "median", *yardstick, "asked", "met", "stolen"):
            table.add_column(title)
        for row in section.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            met = "" if row.met is None else "yes" if row.met else "no"
            stolen = "" if row.stolen is None else f"{row.stolen:.0%}"
            table.add_row(row.row, row.figure, *([ratio] if section.yardstick else []), row.asked, met, stolen)
        console.print(table)


def store(sections: Iterable[Section]) -> Path:
    """One file for the run: every row with all that was measured for it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_bytes(orjson.dumps(list(sections), option=orjson.OPT_INDENT_2))
    return path
