"""A control plane as a process of its own, on SQLite or PostgreSQL, and the API as its clients use it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests import postgresql
from tests.benchmarks.rig import PROXY_CORE, cpu_seconds

TOKEN = "kpat_of-the-benchmark-alone"
_PATIENCE_SECONDS = 300


class Plane:
    """`python -m control_plane` on a core of its own."""

    def __init__(self, database: str, url: str, folder: Path) -> None:
        """`database`: what people call it."""
        self.database = database
        self.folder = folder
        self._url = url

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        environment = {
            **kept,
            "TANDEM_STATE_DIR": str(self.folder),
            "TANDEM_ADMIN_TOKEN": TOKEN,
            "DATABASE_URL": self._url,
            "GRPC_VERBOSITY": "ERROR",
        }
        flags = ("--http-port", "0", "--grpc-port", "0", "--log-level", "warning")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", PROXY_CORE, sys.executable, "-m", "control_plane", *flags],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+), data planes at (\S+)", self._process.stdout.readline())
        if found is None:
            sys.exit(f"the control plane did not start:\n{(self.folder / 'log').read_text()}")
        self.port, self.grpc_address = int(found[1]), found[2]
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
            timeout=_PATIENCE_SECONDS,
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        return cpu_seconds(self.pid)

    @property
    def ca(self) -> Path:
        """What nodes check its certificate against."""
        return self.folder / "ca.pem"

    def call(self, method: str, path: str, body: Any = None, expect: int = 200) -> Any:
        """The decoded answer. Ends the benchmark when it has another status."""
        content = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        answer = self.http.request(method, path, content=content)
        if answer.status_code != expect:
            sys.exit(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return orjson.loads(answer.content) if answer.content else None

    def create(self, name: str) -> Held:
        return Held(self, name, self.call("POST", "/v2/control-planes", {"name": name}, 201)["id"])


class Held:
    """One control plane resource of a running control plane."""

    def __init__(self, plane: Plane, name: str, id: str) -> None:
        self.plane = plane
        self.name = name
        self.path = f"/v2/control-planes/{id}"

    def call(self, method: str, path: str, body: Any = None, expect: int = 200) -> Any:
        return self.plane.call(method, self.path + path, body, expect)

    def apply(self, request: bytes) -> Any:
        return self.call("POST", "/apply", request)

    def settled(self) -> None:
        """Wait until nothing is left to do for what was written: the history is."""
        self.call("GET", "/snapshots?size=1")

    @property
    def version(self) -> int:
        return int(self.call("GET", "/expected-config-version")["expected_config_version"])

    def receipts(self, version: int, wait: float = 0) -> Any:
        """Who runs a version, once every connected node does or `wait` seconds are over."""
        return self.call("GET", f"/snapshots/{version}/receipts?wait={wait:g}")

    def pin(self, certificate: str) -> None:
        """Nodes with this certificate are this control plane's."""
        self.call("POST", "/dp-client-certificates", {"cert": certificate}, 201)

    def delete(self) -> None:
        self.call("DELETE", "", expect=204)


def request_of(document: dict[str, Any]) -> bytes:
    """The body of an apply that writes."""
    return orjson.dumps({"document": document, "commit": True})


@contextlib.contextmanager
def planes(folder: Path) -> Iterator[list[Plane]]:
    """A running control plane on each database. Ends the benchmark when the machine has no PostgreSQL."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgresql.running(durable=True))
        except postgresql.Missing as missing:
            sys.exit(f"make bench needs {missing}, which this machine lacks")
        asyncio.run(postgresql.execute(f"{server}/postgres", "CREATE DATABASE bench"))
        found = [
            Plane("SQLite", f"sqlite:///{folder / 'bench.db'}", folder / "sqlite"),
            Plane("PostgreSQL", f"{server}/bench", folder / "postgresql"),
        ]
        for plane in found:
            plane.start()
            stack.callback(plane.stop)
        yield found
