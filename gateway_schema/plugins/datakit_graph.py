"""Datakit's node list, compiled: names and labels resolved, connections typed, phases assigned; or every fault found.

The list is a graph. `input`/`inputs` (at the target) and `output`/`outputs` (at the source) are two spellings of one
edge, a label is `NODE` or `NODE.FIELD`. Compiling is pure and used twice: the control plane refuses what has faults,
the data plane runs the plan.

Beyond Kong's grammar two things are accepted, because a recipe's page explains them: `output: label` on a jq node,
where `label` names no node, gives the node's result that name (`NODE.label` reads it); and an entry named
`service_request` without a type declares connections to the outgoing request.

Two plans come of one graph. A node belongs to the response plan when it depends on `service_response`; the service is
called between the plans, so `service_response` in its turn depends on whatever feeds `service_request`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway_schema.plugins import datakit_properties as properties
from gateway_schema.plugins.datakit_connections import Connections, Node, unknown_node
from gateway_schema.plugins.datakit_jq import Program, compile_program
from gateway_schema.plugins.datakit_ports import PROXY_INPUTS, RESERVED, SINKS, SOURCES, Type
from gateway_schema.violations import Path, Violation


@dataclass(frozen=True, slots=True)
class Feed:
    """One connection as its target sees it. `field` None: the node as a whole; `source_field` likewise."""

    field: str | None
    source: str
    source_field: str | None
    type: Type
    """What the target takes."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One declared node. `index` is its position in the configuration, counted from 1, as errors name it."""

    index: int
    name: str
    kind: str
    feeds: tuple[Feed, ...]
    waits_for: tuple[str, ...]
    """Declared nodes that must be settled first: its sources and the branches that list it."""
    branches: tuple[str, ...]
    """Branches that list it: it runs when one of them chose it, and is skipped when none did."""
    in_response: bool
    program: Program | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    nodes: tuple[NodePlan, ...]
    sinks: Mapping[str, tuple[Feed, ...]]
    """`service_request` and `response`: what is written to them."""
    reads_request_body: bool
    reads_response_body: bool
    has_response_phase: bool
    """Whether any node waits for the service's response."""


def compile_nodes(entries: Sequence[Any]) -> tuple[Plan | None, list[Violation]]:
    """The plan of a node list, or None and all its faults (paths from the plugin's `config`).

    What is wrong with an entry's own shape (unknown fields, wrong types, missing ones) is left to the configuration
    classes; here a malformed entry is passed over as far as it is malformed.
    """
    return _Compiler(entries).compile()


class _Compiler:
    def __init__(self, entries: Sequence[Any]) -> None:
        self._connections = Connections(entries)
        self._nodes = self._connections.nodes
        self._edges = self._connections.edges
        self._programs: dict[str, Program] = {}

    def compile(self) -> tuple[Plan | None, list[Violation]]:
        for node in self._nodes.values():
            self._check(node)
        order = self._dependencies()
        self._find_cycles(order)
        faults = self._connections.faults
        return (None, faults) if faults else (self._plan(order), [])

    def _fault(self, path: Path, message: str) -> None:
        self._connections.fault(path, message)

    # Kinds

    def _check(self, node: Node) -> None:
        if node.kind == "jq":
            self._check_program(node)
        elif node.kind == "property":
            self._check_property(node)
        elif node.kind == "call":
            self._check_call(node)
        elif node.kind == "branch":
            self._check_branch(node)

    def _check_program(self, node: Node) -> None:
        source = node.entry.get("jq")
        if not isinstance(source, str) or not source:
            return
        try:
            self._programs[node.name] = compile_program(source)
        except ValueError as error:
            self._fault(("nodes", node.position, "jq"), f'node "{node.name}": the jq program does not compile: {error}')

    def _check_property(self, node: Node) -> None:
        name = node.entry.get("property")
        if isinstance(name, str) and name:
            message = properties.fault_of(name, setting=bool(self._connections.into(node.name)))
            if message is not None:
                self._fault(("nodes", node.position, "property"), message)

    def _check_call(self, node: Node) -> None:
        fed = {edge.target_field: edge for edge in self._connections.into(node.name)}
        for field in PROXY_INPUTS:
            if field in fed:
                self._fault(fed[field].path, f'node "{node.name}": calls through a proxy are not available yet')
        if node.entry.get("url") is None and "url" not in fed and None not in fed:
            self._fault(("nodes", node.position, "url"), "required field missing: give a url or connect inputs.url")

    def _check_branch(self, node: Node) -> None:
        for side in ("then", "else"):
            for position, name in enumerate(_names(node.entry.get(side))):
                path: Path = ("nodes", node.position, side, position)
                if name in RESERVED:
                    self._fault(path, f'"{name}" is an implicit node: only declared nodes can stand in a branch')
                elif name not in self._nodes:
                    self._fault(path, unknown_node(name, list(self._nodes)))

    # Order

    def _dependencies(self) -> dict[str, list[tuple[str, Path]]]:
        """Everything that each node, implicit ones included, waits for, with the path of what says so."""
        waits: dict[str, list[tuple[str, Path]]] = {name: [] for name in [*SOURCES, *SINKS, *self._nodes]}
        for edge in self._edges:
            waits[edge.target].append((edge.source, edge.path))
        for node in self._nodes.values():
            own: Path = ("nodes", node.position)
            if node.kind == "branch":
                for side in ("then", "else"):
                    for name in _names(node.entry.get(side)):
                        if name in self._nodes:
                            waits[name].append((node.name, (*own, side)))
            elif node.kind == "property":
                found = properties.find(str(node.entry.get("property")))
                if found is not None and found.response_only and not (self._connections.into(node.name)):
                    waits[node.name].append(("service_response", (*own, "property")))
                if found is not None and found.request_only:
                    waits["service_request"].append((node.name, (*own, "property")))
        waits["service_response"].append(("service_request", ()))
        return waits

    def _find_cycles(self, waits: Mapping[str, Sequence[tuple[str, Path]]]) -> None:
        """Report each dependency that closes a circle, with the whole circle. Depth first, without recursion."""
        finished: set[str] = set()
        for start in waits:
            if start in finished:
                continue
            trail = [start]
            steps = [iter(waits[start])]
            while trail:
                step = next(steps[-1], None)
                if step is None:
                    steps.pop()
                    finished.add(trail.pop())
                elif step[0] in trail:
                    self._report_cycle([*trail[trail.index(step[0]) :], step[0]], waits)
                elif step[0] not in finished:
                    trail.append(step[0])
                    steps.append(iter(waits[step[0]]))

    def _report_cycle(self, circle: Sequence[str], waits: Mapping[str, Sequence[tuple[str, Path]]]) -> None:
        """`circle`: each waits for the next, the last is the first again. Named at its first declared node's entry."""
        links = [
            (waiting, awaited, path)
            for waiting, awaited in itertools.pairwise(circle)
            for name, path in waits[waiting]
            if name == awaited and path  # only the one between the two plans has none
        ]
        waiting, awaited, path = next((link for link in links if link[0] in self._nodes), links[0])
        whole = " -> ".join(circle)
        self._fault(
            path,
            f"invalid dependency ({self._title(waiting)} -> {self._title(awaited)}): circular dependency ({whole})",
        )

    def _title(self, name: str) -> str:
        node = self._nodes.get(name)
        return f"node {name}" if node is None else f"node #{node.position + 1} ({name})"

    # The plan

    def _plan(self, waits: Mapping[str, Sequence[tuple[str, Path]]]) -> Plan:
        late = _dependents_of("service_response", waits)
        nodes = tuple(self._node_plan(node, waits, node.name in late) for node in self._nodes.values())
        return Plan(
            nodes=nodes,
            sinks={name: self._feeds(name) for name in SINKS},
            reads_request_body=self._reads("request", {"body"}),
            reads_response_body=self._reads("service_response", {"body", "raw_body"}),
            has_response_phase=bool(late & self._nodes.keys()) or self._reads("service_response", None),
        )

    def _node_plan(self, node: Node, waits: Mapping[str, Sequence[tuple[str, Path]]], in_response: bool) -> NodePlan:
        branches = [n.name for n in self._nodes.values() if n.kind == "branch" and node.name in _listed(n.entry)]
        return NodePlan(
            index=node.position + 1,
            name=node.name,
            kind=node.kind,
            feeds=self._feeds(node.name),
            waits_for=tuple(dict.fromkeys(name for name, _ in waits[node.name] if name in self._nodes)),
            branches=tuple(branches),
            in_response=in_response,
            program=self._programs.get(node.name),
        )

    def _feeds(self, name: str) -> tuple[Feed, ...]:
        return tuple(
            Feed(edge.target_field, edge.source, edge.source_field, self._connections.type_at_target(edge))
            for edge in self._connections.into(name)
        )

    def _reads(self, source: str, fields: set[str] | None) -> bool:
        """Whether anything reads these fields of an implicit node (None: any), alone or with all the others."""
        return any(
            edge.source == source and (fields is None or edge.source_field is None or edge.source_field in fields)
            for edge in self._edges
        )


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _listed(entry: Mapping[str, Any]) -> list[str]:
    return [*_names(entry.get("then")), *_names(entry.get("else"))]


def _dependents_of(name: str, waits: Mapping[str, Sequence[tuple[str, Path]]]) -> set[str]:
    """Everything that waits for a node, directly or not."""
    found: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        for waiting, awaited in waits.items():
            if waiting not in found and any(source == current for source, _ in awaited):
                found.add(waiting)
                pending.append(waiting)
    return found
