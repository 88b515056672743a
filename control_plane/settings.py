"""The control plane's settings: one process's environment, read once at its start.

Every setting is an environment variable; `python -m control_plane` has a flag for the most common ones, and the flag
wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from control_plane.errors import StartError

VERSION = "3.15.0"
"""The Kong Gateway version whose API this control plane speaks."""

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Bytes of request body that are read; a larger one is answered 413."""


@dataclass(frozen=True, slots=True)
class Settings:
    state_dir: Path
    """Holds the SQLite database, the encryption key and the TLS identity (`ca.pem`, `server.pem`); mode 0700."""
    database_url: str
    """`sqlite:///…`, `postgresql://…` or `postgres://…`; the asynchronous driver is chosen by `Database`."""
    http_host: str = "127.0.0.1"
    http_port: int = 8001
    grpc_host: str = "127.0.0.1"
    grpc_port: int = 8005
    admin_token: str = field(default="", repr=False)
    """When given, a token with this value and every scope exists after the start, and what it was before is none."""
    encryption_key: str = field(default="", repr=False)
    """Fernet keys, separated by commas; the first encrypts, all decrypt. Empty: a file in the state directory.
    Replicas on one database need the same."""
    analytics_retention_days: int = 7
    """How long single requests are kept; sums per minute stay."""
    history_snapshots: int = 100
    """How many snapshots of each control plane are kept to look at and to go back to."""
    history_days: int = 30
    """How long they are kept; the newest always is."""
    audit_retention_days: int = 365
    """How long the audit log keeps a line."""

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from the environment. Raises ValueError that names the variable."""
        env = os.environ if environment is None else environment
        state_dir = Path(env.get("TANDEM_STATE_DIR") or state_home(env) / "control-plane").absolute()
        return cls(
            state_dir=state_dir,
            database_url=env.get("DATABASE_URL") or f"sqlite:///{state_dir / 'control-plane.db'}",
            http_host=env.get("TANDEM_HTTP_HOST") or "127.0.0.1",
            http_port=_number(env, "TANDEM_HTTP_PORT", 8001, 0, 65_535),
            grpc_host=env.get("TANDEM_GRPC_HOST") or "127.0.0.1",
            grpc_port=_number(env, "TANDEM_GRPC_PORT", 8005, 0, 65_535),
            admin_token=_token(env, "TANDEM_ADMIN_TOKEN"),
            encryption_key=env.get("TANDEM_ENCRYPTION_KEY", ""),
            analytics_retention_days=_number(env, "TANDEM_ANALYTICS_RETENTION_DAYS", 7, 1, 3650),
            history_snapshots=_number(env, "TANDEM_HISTORY_SNAPSHOTS", 100, 1, 10_000),
            history_days=_number(env, "TANDEM_HISTORY_DAYS", 30, 1, 3650),
            audit_retention_days=_number(env, "TANDEM_AUDIT_RETENTION_DAYS", 365, 1, 36_500),
        )


def state_home(env: Mapping[str, str]) -> Path:
    """Where a stack keeps its state: RECIPE_HOME, else the XDG state directory."""
    if home := env.get("RECIPE_HOME"):
        return Path(home)
    base = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tandem"


def make_state_dir(settings: Settings) -> None:
    """Raises StartError."""
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        text = f"the state directory {settings.state_dir} (--state-dir, TANDEM_STATE_DIR) cannot be used"
        raise StartError(f"{text}: {error.strerror}") from error


def _token(env: Mapping[str, str], name: str) -> str:
    """Without the line's end of the file that it was read from: no header could carry that."""
    text = env.get(name, "").strip()
    if not all("!" <= character <= "~" for character in text):
        raise ValueError(f"{name} must consist of printable ASCII characters without spaces: a header carries it")
    return text


def _number(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ValueError(f"{name} must be a number between {low} and {high}, not '{text}'")
    return int(text)
