"""From the write of one change to the last node's receipt of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.documents import change, recipe, ten_thousand
from tests.benchmarks.fleet import crowd, real_node
from tests.benchmarks.plane import Held, Plane, request_of
from tests.benchmarks.rows import Row, quantile

FIFTY = 50
_ASKED_MS = {1: 50.0, FIFTY: 500.0}
_BREATH_SECONDS = 0.05
"""Between two changes: each is measured by itself, not the queue behind the one before."""


def propagation(planes: Sequence[Plane], samples: int) -> list[Row]:
    """`samples`: how many changes each row is made of."""
    rows = []
    for plane in planes:
        for what, document in (("the recipe", recipe()), ("10,000 entities", ten_thousand())):
            held = plane.create(f"bench {what}")
            held.apply(request_of(document))
            held.settled()
            write = _whole if what == "the recipe" else _single
            for count, nodes in ((1, real_node), (FIFTY, crowd)):
                whom = "one real node" if count == 1 else f"{count} simulated nodes"
                name = f"one change to the last receipt, {what}, {whom}, {plane.database}"
                print(name, flush=True)
                arguments = (held,) if count == 1 else (held, count)
                with nodes(*arguments):
                    rows.append(_row(name, count, _measure(held, document, count, write, samples)))
            held.delete()
    return rows


Write = Callable[[Held, dict[str, Any], int], int]


def _measure(held: Held, document: dict[str, Any], count: int, write: Write, samples: int) -> list[float]:
    """Milliseconds from the call that writes to the answer that all nodes run it."""
    found = []
    for number in range(samples + 5):
        started = time.perf_counter()
        version = write(held, document, number)
        receipts = held.receipts(version, wait=20)
        found.append((time.perf_counter() - started) * 1000)
        if receipts["summary"]["applied"] != count or not receipts["complete"]:
            sys.exit(f"version {version} was not applied by {count} nodes: {receipts['summary']}")
        held.settled()
        time.sleep(_BREATH_SECONDS)
    return found[5:]


def _whole(held: Held, document: dict[str, Any], number: int) -> int:
    """The whole document applied again, one field of it changed."""
    return int(held.apply(request_of(change(document, number)))["version"])


def _single(held: Held, document: dict[str, Any], number: int) -> int:
    """One entity written by itself, as decK and the Admin API do."""
    before = held.version
    held.call("PATCH", "/core-entities/services/service-700", {"read_timeout": 50_000 + number % 97})
    return before + 1


def _row(name: str, count: int, milliseconds: list[float]) -> Row:
    p50, p99 = quantile(milliseconds, 0.5), quantile(milliseconds, 0.99)
    asked = _ASKED_MS[count]
    return Row(name, f"p50 {p50:.0f} ms, p99 {p99:.0f} ms", f"p99 ≤ {asked:.0f} ms", p99 <= asked, milliseconds)
