"""10,000 entities in one apply, and one change among them; decK and `recipe sync` with the same file beside."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.benchmarks.documents import ENTITIES, change, ten_thousand
from tests.benchmarks.plane import TOKEN, Held, Plane, request_of
from tests.benchmarks.rows import Row
from tests.end_to_end.stack import RECIPE

_CHANGES = 5
"""One changed field each, in every repeat."""
_SYNC_SECONDS = 1800


@dataclass(slots=True)
class _Times:
    """Seconds until the answer, and of the control plane's CPU meanwhile."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def applying(planes: Sequence[Plane], repeats: int) -> list[Row]:
    whole = {plane.database: _Times() for plane in planes}
    single = {plane.database: _Times() for plane in planes}
    for repeat in range(repeats):
        for plane in planes:
            print(f"apply on {plane.database}: repeat {repeat + 1} of {repeats}", flush=True)
            held = plane.create(f"bench-{repeat}")
            _measure(held, whole[plane.database], single[plane.database])
            held.delete()
    rows = []
    for plane in planes:
        rows += [_whole_row(plane.database, whole[plane.database]), _single_row(plane.database, single[plane.database])]
    return rows


def _measure(held: Held, whole: _Times, single: _Times) -> None:
    document = ten_thousand()
    _timed(held, document, whole, creating=ENTITIES)
    for number in range(_CHANGES):
        document = change(document, number)
        _timed(held, document, single, updating=1)
    again = held.apply(request_of(document))["plan"]["summary"]
    if again["total"] != 0:
        sys.exit(f"the same document a second time is not empty: {again}")


def _timed(held: Held, document: dict[str, Any], times: _Times, **expected: int) -> None:
    request = request_of(document)
    before, started = held.plane.cpu, time.perf_counter()
    summary = held.apply(request)["plan"]["summary"]
    times.wall.append(time.perf_counter() - started)
    times.cpu.append(held.plane.cpu - before)
    if {name: count for name, count in summary.items() if count and name != "total"} != expected:
        sys.exit(f"expected {expected} of the apply, it did {summary}")
    held.settled()


def _whole_row(database: str, times: _Times) -> Row:
    figure = f"{times.median:.2f} s (CPU {statistics.median(times.cpu):.2f} s)"
    name = f"apply 10,000 entities, {database}"
    return Row(name, figure, "≤ 3 s", times.median <= 3, [*times.wall, *times.cpu])


def _single_row(database: str, times: _Times) -> Row:
    figure = f"{times.median * 1000:.0f} ms (CPU {statistics.median(times.cpu) * 1000:.0f} ms)"
    name = f"apply one change among them, {database}"
    return Row(name, figure, "≤ 200 ms", times.median <= 0.2, [*times.wall, *times.cpu])


# -- beside it: the same file, by programs


def syncing(planes: Sequence[Plane], folder: Path) -> list[Row]:
    """Once each: decK's takes minutes."""
    rows = []
    for plane in planes:
        rows += _synced(plane, folder, "recipe", str(RECIPE), _recipe)
        deck = os.environ.get("TANDEM_DECK")
        if deck:
            rows += _synced(plane, folder, "deck gateway", deck, _deck)
        else:
            rows.append(Row(f"`deck gateway sync` of the 10,000, {plane.database}", "TANDEM_DECK names no program"))
    return rows


def _recipe(held: Held) -> Sequence[str]:
    return ("sync", "{file}", "--yes", *_address(held))


def _deck(held: Held) -> Sequence[str]:
    return ("gateway", "sync", "{file}", *_address(held))


def _address(held: Held) -> Sequence[str]:
    url = f"http://127.0.0.1:{held.plane.port}"
    return ("--konnect-addr", url, "--konnect-token", TOKEN, "--konnect-control-plane-name", held.name)


def _synced(plane: Plane, folder: Path, name: str, program: str, arguments: Any) -> list[Row]:
    print(f"{name} sync on {plane.database}", flush=True)
    held = plane.create(f"bench-{name.split()[0]}")
    document = ten_thousand()
    rows = []
    for what in ("the 10,000", "one change among them"):
        file = folder / "bench.json"
        file.write_bytes(orjson.dumps(document))
        before, started = plane.cpu, time.perf_counter()
        _run([program, *(word.format(file=file) for word in arguments(held))], {"RECIPE_HOME": str(folder)})
        seconds = time.perf_counter() - started
        cpu = plane.cpu - before
        figure = f"{seconds:.1f} s (CPU of the control plane {cpu:.1f} s)"
        rows.append(Row(f"`{name} sync` of {what}, {plane.database}", figure, runs=[seconds, cpu]))
        document = change(document, 0)
        held.settled()
    held.delete()
    return rows


def _run(command: Sequence[str], more: Mapping[str, str]) -> None:
    environment = {**os.environ, "DECK_ANALYTICS": "off", **more}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_SYNC_SECONDS, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
