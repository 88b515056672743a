"""What many connected nodes cost a control plane while nothing changes."""

from __future__ import annotations

import time

from tests.benchmarks.documents import recipe
from tests.benchmarks.fleet import crowd
from tests.benchmarks.plane import Plane, request_of
from tests.benchmarks.rig import resident_bytes
from tests.benchmarks.rows import Row

NODES = 500
_SECONDS = 20
_CALM_SECONDS = 5


def idle(plane: Plane) -> Row:
    """CPU of one core over 20 s, and memory per node, both beyond what the control plane needs without nodes."""
    name = f"{NODES} idle nodes, {plane.database}"
    print(name, flush=True)
    held = plane.create("bench idle")
    held.apply(request_of(recipe()))
    held.settled()
    alone, memory = _share(plane), resident_bytes(plane.pid)
    with crowd(held, NODES):
        time.sleep(_CALM_SECONDS)
        share, per_node = _share(plane), (resident_bytes(plane.pid) - memory) / NODES
    held.delete()
    figure = f"{share - alone:.1%} of a core, {per_node / 1000:.0f} kB a node"
    return Row(name, figure, runs=[share, alone, per_node])


def _share(plane: Plane) -> float:
    before, started = plane.cpu, time.monotonic()
    time.sleep(_SECONDS)
    return (plane.cpu - before) / (time.monotonic() - started)
