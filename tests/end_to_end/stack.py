"""A whole stack as a user has it: `recipe up` in a home of its own, on ports that are free."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_ports

RECIPE = Path(sys.executable).parent / "recipe"
RECIPES = Path(__file__).parents[2] / "cli" / "recipes" / "model-based-routing"
SMART_MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
FAST_MODEL = "gpt-4o-mini"
SELECTOR_MODEL = "o3-mini"
CLIENT_KEY = "demo-consumer-key"
ROUTER_KEY = "internal-router-key"
PATIENCE = 30.0
"""Seconds after which something that was waited for counts as not coming."""


def eventually(what: str, check: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first truthy answer of `check`; asks again until it comes or patience ends."""
    deadline = time.monotonic() + patience
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {patience} s"
        time.sleep(0.05)


def prompt(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RECIPES / f"{name}_prompt.json").read_text())
    return data


@dataclass
class Stack:
    home: Path
    database_url: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    workers: int = 1

    def __post_init__(self) -> None:
        self.proxy_port, self.control_port, self.grpc_port, self.status_port, self.simulator_port = free_ports(5)
        self.proxy = f"http://127.0.0.1:{self.proxy_port}"
        self.control = f"http://127.0.0.1:{self.control_port}"
        self.simulator = f"http://127.0.0.1:{self.simulator_port}"
        self.exports: dict[str, str] = {}

    @property
    def env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DECK_", "KONNECT_"))}
        database = {"DATABASE_URL": self.database_url} if self.database_url else {}
        return {**inherited, **database, "RECIPE_HOME": str(self.home), "COLUMNS": "200", **self.environment}

    def recipe(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(RECIPE), *arguments],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def up(self, *extra: str) -> subprocess.CompletedProcess[str]:
        ports = {
            "--proxy-port": self.proxy_port,
            "--control-plane-port": self.control_port,
            "--grpc-port": self.grpc_port,
            "--status-port": self.status_port,
            "--simulator-port": self.simulator_port,
            "--workers": self.workers,
        }
        flags = [text for name, value in ports.items() for text in (name, str(value))]
        result = self.recipe("up", "model-based-routing", *flags, *extra)
        self.exports.update(re.findall(r"export (\w+)='?([^'\n]*)'?", result.stdout))
        return result

    def down(self, *extra: str) -> subprocess.CompletedProcess[str]:
        return self.recipe("down", "model-based-routing", *extra)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.recipe("status", "--json-output").stdout))

    @property
    def token(self) -> str:
        return self.exports["DECK_KONNECT_TOKEN"]

    def control_client(self) -> httpx.Client:
        return httpx.Client(base_url=self.control, headers={"Authorization": f"Bearer {self.token}"}, timeout=30)

    def control_plane_id(self) -> str:
        with self.control_client() as client:
            name = self.exports["DECK_KONNECT_CONTROL_PLANE_NAME"]
            found = client.get("/v2/control-planes", params={"filter[name][eq]": name}).json()["data"]
            return str(found[0]["id"])

    def nodes(self) -> list[dict[str, Any]]:
        with self.control_client() as client:
            answer = client.get(f"/v2/control-planes/{self.control_plane_id()}/nodes")
            return list(answer.json()["items"])

    def ask(self, body: Mapping[str, Any], key: str | None = CLIENT_KEY, path: str = "/chat") -> httpx.Response:
        headers = {} if key is None else {"apikey": key}
        return httpx.post(f"{self.proxy}{path}", json=body, headers=headers, timeout=30)

    def ledger(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.simulator}/ledger", params={"details": "1"}).json())

    def forget_ledger(self) -> None:
        httpx.delete(f"{self.simulator}/ledger").raise_for_status()

    def usage(self, start: str, metrics: list[str], dimensions: list[str], source: str = "llm_usage") -> Any:
        body = {
            "datasource": source,
            "metrics": metrics,
            "dimensions": dimensions,
            "time_range": {"type": "absolute", "start": start, "end": "2100-01-01T00:00:00Z"},
            "limit": 1000,
        }
        with self.control_client() as client:
            answer = client.post("/v2/metrics", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def in_sync(stack: Stack) -> None:
    """Wait until every node runs the configuration that the control plane now has."""
    with stack.control_client() as client:
        address = f"/v2/control-planes/{stack.control_plane_id()}/expected-config-hash"

        def all_same() -> bool:
            expected = client.get(address).json()["expected_hash"]
            nodes = stack.nodes()
            return bool(nodes) and all(node["config_hash"] == expected for node in nodes)

        eventually("every node is in sync", all_same)


def processes(marker: str) -> list[int]:
    """Processes whose command line or environment names `marker`: what a stack's home started."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text:
            found.append(int(entry.name))
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def pids_of(home: Path, command: str) -> list[int]:
    """Pids of the stack's processes whose command line contains `command`, such as `-m control_plane`."""
    return [pid for pid in processes(str(home)) if command in command_line(pid)]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
