"""A node's settings: one process tree's environment, read once at its start.

Every setting is a command-line flag of `python -m data_plane` (`--proxy-port`) and an environment variable
(`TANDEM_PROXY_PORT`); the flag wins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

VERSION = "3.15.0"
"""The Kong Gateway version whose behaviour this data plane follows; what nodes report as theirs."""


@dataclass(frozen=True, slots=True)
class Settings:
    state_dir: Path
    """Holds `node.json` (id), `snapshot` (last good document), `spool/` and `channel.sock`."""
    control_plane: str = "127.0.0.1:8005"
    """host:port of the control plane's gRPC listener."""
    certificate: Path | None = None
    """The node's client certificate (PEM), pinned at the control plane."""
    certificate_key: Path | None = None
    control_plane_ca: Path | None = None
    """What the control plane's certificate is checked against."""
    control_plane_server_name: str = "control-plane"
    proxy_host: str = "127.0.0.1"
    proxy_port: int = 8000
    status_host: str = "127.0.0.1"
    status_port: int = 8100
    workers: int = 1
    loopback_ports: frozenset[int] = frozenset({8000})
    """Declared ports: a loopback URL that names one of these, or the proxy port, means this node itself."""
    max_body_size: int = 0
    """Bytes of request body that are accepted; 0 means no limit."""
    max_head_size: int = 32 * 1024
    head_timeout: float = 60.0
    keepalive_timeout: float = 65.0
    spool_bytes: int = 256 * 1024 * 1024
    debug_trace: bool = False
    """Whether Datakit's `X-DataKit-Debug-Trace` is honoured: anyone who can send a header would see internals."""
    allow_debug_header: bool = False
    trusted_ips: tuple[str, ...] = ()
    tls_ca_bundle: str = ""
    """PEM file that upstream certificates are checked against; empty: the system's store (or SSL_CERT_FILE)."""

    @property
    def own_ports(self) -> frozenset[int]:
        return self.loopback_ports | {self.proxy_port}


def state_home() -> Path:
    """Where a stack keeps its state: RECIPE_HOME, else the XDG state directory."""
    if home := os.environ.get("RECIPE_HOME"):
        return Path(home)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tandem"
