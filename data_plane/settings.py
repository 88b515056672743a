"""A node's settings: one process tree's environment, read once at its start.

Every setting is a command-line flag of `python -m data_plane` (`--proxy-port`) and an environment variable
(`TANDEM_PROXY_PORT`); the flag wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

VERSION = "3.15.0"
"""The Kong Gateway version whose behaviour this data plane follows; what nodes report as theirs."""


class SettingsError(Exception):
    """A setting that cannot be used; the message names its flag and its variable."""


def state_home() -> Path:
    """Where a stack keeps its state: RECIPE_HOME, else the XDG state directory."""
    if home := os.environ.get("RECIPE_HOME"):
        return Path(home)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tandem"


def _about(text: str) -> dict[str, str]:
    return {"about": text}


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field's sentence is its help text on the command line."""

    state_dir: Path = field(metadata=_about("holds the node's id, its last good configuration and its spool"))
    control_plane: str = field(
        default="127.0.0.1:8005",
        metadata=_about("host:port of the control plane's gRPC listener; empty: serve what is on disk, alone"),
    )
    certificate: Path | None = field(
        default=None, metadata=_about("the node's client certificate (PEM), pinned at the control plane")
    )
    certificate_key: Path | None = field(default=None, metadata=_about("the private key of the certificate (PEM)"))
    control_plane_ca: Path | None = field(
        default=None, metadata=_about("what the control plane's certificate is checked against (PEM)")
    )
    control_plane_server_name: str = field(
        default="control-plane", metadata=_about("the name in the control plane's certificate")
    )
    proxy_host: str = field(default="127.0.0.1", metadata=_about("address that the proxy listens on"))
    proxy_port: int = field(default=8000, metadata=_about("port that the proxy listens on; 0: any free one"))
    status_host: str = field(default="127.0.0.1", metadata=_about("address of the status API"))
    status_port: int = field(default=8100, metadata=_about("port of the status API; 0: any free one"))
    workers: int = field(default=1, metadata=_about("worker processes"))
    loopback_ports: frozenset[int] = field(
        default=frozenset({8000}),
        metadata=_about(
            "declared ports, comma-separated: a loopback URL with one of these, or the proxy port, means this node"
        ),
    )
    max_body_size: int = field(default=0, metadata=_about("bytes of request body that are accepted; 0: no limit"))
    max_head_size: int = field(default=32 * 1024, metadata=_about("bytes of request head that are accepted"))
    head_timeout: float = field(default=60.0, metadata=_about("seconds within which a request's head must arrive"))
    keepalive_timeout: float = field(default=65.0, metadata=_about("seconds that an idle client connection stays open"))
    drain_timeout: float = field(
        default=10.0, metadata=_about("seconds that requests in flight may take when the node or a worker stops")
    )
    spool_bytes: int = field(
        default=256 * 1024 * 1024, metadata=_about("bytes of analytics kept on disk while the control plane is away")
    )
    debug_trace: bool = field(
        default=False,
        metadata=_about("honour Datakit's X-DataKit-Debug-Trace: anyone who can send a header would see internals"),
    )
    allow_debug_header: bool = field(default=False, metadata=_about("honour debug headers of requests"))
    trusted_ips: tuple[str, ...] = field(
        default=(), metadata=_about("addresses whose X-Forwarded-* headers are believed, comma-separated")
    )
    tls_ca_bundle: str = field(
        default="",
        metadata=_about(
            "PEM file that upstream certificates are checked against; empty: the system's store (or SSL_CERT_FILE)"
        ),
    )

    @property
    def own_ports(self) -> frozenset[int]:
        return self.loopback_ports | {self.proxy_port}

    @classmethod
    def read(cls, flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
        """Settings from flags (by field name, None when not given) and TANDEM_* variables. Raises SettingsError."""
        values: dict[str, Any] = {"state_dir": state_home() / "data-plane"}
        for name, parse in PARSERS.items():
            text = flags.get(name)
            if text is None:
                text = environment.get(variable(name))
            if text is not None:
                try:
                    values[name] = parse(text)
                except ValueError as error:
                    raise SettingsError(f"{where(name)}: {error}") from None
        return _checked(cls(**values))

    def environment(self) -> dict[str, str]:
        """These settings as variables, for a child process."""
        return {variable(entry.name): _written(getattr(self, entry.name)) for entry in fields(self)}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return "TANDEM_" + name.upper()


def where(name: str) -> str:
    """How a message names a setting."""
    return f"{flag(name)} ({variable(name)})"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a whole number, not {text!r}") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number of seconds, not {text!r}") from None


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "on", "yes"):
        return True
    if text.lower() in ("", "0", "false", "off", "no"):
        return False
    raise ValueError(f"expected on or off, not {text!r}")


def _optional_path(text: str) -> Path | None:
    return Path(text) if text else None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> frozenset[int]:
    return frozenset(_whole(word) for word in _words(text))


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, frozenset | tuple):
        return ",".join(str(part) for part in sorted(value))
    return str(value)


_BY_ANNOTATION: dict[str, Callable[[str], Any]] = {
    "Path": Path,
    "Path | None": _optional_path,
    "str": str,
    "int": _whole,
    "float": _seconds,
    "bool": _switch,
    "frozenset[int]": _numbers,
    "tuple[str, ...]": _words,
}
PARSERS: dict[str, Callable[[str], Any]] = {entry.name: _BY_ANNOTATION[str(entry.type)] for entry in fields(Settings)}
"""Field name → what reads its text."""

_RANGES: dict[str, tuple[float, float]] = {
    "proxy_port": (0, 65535),
    "status_port": (0, 65535),
    "workers": (1, 256),
    "max_body_size": (0, float("inf")),
    "max_head_size": (1024, 16 * 1024 * 1024),
    "head_timeout": (0.001, 86400),
    "keepalive_timeout": (0, 86400),
    "drain_timeout": (0, 86400),
    "spool_bytes": (4 * 1024 * 1024, float("inf")),
}


def _checked(settings: Settings) -> Settings:
    for name, (lowest, highest) in _RANGES.items():
        value = getattr(settings, name)
        if not lowest <= value <= highest:
            raise SettingsError(f"{where(name)}: expected {_span(lowest, highest)}, not {value}")
    if settings.control_plane:
        host, colon, port = settings.control_plane.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise SettingsError(f"{where('control_plane')}: expected host:port, not {settings.control_plane!r}")
    return settings


def _span(lowest: float, highest: float) -> str:
    return f"at least {lowest:g}" if highest == float("inf") else f"{lowest:g} to {highest:g}"
