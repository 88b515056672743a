"""What a local stack is doing right now: its processes, and its nodes as the control plane sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cli import layout
from cli.client import ControlPlane
from cli.errors import CliError
from cli.processes import is_running
from cli.stack import connection_to
from cli.state import StackFolder, StackState
from cli.waiting import error_text, node_label

_PORTS_OF = {
    layout.CONTROL_PLANE: ("control-plane", "grpc"),
    layout.SIMULATOR: ("simulator",),
    layout.NODE: ("proxy", "status"),
}


@dataclass(frozen=True, slots=True)
class ProcessView:
    name: str
    pid: int
    running: bool
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeView:
    label: str
    id: str
    sync_state: str
    version: int
    workers: tuple[dict[str, Any], ...]
    error: str = ""

    def rows(self) -> list[tuple[str, ...]]:
        """One row per worker; one for the node where it has none."""
        if not self.workers:
            return [(self.label, self.sync_state, "-", "-", str(self.version), "-")]
        return [
            (
                self.label,
                self.sync_state,
                str(worker.get("index")),
                str(worker.get("pid")),
                str(worker.get("version")),
                str(worker.get("hash"))[:8],
            )
            for worker in self.workers
        ]


@dataclass(slots=True)
class StackView:
    name: str
    mode: str
    control_plane_name: str
    control_plane_url: str
    proxy_url: str
    processes: list[ProcessView]
    nodes: list[NodeView] = field(default_factory=list)
    problem: str = ""

    @property
    def is_up(self) -> bool:
        return not self.problem and all(process.running for process in self.processes)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_up": self.is_up}


def view(folder: StackFolder, state: StackState) -> StackView:
    """Look at the processes and ask the control plane for its nodes."""
    stack = StackView(
        name=state.name,
        mode="simulated providers" if state.simulated else "real providers",
        control_plane_name=state.control_plane_name,
        control_plane_url=state.address,
        proxy_url=state.proxy_url,
        processes=[_process(name, state) for name in layout.START_ORDER if name in state.processes],
    )
    try:
        with ControlPlane(connection_to(state)) as plane:
            row = plane.require(state.control_plane_name)
            stack.nodes = [_node(node) for node in plane.nodes(row["id"])]
    except CliError as error:
        stack.problem = error.message
    return stack


def _process(name: str, state: StackState) -> ProcessView:
    record = state.processes[name]
    ports = tuple(state.ports[port] for port in _PORTS_OF[name] if port in state.ports)
    return ProcessView(name, record.pid, is_running(record), ports)


def _node(node: dict[str, Any]) -> NodeView:
    error = node.get("last_error")
    return NodeView(
        label=node_label(node),
        id=str(node.get("id")),
        sync_state=str(node.get("sync_state")),
        version=int(node.get("config_version") or 0),
        workers=tuple(dict(worker) for worker in node.get("workers") or []),
        error=error_text(error) if isinstance(error, dict) else "",
    )
