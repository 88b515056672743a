"""Waiting until a change is live: every worker of every connected node runs it, or we can say who does not and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.client import ControlPlane
from cli.errors import NotLive

FIRST_POLL, LONGEST_POLL = 0.02, 0.25
LONGEST_WAIT = 60.0
"""Seconds for which one request waits: proxies in between cut off those that take longer."""
REFUSAL_GRACE = 1.0
"""Seconds during which a refusal may still be about the configuration before ours."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the workers shall run. A later version counts as well: ours was overtaken, not lost."""

    version: int
    hash: str

    def runs_on(self, worker: Mapping[str, Any]) -> bool:
        return worker.get("hash") == self.hash or int(worker.get("version") or 0) > self.version


@dataclass(frozen=True, slots=True)
class Receipts:
    nodes: int
    workers: int

    def __str__(self) -> str:
        if not self.nodes:
            return "no data plane node is connected: nothing runs this configuration yet"
        return f"live on {_count(self.workers, 'worker')} of {_count(self.nodes, 'node')}"


def wait_for_receipts(plane: ControlPlane, control_plane_id: str, target: Target, timeout: float) -> Receipts:
    """Return when every worker of every connected node runs the target.

    Raises NotLive with each node that refused it, and why, and each that was silent for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        wait = min(max(deadline - time.monotonic(), 0.0), LONGEST_WAIT)
        answer = plane.receipts(control_plane_id, target.version, wait)
        if answer["complete"] or time.monotonic() >= deadline:
            break
    items = [item for item in answer["items"] if item["connected"]]
    late = [item for item in items if item["state"] != "applied"]
    if late:
        lines = [f"written as version {target.version}, but not live everywhere:"]
        lines += [f"  {_missing(item, timeout)}" for item in late]
        raise NotLive("\n".join([*lines, *_others(len(items) - len(late))]))
    return Receipts(len(items), sum(len(item["workers"]) for item in items))


def _missing(item: Mapping[str, Any], timeout: float) -> str:
    name = node_label({"hostname": item["hostname"], "id": item["node_id"]})
    if item["state"] == "refused":
        return f"node {name} refused it: {error_text(item['error'] or {})}"
    behind = [str(worker.get("index")) for worker in item["workers"] if worker["state"] != "applied"]
    return _silence(name, behind, timeout)


def wait_until_live(
    plane: ControlPlane, control_plane_id: str, target: Target | None, timeout: float, expected_nodes: int = 0
) -> Receipts:
    """Return when all connected nodes (at least `expected_nodes`) run the target, or, without one, what is current.

    Raises NotLive with each node that refused it, and why, and each that stayed silent for `timeout` seconds.
    """
    started = time.monotonic()
    pause = FIRST_POLL
    while True:
        nodes = [node for node in plane.nodes(control_plane_id) if node.get("sync_state") != "offline"]
        late = [node for node in nodes if not _is_live(node, target)]
        passed = time.monotonic() - started
        if not late and len(nodes) >= expected_nodes:
            return Receipts(len(nodes), sum(len(node["workers"]) for node in nodes))
        refused = [node for node in late if node.get("sync_state") == "rejected"]
        settled = bool(late) and len(refused) == len(late) and passed >= REFUSAL_GRACE
        if settled or passed >= timeout:
            raise NotLive(_report(nodes, late, target, timeout, expected_nodes))
        time.sleep(min(pause, max(timeout - passed, 0.001)))
        pause = min(pause * 1.5, LONGEST_POLL)


def _is_live(node: Mapping[str, Any], target: Target | None) -> bool:
    workers = node.get("workers") or []
    if target is None:
        return bool(workers) and node.get("sync_state") == "in_sync"
    return bool(workers) and all(target.runs_on(worker) for worker in workers)


def _report(
    nodes: list[dict[str, Any]], late: list[dict[str, Any]], target: Target | None, timeout: float, expected: int
) -> str:
    written = f"written as version {target.version}, but" if target else "the current version is"
    lines = [f"{written} not live everywhere:"]
    if len(nodes) < expected:
        lines.append(f"  {len(nodes)} of {expected} expected data plane nodes connected within {timeout:g} s")
    lines += [f"  {_complaint(node, target, timeout)}" for node in late]
    return "\n".join([*lines, *_others(len(nodes) - len(late))])


def _others(live: int) -> list[str]:
    return [f"  {_count(live, 'other node')} run{'s' if live == 1 else ''} it"] if live else []


def _complaint(node: Mapping[str, Any], target: Target | None, timeout: float) -> str:
    name = node_label(node)
    error = node.get("last_error")
    if node.get("sync_state") == "rejected" and isinstance(error, dict):
        return f"node {name} refused it: {error_text(error)}"
    workers = node.get("workers") or []
    behind = [str(w.get("index")) for w in workers if target is None or not target.runs_on(w)]
    return _silence(name, behind, timeout)


def _silence(name: str, behind: Sequence[str], timeout: float) -> str:
    if not behind:
        return f"node {name} reported no worker within {timeout:g} s"
    return f"node {name} was silent for {timeout:g} s: worker {', '.join(behind)} runs another version"


def error_text(error: Mapping[str, Any]) -> str:
    """A node's last error: the entity, the field, what is wrong with it."""
    entity = " ".join(str(error[key]) for key in ("entity_type", "entity_name") if error.get(key))
    parts = [
        entity or str(error.get("entity_id") or ""),
        str(error.get("field") or ""),
        str(error.get("message") or ""),
    ]
    return ": ".join(part for part in parts if part)


def node_label(node: Mapping[str, Any]) -> str:
    return f"{node.get('hostname') or 'unnamed'} ({str(node.get('id'))[:8]})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
