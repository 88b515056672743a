"""Datakit's connections: names entered, labels resolved to nodes and ports, edges typed and checked for conflicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway_schema.plugins.datakit_ports import INPUTS, NONE, RESERVED, SINKS, SOURCES, Ports, Type, fits, outputs_of
from gateway_schema.violations import Path, Violation, nearest


@dataclass(frozen=True, slots=True)
class Node:
    position: int
    name: str
    kind: str
    """Empty for a node whose kind is unknown: its name may be referred to, nothing else is checked."""
    entry: Mapping[str, Any]
    inputs: Ports
    outputs: Ports


@dataclass(frozen=True, slots=True)
class Edge:
    source: str
    source_field: str | None
    target: str
    target_field: str | None
    path: Path

    def __str__(self) -> str:
        return f'("{label_of(self.source, self.source_field)}" -> "{label_of(self.target, self.target_field)}")'

    def is_same(self, other: Edge) -> bool:
        return (self.source, self.source_field, self.target, self.target_field) == (
            other.source,
            other.source_field,
            other.target,
            other.target_field,
        )


def label_of(node: str, field: str | None) -> str:
    return node if field is None else f"{node}.{field}"


class Connections:
    """The nodes and edges of a list of entries, and what is wrong with them.

    Entries are taken as they were written; a malformed one is passed over as far as it is malformed.
    """

    def __init__(self, entries: Sequence[Any]) -> None:
        self.nodes: dict[str, Node] = {}
        self.edges: list[Edge] = []
        self.faults: list[Violation] = []
        self._entries = entries
        self._declared_sinks: dict[int, str] = {}
        self._aliases: dict[str, str] = {}
        """jq node → the name that its `output` gives its result."""
        self._enter_names()
        self._name_outputs()
        for edge in self._declared_edges():
            self._connect(edge)

    def inputs_of(self, name: str) -> Ports:
        return self.nodes[name].inputs if name in self.nodes else SINKS[name]

    def outputs_of(self, name: str) -> Ports:
        return self.nodes[name].outputs if name in self.nodes else SOURCES[name]

    def into(self, name: str) -> list[Edge]:
        return [edge for edge in self.edges if edge.target == name]

    def fault(self, path: Path, message: str) -> None:
        violation = Violation(path, message)
        if violation not in self.faults:
            self.faults.append(violation)

    # Names

    def _enter_names(self) -> None:
        for position, entry in enumerate(self._entries):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                continue
            name, kind = entry["name"], entry.get("type")
            path: Path = ("nodes", position, "name")
            if name in RESERVED:
                self._enter_reserved(position, name, kind)
            elif name in self.nodes:
                self.fault(path, f'node #{self.nodes[name].position + 1} has the name "{name}" already')
            else:
                known = kind if isinstance(kind, str) and kind in INPUTS else ""
                inputs, outputs = (INPUTS[known], outputs_of(known, entry)) if known else (NONE, NONE)
                self.nodes[name] = Node(position, name, known, entry, inputs, outputs)

    def _enter_reserved(self, position: int, name: str, kind: Any) -> None:
        path: Path = ("nodes", position, "name")
        if name != "service_request" or kind is not None:
            self.fault(path, f'"{name}" is a reserved name: it is an implicit node and cannot be declared')
        elif name in self._declared_sinks.values():
            self.fault(path, f'"{name}" is declared twice')
        else:
            self._declared_sinks[position] = name

    def _name_outputs(self) -> None:
        """Find jq nodes whose `output` names their result (see the module's head). A label that nobody reads and that
        resembles a node's name is taken for a slip of the pen, and is found unknown later."""
        read = {label for _, label in self._source_labels()}
        names = [*self.nodes, *SINKS]
        for node in self.nodes.values():
            label = node.entry.get("output")
            if node.kind != "jq" or not isinstance(label, str) or "." in label or label in RESERVED:
                continue
            if label in self.nodes or not label:
                continue
            if f"{node.name}.{label}" in read or nearest(label, names) is None:
                self._aliases[node.name] = label

    def _source_labels(self) -> Iterator[tuple[Path, str]]:
        for position, entry in enumerate(self._entries):
            if isinstance(entry, Mapping):
                yield from self._labels(position, entry, "input")

    def _labels(self, position: int, entry: Mapping[str, Any], side: str) -> Iterator[tuple[Path, str]]:
        """The labels at one side of an entry, `input` or `output`, each with its path; nulls are not connected."""
        whole, fields = entry.get(side), entry.get(f"{side}s")
        if isinstance(whole, str):
            yield ("nodes", position, side), whole
        if isinstance(fields, Mapping):
            for name, label in fields.items():
                if isinstance(label, str):
                    yield ("nodes", position, f"{side}s", str(name)), label

    # Edges

    def _declared_edges(self) -> Iterator[Edge]:
        for position, entry in enumerate(self._entries):
            if not isinstance(entry, Mapping):
                continue
            sink = self._declared_sinks.get(position)
            node = self.nodes.get(entry.get("name", "")) if isinstance(entry.get("name"), str) else None
            if sink is not None:
                yield from self._edges_into(sink, position, entry)
            elif node is not None and node.position == position and node.kind:
                yield from self._edges_into(node.name, position, entry)
                yield from self._edges_from(node, position, entry)

    def _edges_into(self, target: str, position: int, entry: Mapping[str, Any]) -> Iterator[Edge]:
        self._check_exclusive(position, entry, "input")
        ports = self.nodes[target].inputs if target in self.nodes else SINKS[target]
        for path, label in self._labels(position, entry, "input"):
            field = str(path[3]) if len(path) == 4 else None
            source = self._resolve_source(label, path)
            if source is not None and ports.type_of(field) is not None:
                yield Edge(*source, target, field, path)

    def _edges_from(self, node: Node, position: int, entry: Mapping[str, Any]) -> Iterator[Edge]:
        self._check_exclusive(position, entry, "output")
        for path, label in self._labels(position, entry, "output"):
            field = str(path[3]) if len(path) == 4 else None
            if field is None and self._aliases.get(node.name) == label:
                continue
            target = self._resolve_target(label, path)
            if node.outputs.type_of(field) is None:
                if node.kind == "static":
                    self.fault(path, _unknown_field("value", str(field), node.name, node.outputs))
            elif target is not None:
                yield Edge(node.name, field, *target, path)

    def _check_exclusive(self, position: int, entry: Mapping[str, Any], side: str) -> None:
        if entry.get(side) is not None and entry.get(f"{side}s") is not None:
            self.fault(("nodes", position, f"{side}s"), f"cannot be given together with '{side}'")

    def _split(self, label: str, path: Path) -> tuple[str, str | None] | None:
        parts = label.split(".")
        if len(parts) > 2:
            self.fault(
                path,
                f'"{label}" has {len(parts)} parts, a label has one or two (NODE or NODE.FIELD): connect '
                f'"{parts[0]}.{parts[1]}" to a jq node and select the member there',
            )
            return None
        if not all(parts):
            self.fault(path, f'"{label}" is not a label: write NODE or NODE.FIELD')
            return None
        return parts[0], parts[1] if len(parts) == 2 else None

    def _resolve_source(self, label: str, path: Path) -> tuple[str, str | None] | None:
        split = self._split(label, path)
        if split is None:
            return None
        name, field = split
        if name == "vault":
            self.fault(path, f'"{label}": the vault node is not available yet')
            return None
        if name in SINKS:
            self.fault(path, f'invalid connection: nothing can be read from "{name}"')
            return None
        node = self.nodes.get(name)
        if name not in SOURCES and node is None:
            self.fault(path, unknown_node(name, [*self.nodes, *SOURCES]))
            return None
        if node is not None and not node.kind:
            return None
        if field is not None and field == self._aliases.get(name):
            field = None
        ports = SOURCES[name] if node is None else node.outputs
        if ports.type_of(field) is None:
            self.fault(path, self._unknown_output(name, field, node, ports))
            return None
        return name, field

    def _unknown_output(self, name: str, field: str | None, node: Node | None, ports: Ports) -> str:
        if field is None:
            return f'invalid connection: node "{name}" has no output'
        if node is not None and node.kind == "jq":
            alias = self._aliases.get(name)
            hint = f"'{name}.{alias}' or '{name}'" if alias else f"'{name}'"
            return f'unknown output "{field}" of node "{name}": a jq node has one result, connect {hint}'
        return _unknown_field("output", field, name, ports)

    def _resolve_target(self, label: str, path: Path) -> tuple[str, str | None] | None:
        split = self._split(label, path)
        if split is None:
            return None
        name, field = split
        if name in SOURCES or name == "vault":
            self.fault(path, f'invalid connection: nothing can be connected into "{name}"')
            return None
        node = self.nodes.get(name)
        if name not in SINKS and node is None:
            self.fault(path, unknown_node(name, [*self.nodes, *SINKS]))
            return None
        if node is not None and not node.kind:
            return None
        ports = SINKS[name] if node is None else node.inputs
        if ports.type_of(field) is None:
            message = f'invalid connection: node "{name}" has no input'
            self.fault(path, message if field is None else _unknown_field("input", field, name, ports))
            return None
        return name, field

    # Types and conflicts

    def _connect(self, edge: Edge) -> None:
        source, target = self.type_at_source(edge), self.type_at_target(edge)
        if source == "object" and target == "object":
            self._expand(edge)
        elif not fits(source, target):
            self.fault(edge.path, f"invalid connection {edge}: type mismatch: {source} -> {target}")
        else:
            if source == "map" and target == "object" and edge.source in self.nodes:
                self._check_members(edge)
            self._add(edge)

    def _expand(self, edge: Edge) -> None:
        """Object to object: one edge for each field that both have."""
        theirs, ours = self.outputs_of(edge.source).fields, self.inputs_of(edge.target).fields
        common = [name for name in ours if name in theirs]
        if not common:
            self.fault(edge.path, f"invalid connection {edge}: the two have no field in common")
        for name in common:
            self._connect(Edge(edge.source, name, edge.target, name, edge.path))

    def _check_members(self, edge: Edge) -> None:
        """A static map into an object: its values are known, so are their types."""
        for name, wanted in self.inputs_of(edge.target).fields.items():
            given = self.outputs_of(edge.source).fields.get(name) if edge.source_field is None else None
            if given is not None and not fits(given, wanted):
                member = Edge(edge.source, name, edge.target, name, edge.path)
                self.fault(edge.path, f"invalid connection {member}: type mismatch: {given} -> {wanted}")

    def _add(self, edge: Edge) -> None:
        """Enter an edge unless its input is taken. The same edge declared at both ends is one edge."""
        for other in self.edges:
            if other.target != edge.target:
                continue
            if edge.is_same(other):
                return
            mixed = (other.target_field is None) != (edge.target_field is None)
            if mixed or other.target_field == edge.target_field:
                self.fault(edge.path, f"invalid connection {edge}: conflicts with existing connection {other}")
                return
        self.edges.append(edge)

    def type_at_source(self, edge: Edge) -> Type:
        return self.outputs_of(edge.source).type_of(edge.source_field) or "any"

    def type_at_target(self, edge: Edge) -> Type:
        return self.inputs_of(edge.target).type_of(edge.target_field) or "any"


def unknown_node(name: str, known: Sequence[str]) -> str:
    by_fold = {candidate.casefold(): candidate for candidate in known}
    suggestion = by_fold.get(name.casefold()) or nearest(name, known)
    return f'unknown node "{name}"' + (f" (did you mean '{suggestion}'?)" if suggestion else "")


def _unknown_field(what: str, field: str, node: str, ports: Ports) -> str:
    message = f'unknown {what} "{field}" of node "{node}"'
    suggestion = nearest(field, ports.fields)
    if suggestion:
        return f"{message} (did you mean '{suggestion}'?)"
    return f"{message} ({what}s: {', '.join(ports.fields)})" if ports.fields else f"{message}: it has none"
