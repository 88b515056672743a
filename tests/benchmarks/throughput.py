"""Requests per second through one worker, beside nginx, in turn."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import httpx

from tests.benchmarks.rig import LOAD_CORE, Rig, settled
from tests.benchmarks.rows import Row
from tests.benchmarks.stolen import undisturbed
from tests.benchmarks.streams import BODY

WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["apikey"] = "{key}"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{body}]]
"""
STRANGE = """
local count = 0
function request()
  count = count + 1
  wrk.headers["X-Number"] = count
  return wrk.format()
end
"""
"""No head is like the one before: what the data plane remembers of heads is of no use then."""
CHAT = BODY.replace(b'"stream":true,', b"").decode()


class Throughput:
    """Requests per second over 32 connections, as wrk counts them; every answer must be a 200."""

    def __init__(
        self, name: str, asked: str, port: int, path: str, key: str = "bench-key", *, strange: bool = False
    ) -> None:
        self.name = name
        self.asked = asked
        self.url = f"http://127.0.0.1:{port}{path}"
        self.key = key
        self.strange = strange
        self.rates: list[float] = []
        self.stolen = 0.0

    def check(self, expected: bytes) -> None:
        answer = httpx.post(self.url, content=CHAT, headers={"apikey": self.key, "Content-Type": "application/json"})
        if answer.status_code != 200 or expected not in answer.content:
            sys.exit(f"{self.name}: expected an answer with {expected!r}, got {answer.status_code} {answer.text}")

    def measure(self, folder: Path, seconds: int) -> None:
        script = folder / "wrk.lua"
        script.write_text(WRK_SCRIPT.format(key=self.key, body=CHAT) + (STRANGE if self.strange else ""))
        measured = undisturbed(lambda: self._rate(script, seconds))
        self.rates.append(measured.value)
        self.stolen = max(self.stolen, measured.stolen)

    def _rate(self, script: Path, seconds: int) -> float:
        command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), self.url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in output or "Socket errors" in output:
            sys.exit(f"{self.name}: answers were not all good:\n{output}")
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        assert found is not None, output
        return float(found[1])

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


def throughput(rig: Rig, repeats: int, seconds: int) -> list[Row]:
    """The yardstick is measured before and after each row: a machine's speed changes within seconds, and the ratio of a
    measurement is to the mean of its two neighbours."""
    yardstick = Throughput("nginx proxy_pass (the yardstick)", "", rig.yardstick, "/")
    proxy = rig.stack.proxy_port
    measured = [
        Throughput("uvloop and httptools bare, without a gateway", "", rig.bare, "/"),
        Throughput("plain proxying, no plugins", "0.6", proxy, "/plain"),
        Throughput("unary: key-auth + ai-prompt-decorator + ai-proxy-advanced", "0.35", proxy, "/unary"),
        Throughput("plain proxying, no two heads alike", "", proxy, "/plain", strange=True),
        Throughput("unary, no two heads alike", "", proxy, "/unary", strange=True),
        Throughput("the recipe's /chat: two routes, Datakit, both calls", "0.08", proxy, "/chat", "demo-consumer-key"),
    ]
    for each in (yardstick, *measured):
        each.check(b'"chat.completion"')
    ratios: dict[str, list[float]] = {each.name: [] for each in measured}
    yardstick.measure(rig.folder, seconds)
    for repeat in range(repeats):
        print(f"throughput: repeat {repeat + 1} of {repeats}", flush=True)
        for each in measured:
            each.measure(rig.folder, seconds)
            settled(rig.worker)
            yardstick.measure(rig.folder, seconds)
            ratios[each.name].append(each.rates[-1] / statistics.mean(yardstick.rates[-2:]))
    return [_row(yardstick, 1.0), *(_row(each, statistics.median(ratios[each.name])) for each in measured)]


def _row(each: Throughput, ratio: float) -> Row:
    asked = f"≥ {each.asked} × nginx" if each.asked else ""
    met = ratio >= float(each.asked) if each.asked else None
    return Row(each.name, f"{each.median:,.0f} requests/s", asked, met, each.rates, round(ratio, 3), each.stolen)
