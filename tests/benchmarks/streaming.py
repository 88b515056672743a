"""What streams cost one worker: CPU per chunk, many at once, the wait for the first token."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import orjson

from tests.benchmarks.rig import LOAD_CORE, Rig, cpu_seconds, resident_bytes, settled
from tests.benchmarks.rows import Row, quantile
from tests.benchmarks.stolen import noted, undisturbed


def streaming(rig: Rig, repeats: int) -> list[Row]:
    print("streaming: 100 streams, a chunk every 10 ms", flush=True)
    return [_chunk_cost(rig, repeats), *noted(lambda: [_many_streams(rig)]), _first_token(rig, repeats)]


def _call_streams(port: int, streams: int, seconds: float, path: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.streams", str(port), str(streams), str(seconds), path]
    output = subprocess.run(["taskset", "-c", LOAD_CORE, *command], capture_output=True, text=True, check=True).stdout
    return dict(orjson.loads(output))


def _chunk_cost(rig: Rig, repeats: int) -> Row:
    def cost() -> float:
        before = cpu_seconds(rig.worker)
        tally = _call_streams(rig.stack.proxy_port, 100, 4, "/stream")
        _refuse_failures("streaming", tally)
        return float((cpu_seconds(rig.worker) - before) / tally["frames"] * 1e6)

    pace = rig.pace(10, 100)
    try:
        measured = [undisturbed(cost) for _ in range(repeats)]
    finally:
        pace.kill()
        pace.wait()
    costs = [each.value for each in measured]
    median = statistics.median(costs)
    stolen = max(each.stolen for each in measured)
    name = "streaming: CPU of the worker per chunk"
    return Row(name, f"{median:.0f} µs", "≤ 60 µs", median <= 60, costs, stolen=stolen)


def _many_streams(rig: Rig) -> Row:
    print("streaming: 1,000 streams of 20 chunks/s", flush=True)
    pace = rig.pace(50, 400)
    try:
        settled(rig.worker)
        idle = resident_bytes(rig.worker)
        started = time.monotonic()
        client = subprocess.Popen(
            [
                *("taskset", "-c", LOAD_CORE, sys.executable, "-m", "tests.benchmarks.streams"),
                *(str(rig.stack.proxy_port), "1000", "8", "/stream"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(6)
        memory = (resident_bytes(rig.worker) - idle) / 1000
        output, _ = client.communicate(timeout=60)
        elapsed = time.monotonic() - started
    finally:
        pace.kill()
        pace.wait()
    tally = dict(orjson.loads(output))
    _refuse_failures("1,000 streams", tally)
    # The starts are spread over half a second of the eight: the full rate would show as some 97 %.
    share = tally["frames"] / (1000 * 20 * 8)
    figure = f"{min(share, 1.0):.0%} of 20,000 chunks/s, {memory / 1000:.0f} kB a stream"
    runs = [tally["frames"], elapsed, memory]
    return Row("streaming: 1,000 streams at once", figure, "all, ≤ 40 kB", share >= 0.97 and memory <= 40_000, runs)


def _first_token(rig: Rig, repeats: int) -> Row:
    print("streaming: time to first token, direct and proxied in turn", flush=True)

    def waits(port: int) -> list[float]:
        tally = _call_streams(port, 128, 3, "/stream")
        _refuse_failures("time to first token", tally)
        return list(tally["first_token_ms"])

    pace = rig.pace(20, 20)
    added50, added99, stolen = [], [], 0.0
    try:
        for _ in range(repeats):
            pair = [undisturbed(lambda port=port: waits(port)) for port in (rig.paced, rig.stack.proxy_port)]
            stolen = max(stolen, *(each.stolen for each in pair))
            direct, proxied = (each.value for each in pair)
            added50.append(quantile(proxied, 0.5) - quantile(direct, 0.5))
            added99.append(quantile(proxied, 0.99) - quantile(direct, 0.99))
    finally:
        pace.kill()
        pace.wait()
    p50, p99 = statistics.median(added50), statistics.median(added99)
    figure = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    name = "streaming: added time to first token, 128 streams"
    return Row(name, figure, "p99 ≤ 3 ms", p99 <= 3, added99, stolen=stolen)


def _refuse_failures(name: str, tally: dict[str, Any]) -> None:
    if tally["failures"]:
        sys.exit(f"{name}: {tally['failures']} streams failed")
