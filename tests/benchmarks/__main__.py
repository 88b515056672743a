"""Measure, print the tables, store them as JSON. See the package's docstring for how."""

from __future__ import annotations

import argparse
import contextlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.applying import applying, syncing
from tests.benchmarks.idle import idle
from tests.benchmarks.plane import planes
from tests.benchmarks.propagation import propagation
from tests.benchmarks.rig import Rig
from tests.benchmarks.rows import RESULTS, Section, show, store
from tests.benchmarks.stolen import noted
from tests.benchmarks.streaming import streaming
from tests.benchmarks.throughput import throughput

_CHANGES_PER_REPEAT = 20
"""Changes that the time to the last receipt is taken from: a hundred in all give a 99th percentile."""


def data_plane(repeats: int, seconds: int) -> Section:
    python = platform.python_version()
    title = f"Tandem's data plane: one worker on one core, load and upstream on the other; Python {python}"
    section = Section(title, yardstick="nginx")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        rig = Rig(Path(folder))
        stack.callback(rig.stop)
        rig.start()
        section.rows.extend([*throughput(rig, repeats, seconds), *streaming(rig, repeats)])
    return section


def control_plane(repeats: int, _: int) -> Section:
    section = Section("Tandem's control plane: one process on one core; database, nodes and clients on the other")
    with tempfile.TemporaryDirectory() as folder, planes(Path(folder)) as running:
        section.rows.extend(noted(lambda: applying(running, repeats)))
        section.rows.extend(noted(lambda: propagation(running, repeats * _CHANGES_PER_REPEAT)))
        section.rows.extend(noted(lambda: [idle(plane) for plane in running]))
        section.rows.extend(noted(lambda: syncing(running, Path(folder))))
    return section


HALVES: dict[str, Callable[[int, int], Section]] = {"data-plane": data_plane, "control-plane": control_plane}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=HALVES, help="one half; by default both, one after the other")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of each row (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds of load in each repeat (default 3)")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else list(HALVES)
    for tool in ("nginx", "wrk", "taskset") if "data-plane" in chosen else ("taskset",):
        if shutil.which(tool) is None:
            sys.exit(f"make bench needs {tool}, which this machine lacks")
    sections = [HALVES[name](arguments.repeats, arguments.seconds) for name in chosen]
    show(sections)
    print(f"stored as {store(sections).relative_to(RESULTS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
