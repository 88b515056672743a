"""What one request's run of a workflow knows: its sources, its nodes' outputs, and what is to be done in the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from data_plane.exchange import Exchange, Supplies
from data_plane.plugins.datakit.programs import EvaluatorPool
from data_plane.plugins.datakit.sources import Output, Source, read_output
from data_plane.plugins.datakit.trace import Trace
from data_plane.plugins.datakit.values import NULL, NodeError, Value
from gateway_schema.plugins.datakit_graph import Feed

RUN_LIMIT = 300.0
"""Seconds that a run may take altogether, whatever its calls' own timeouts say."""


class State:
    __slots__ = (
        "_calls",
        "_calls_since",
        "_due",
        "chosen",
        "exchange",
        "outputs",
        "pool",
        "private",
        "sources",
        "status",
        "supplies",
        "trace",
    )

    def __init__(self, exchange: Exchange, supplies: Supplies, pool: EvaluatorPool, trace: Trace | None) -> None:
        self.exchange = exchange
        self.supplies = supplies
        self.pool = pool
        self.trace = trace
        self.sources: dict[str, Source] = {}
        self.outputs: dict[str, Output] = {}
        """By node; those of skipped nodes are null."""
        self.chosen: set[str] = set()
        """Nodes that a branch chose."""
        self.private: dict[str, Any] = {}
        """`kong.ctx.plugin`."""
        self.status: int | None = None
        """`kong.response.status`, when a node set it."""
        due = time.monotonic() + RUN_LIMIT
        self._due = due if exchange.deadline is None else min(due, exchange.deadline)
        self._calls = 0
        self._calls_since = 0.0

    def read(self, feed: Feed) -> Value:
        """The value at the source of a connection. Raises NodeError."""
        output = self.outputs.get(feed.source)
        if output is not None:
            return output if isinstance(output, Value) else read_output(output, feed.source_field)
        source = self.sources.get(feed.source)
        return NULL if source is None else source.read(feed.source_field)

    def gather(self, feeds: tuple[Feed, ...]) -> dict[str | None, Value]:
        """The values of all connections into a node, by its inputs (None: the node as a whole)."""
        inputs: dict[str | None, Value] = {}
        outputs = self.outputs
        for feed in feeds:
            output = outputs.get(feed.source)
            inputs[feed.field] = output if isinstance(output, Value) else self.read(feed)
        return inputs

    def remaining(self) -> float:
        """Seconds that are left. Raises NodeError when none are."""
        left = self._due - time.monotonic()
        if left <= 0:
            raise NodeError("the workflow took too long")
        return left

    def begin_call(self) -> None:
        """The time in which at least one call is under way is added to the exchange's callouts."""
        if self._calls == 0:
            self._calls_since = time.monotonic()
        self._calls += 1

    def end_call(self) -> None:
        self._calls -= 1
        if self._calls == 0:
            self.exchange.marks.callouts += time.monotonic() - self._calls_since


class Inputs:
    """The connections into a node, or a sink, whose inputs are fields."""

    __slots__ = ("_feeds", "_has_whole")

    def __init__(self, feeds: tuple[Feed, ...]) -> None:
        self._feeds = feeds
        self._has_whole = any(feed.field is None for feed in feeds)

    def __bool__(self) -> bool:
        return bool(self._feeds)

    def read(self, state: State) -> Mapping[str, Value]:
        """Their values. A map that feeds the node as a whole gives them all. Raises NodeError."""
        inputs = state.gather(self._feeds)
        if self._has_whole:
            whole = inputs.pop(None)
            if not whole.is_null:
                if not isinstance(whole.data, dict):
                    raise NodeError("the input is not a map")
                return {name: Value(member) for name, member in whole.data.items()}
        return inputs  # type: ignore[return-value]  # no input is None by now
