"""The time that a virtual machine's host gave to others while something was measured.

Such time is nobody's to mend, and a core of which a tenth was taken shows stalls of many milliseconds that are not
those of what is measured. So every row says how much was taken, and a short measurement that was disturbed is repeated:
by what was taken alone, never by what was found, and for every peer in the same way.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tests.benchmarks.rows import Row

T = TypeVar("T")

_CALM = 0.01
"""The share of a core that may be taken before a measurement counts as disturbed."""
_TRIES = 4
"""Measurements at most; after that the least disturbed of them is what there is."""
_STEAL = 8
"""The column of /proc/stat, its name being the first."""


@dataclass(frozen=True, slots=True)
class Measured(Generic[T]):
    value: T
    stolen: float
    """Of the core that lost most, the share of the time that was taken from it."""


def stolen_seconds() -> list[float]:
    """By core, since the machine began."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return [int(fields[_STEAL]) / os.sysconf("SC_CLK_TCK") for fields in lines if fields[0][:3] == "cpu" != fields[0]]


def watched(measure: Callable[[], T]) -> Measured[T]:
    """Measure once."""
    before, began = stolen_seconds(), time.monotonic()
    value = measure()
    elapsed = time.monotonic() - began
    taken = max(after - first for after, first in zip(stolen_seconds(), before, strict=True))
    return Measured(value, taken / elapsed)


def undisturbed(measure: Callable[[], T]) -> Measured[T]:
    """Measure, again while too much was taken meanwhile."""
    least = watched(measure)
    for _ in range(_TRIES - 1):
        if least.stolen <= _CALM:
            break
        least = min(least, watched(measure), key=lambda measured: measured.stolen)
    return least


def noted(measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """Rows that were measured together, with what was taken from all of them."""
    measured = watched(lambda: list(measure()))
    return [dataclasses.replace(row, stolen=measured.stolen) for row in measured.value]
