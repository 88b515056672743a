"""The execution trace that a request may ask for, where the operator allows it: what ran, when, with which values."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

from data_plane.plugins.datakit.values import Value, dumps, kind_of, loads

HEADER = "X-DataKit-Debug-Trace"
_ON = frozenset({"true", "yes", "on", "1", "enabled"})
_MASK = "********"
_SECRET = re.compile(
    r"^key$|(^|[-_])(api[-_]?key|apikey|authorization|cookie|secret|password|token|credential\w*)([-_]|$)"
    r"|^x-consumer-|^x-credential-|access[-_]?key",
    re.IGNORECASE,
)
_LONGEST = 2_000

_STATUS = {
    "complete": "NODE_COMPLETE",
    "fail": "NODE_ERROR",
    "cancel": "NODE_CANCELED",
    "skip": "NODE_SKIPPED",
}


def wanted(header: str | None) -> bool:
    return header is not None and header.strip().lower() in _ON


class Trace:
    def __init__(self, nodes: list[tuple[str, str]]) -> None:
        """`nodes`: name and kind of each, in the order of the configuration."""
        self._kinds = dict(nodes)
        self._started_at = time.time()
        self._start = time.monotonic()
        self._events: list[dict[str, Any]] = []
        self._settled: dict[str, dict[str, Any]] = {}

    def event(self, name: str, action: str, value: Value | None = None, error: str | None = None) -> None:
        """`action`: run, dispatch, complete, fail, skip, cancel. Times are seconds since the start."""
        entry: dict[str, Any] = {"name": name, "type": self._kinds[name], "action": action, "at": self._now()}
        if value is not None:
            entry["value"] = {"type": kind_of(value), "value": mask(value.data)}
        if error is not None:
            entry["error"] = error
        self._events.append(entry)
        if action in _STATUS:
            self._settled[name] = {"status": _STATUS[action]} | ({"error": error} if error is not None else {})

    def body(self, status: str) -> bytes:
        """The trace as JSON. `status`: complete or fail."""
        nodes = [
            {"name": name, "type": kind, **self._settled.get(name, {"status": "NODE_CANCELED"})}
            for name, kind in self._kinds.items()
        ]
        document = {
            "started_at": self._started_at,
            "ended_at": time.time(),
            "duration": self._now(),
            "status": status,
            "nodes": nodes,
            "events": self._events,
        }
        return dumps(document).encode()

    def _now(self) -> float:
        return round(time.monotonic() - self._start, 6)


def mask(data: Any) -> Any:
    """A copy without the values of members whose names say that they are secret, and with long strings cut."""
    if isinstance(data, dict):
        return {
            name: _MASK if member is not None and _SECRET.search(name) else mask(member)
            for name, member in data.items()
        }
    if isinstance(data, list):
        return [mask(member) for member in data]
    if isinstance(data, bytes):
        return f"({len(data)} bytes)"
    return _mask_text(data) if isinstance(data, str) else data


def _mask_text(text: str) -> str:
    """A string may be JSON itself (a raw body), or a credential with its scheme before it."""
    if text[:1] in "{[":
        with contextlib.suppress(ValueError):  # it only looks like JSON
            text = dumps(mask(loads(text)))
    if re.match(r"(bearer|basic|key)\s+\S", text, re.IGNORECASE):
        return _MASK
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
