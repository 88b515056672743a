"""From the write of one change to the last node's receipt of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.documents import change, recipe, ten_thousand
from tests.benchmarks.fleet import crowd, real_node
from tests.benchmarks.plane import Held, Plane, request_of
from tests.benchmarks.rig import cpu_seconds, family
from tests.benchmarks.rows import Row, quantile

_FIFTY = 50
_BREATH_SECONDS = 0.05
"""Between two changes: each is measured by itself, not the queue behind the one before."""
_WARM_UP = 5


@dataclass(slots=True)
class _Times:
    """Milliseconds until the last receipt, of each change; of CPU, of the control plane and the nodes, on average."""

    wall: list[float] = field(default_factory=list)
    plane: float = 0.0
    nodes: float = 0.0


def propagation(planes: Sequence[Plane], samples: int) -> list[Row]:
    """`samples`: how many changes each row is made of."""
    rows = []
    for plane in planes:
        for what, document, write in (
            ("the recipe", recipe(), _whole),
            ("one of 10,000 entities", ten_thousand(), _single),
        ):
            held = plane.create(f"bench {what}")
            held.apply(request_of(document))
            held.settled()
            with real_node(held) as pid:
                rows.append(_row(held, document, write, samples, 1, pid, f"{what}, a real node, {plane.database}", 50))
            with crowd(held, _FIFTY) as pid:
                whom = f"{what}, {_FIFTY} simulated nodes, {plane.database}"
                rows.append(_row(held, document, write, samples, _FIFTY, pid, whom, 500))
            held.delete()
    return rows


_Write = Callable[[Held, dict[str, Any], int], None]


def _whole(held: Held, document: dict[str, Any], number: int) -> None:
    """The whole document applied again, one field of it changed."""
    held.apply(request_of(change(document, number)))


def _single(held: Held, document: dict[str, Any], number: int) -> None:
    """One entity written by itself, as decK and the Admin API do."""
    held.call("PATCH", "/core-entities/services/service-700", {"read_timeout": 50_000 + number})


def _row(
    held: Held,
    document: dict[str, Any],
    write: _Write,
    samples: int,
    count: int,
    pid: int,
    what: str,
    asked_ms: int,
) -> Row:
    name = f"one change to the last receipt: {what}"
    print(name, flush=True)
    times = _measure(held, document, count, pid, write, samples)
    p50, p99 = quantile(times.wall, 0.5), quantile(times.wall, 0.99)
    cpu = f"{times.plane:.0f} + {times.nodes:.0f} ms"
    figure = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms (CPU {cpu})"
    print(f"  {figure}", flush=True)
    return Row(name, figure, f"p99 ≤ {asked_ms} ms", p99 <= asked_ms, [*times.wall, times.plane, times.nodes])


def _measure(held: Held, document: dict[str, Any], count: int, pid: int, write: _Write, samples: int) -> _Times:
    times = _Times()
    nodes = family(pid)
    version = held.version
    plane_before, nodes_before = 0.0, 0.0
    for number in range(samples + _WARM_UP):
        if number == _WARM_UP:
            plane_before, nodes_before = held.plane.cpu, sum(map(cpu_seconds, nodes))
        started = time.perf_counter()
        write(held, document, number)
        version += 1
        receipts = held.receipts(version, wait=20)
        passed = (time.perf_counter() - started) * 1000
        if receipts["summary"]["applied"] != count or not receipts["complete"]:
            sys.exit(f"version {version} was not applied by {count} nodes: {receipts['summary']}")
        held.settled()
        time.sleep(_BREATH_SECONDS)
        if number >= _WARM_UP:
            times.wall.append(passed)
    times.plane = (held.plane.cpu - plane_before) * 1000 / samples
    times.nodes = (sum(map(cpu_seconds, nodes)) - nodes_before) * 1000 / samples
    return times
