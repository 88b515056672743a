"""Measure, print the table, store it beside as JSON. See the package's docstring for how."""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from tests.benchmarks.rig import LOAD_CORE, Rig, cpu_seconds, resident_bytes, settled
from tests.benchmarks.streams import BODY

RESULTS = Path(__file__).parents[2] / "bench-results"

WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["apikey"] = "{key}"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{body}]]
"""
CHAT = BODY.replace(b'"stream":true,', b"").decode()


class Throughput:
    """Requests per second over 32 connections, as wrk counts them; every answer must be a 200."""

    def __init__(self, name: str, asked: str, port: int, path: str, key: str = "bench-key") -> None:
        self.name = name
        self.asked = asked
        self.url = f"http://127.0.0.1:{port}{path}"
        self.key = key
        self.rates: list[float] = []

    def check(self, expected: bytes) -> None:
        answer = httpx.post(self.url, content=CHAT, headers={"apikey": self.key, "Content-Type": "application/json"})
        if answer.status_code != 200 or expected not in answer.content:
            sys.exit(f"{self.name}: expected an answer with {expected!r}, got {answer.status_code} {answer.text}")

    def measure(self, folder: Path, seconds: int) -> None:
        script = folder / "wrk.lua"
        script.write_text(WRK_SCRIPT.format(key=self.key, body=CHAT))
        command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), self.url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in output or "Socket errors" in output:
            sys.exit(f"{self.name}: answers were not all good:\n{output}")
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        assert found is not None, output
        self.rates.append(float(found[1]))

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


def throughput(rig: Rig, repeats: int, seconds: int) -> list[dict[str, Any]]:
    yardstick = Throughput("nginx proxy_pass (the yardstick)", "", rig.yardstick, "/")
    proxy = rig.stack.proxy_port
    rows = [
        yardstick,
        Throughput("plain proxying, no plugins", "0.6", proxy, "/plain"),
        Throughput("unary: key-auth + ai-prompt-decorator + ai-proxy-advanced", "0.35", proxy, "/unary"),
        Throughput("the recipe's /chat: two routes, Datakit, both calls", "0.08", proxy, "/chat", "demo-consumer-key"),
    ]
    for row in rows:
        row.check(b'"chat.completion"')
    for repeat in range(repeats):
        print(f"throughput: repeat {repeat + 1} of {repeats}", flush=True)
        for row in rows:
            row.measure(rig.folder, seconds)
            settled(rig.worker)
    return [
        {
            "row": row.name,
            "figure": f"{row.median:,.0f} requests/s",
            "ratio": round(row.median / yardstick.median, 3),
            "asked": f"≥ {row.asked} × nginx" if row.asked else "",
            "met": row is yardstick or row.median / yardstick.median >= float(row.asked),
            "runs": row.rates,
        }
        for row in rows
    ]


def call_streams(port: int, streams: int, seconds: float, path: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.streams", str(port), str(streams), str(seconds), path]
    output = subprocess.run(["taskset", "-c", LOAD_CORE, *command], capture_output=True, text=True, check=True).stdout
    return dict(orjson.loads(output))


def streaming(rig: Rig, repeats: int) -> list[dict[str, Any]]:
    print("streaming: 100 streams, a chunk every 10 ms", flush=True)
    return [chunk_cost(rig, repeats), many_streams(rig), *first_token(rig, repeats)]


def chunk_cost(rig: Rig, repeats: int) -> dict[str, Any]:
    pace = rig.pace(10, 100)
    costs = []
    try:
        for _ in range(repeats):
            before = cpu_seconds(rig.worker)
            tally = call_streams(rig.stack.proxy_port, 100, 4, "/stream")
            costs.append((cpu_seconds(rig.worker) - before) / tally["frames"] * 1e6)
            refuse_failures("streaming", tally)
    finally:
        pace.kill()
        pace.wait()
    cost = statistics.median(costs)
    return row_of("streaming: CPU of the worker per chunk", f"{cost:.0f} µs", "≤ 60 µs", cost <= 60, costs)


def many_streams(rig: Rig) -> dict[str, Any]:
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
    refuse_failures("1,000 streams", tally)
    # The starts are spread over half a second of the eight: the full rate would show as some 97 %.
    share = tally["frames"] / (1000 * 20 * 8)
    figure = f"{min(share, 1.0):.0%} of 20,000 chunks/s, {memory / 1000:.0f} kB a stream"
    runs = [tally["frames"], elapsed, memory]
    return row_of("streaming: 1,000 streams at once", figure, "all, ≤ 40 kB", share >= 0.97 and memory <= 40_000, runs)


def first_token(rig: Rig, repeats: int) -> list[dict[str, Any]]:
    print("streaming: time to first token, direct and proxied in turn", flush=True)
    pace = rig.pace(20, 20)
    added50, added99 = [], []
    try:
        for _ in range(repeats):
            direct = call_streams(rig.paced, 128, 3, "/stream")["first_token_ms"]
            proxied = call_streams(rig.stack.proxy_port, 128, 3, "/stream")["first_token_ms"]
            added50.append(quantile(proxied, 0.5) - quantile(direct, 0.5))
            added99.append(quantile(proxied, 0.99) - quantile(direct, 0.99))
    finally:
        pace.kill()
        pace.wait()
    p50, p99 = statistics.median(added50), statistics.median(added99)
    figure = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    return [row_of("streaming: added time to first token, 128 streams", figure, "p99 ≤ 3 ms", p99 <= 3, added99)]


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def refuse_failures(name: str, tally: dict[str, Any]) -> None:
    if tally["failures"]:
        sys.exit(f"{name}: {tally['failures']} streams failed")


def row_of(name: str, figure: str, asked: str, met: bool, runs: list[float]) -> dict[str, Any]:
    return {"row": name, "figure": figure, "ratio": None, "asked": asked, "met": met, "runs": runs}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Tandem's data plane: one worker on one core, load and upstream on the other")
    for title in ("row", "median", "× nginx", "asked", "met"):
        table.add_column(title)
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(
            row["row"], row["figure"], ratio, row["asked"], "" if not row["asked"] else "yes" if row["met"] else "no"
        )
    Console(width=140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of each row (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds of load in each repeat (default 3)")
    arguments = parser.parse_args()
    for tool in ("nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"make bench needs {tool}, which this machine lacks")
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        try:
            rig.start()
            rows = throughput(rig, arguments.repeats, arguments.seconds) + streaming(rig, arguments.repeats)
        finally:
            rig.stop()
    show(rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    print(f"stored as {path.relative_to(RESULTS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
