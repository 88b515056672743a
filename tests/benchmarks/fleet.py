"""Nodes for a control plane: a real one, or a crowd of simulated ones, each group with its own certificate."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.plane import Held
from tests.benchmarks.rig import LOAD_CORE, cpu_seconds, family, settled
from tests.control_plane.scripted_node import key_pair
from tests.end_to_end.stack import eventually

_PATIENCE_SECONDS = 120
_AGENT_WORKER_SPARE = 3


@contextlib.contextmanager
def crowd(held: Held, count: int) -> Iterator[int]:
    """Simulated nodes in one process (`nodes`), all running what the control plane holds. Gives its pid."""
    with _certificate(held) as (certificate, key):
        arguments = [held.plane.grpc_address, str(held.plane.ca), str(certificate), str(key), str(count)]
        child = subprocess.Popen(
            ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "tests.benchmarks.nodes", *arguments],
            env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                sys.exit(f"{count} simulated nodes did not connect")
            _all_run(held, count)
            yield child.pid
        finally:
            child.kill()
            child.wait()


@contextlib.contextmanager
def real_node(held: Held) -> Iterator[int]:
    """`python -m data_plane agent` with one worker, all quiet, running what the control plane holds. Gives its pid."""
    with _certificate(held) as (certificate, key):
        settings = {
            "TANDEM_STATE_DIR": str(certificate.parent / "node"),
            "TANDEM_CONTROL_PLANE": held.plane.grpc_address,
            "TANDEM_CERTIFICATE": str(certificate),
            "TANDEM_CERTIFICATE_KEY": str(key),
            "TANDEM_CONTROL_PLANE_CA": str(held.plane.ca),
            "TANDEM_PROXY_PORT": "0",
            "TANDEM_STATUS_PORT": "0",
        }
        with (certificate.parent / "log").open("ab") as log:
            child = subprocess.Popen(
                ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "data_plane", "agent"],
                env={**os.environ, **settings, "GRPC_VERBOSITY": "ERROR"},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            _all_run(held, 1)
            _is_steady(child.pid)
            yield child.pid
        finally:
            child.terminate()
            child.wait(30)


def _is_steady(agent: int) -> None:
    """Wait until a node's spare worker is loaded: it would take the core from those that are measured."""
    eventually("the spare worker starts", lambda: len(family(agent)) == _AGENT_WORKER_SPARE)
    settled(agent, lambda pid: sum(map(cpu_seconds, family(pid))))


@contextlib.contextmanager
def _certificate(held: Held) -> Iterator[tuple[Path, Path]]:
    """The files of a new key pair that the control plane knows."""
    pair = key_pair()
    held.pin(pair.cert)
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "node.crt", Path(folder) / "node.key"
        certificate.write_text(pair.cert)
        key.write_bytes(pair.key)
        yield certificate, key


def _all_run(held: Held, count: int) -> None:
    def receipts() -> bool:
        summary = held.receipts(held.version)["summary"]
        if summary["refused"]:
            sys.exit(f"a node refuses the benchmark's configuration: {held.receipts(held.version)['items'][0]}")
        return bool(summary["applied"] >= count)

    eventually(f"{count} nodes run the configuration", receipts, _PATIENCE_SECONDS)
