"""Usage per minute: whole events and folded deltas added up by key, then added to what the tables hold.

Everything here is additive: counts, sums, maxima, sketches (merged bin by bin). Averages, rates and percentiles are
made from them when somebody asks. The bucket is the minute in which an exchange ended, so a closed minute is final as
soon as its batches are in, and a stream of ten minutes rewrites nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Table, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.models import API_USAGE, LLM_USAGE
from control_plane.texts import clean
from gateway_schema.sketch import Sketch, bin_of
from gateway_schema.wire import analytics_pb2

_log = logging.getLogger(__name__)

MINUTE_US = 60_000_000
MAX_INT = (1 << 63) - 1
_LAST_BIN = bin_of(1 << 62)
_KEYS_PER_QUERY = 500

T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """One latency of one key: count, sum and maximum in microseconds, and its sketch."""

    count: int = 0
    sum_us: int = 0
    max_us: int = 0
    sketch: Sketch = field(default_factory=Sketch)

    def add(self, value_us: int) -> None:
        value_us = min(value_us, MAX_INT)
        self.count += 1
        self.sum_us += value_us
        self.max_us = max(self.max_us, value_us)
        self.sketch.add(value_us)

    def merge(self, count: int, sum_us: int, max_us: int, sketch: Sketch) -> None:
        self.count += count
        self.sum_us += sum_us
        self.max_us = max(self.max_us, max_us)
        self.sketch.merge(sketch)

    def add_distribution(self, distribution: analytics_pb2.Distribution) -> None:
        """A folded latency. A sketch that is none is left out: counts and sums matter more than one percentile."""
        sketch = Sketch()
        try:
            sketch = Sketch.decode(distribution.sketch)
        except ValueError as error:
            _log.warning("a node sent a malformed sketch, which is left out: %s", error)
        sketch = Sketch({min(key, _LAST_BIN): min(count, MAX_INT) for key, count in sketch.bins.items()})
        self.merge(clamp(distribution.count), clamp(distribution.sum_us), clamp(distribution.max_us), sketch)

    def columns(self, name: str) -> dict[str, Any]:
        return {
            f"{name}_count": clamp(self.count),
            f"{name}_sum_us": clamp(self.sum_us),
            f"{name}_max_us": self.max_us,
            f"{name}_sketch": self.sketch.encode(),
        }

    def merge_columns(self, name: str, row: Mapping[str, Any]) -> None:
        sketch = Sketch.decode(row[f"{name}_sketch"])
        self.merge(row[f"{name}_count"], row[f"{name}_sum_us"], row[f"{name}_max_us"], sketch)


class Measures:
    """What one key adds up: the table's counters by name, and its latencies."""

    __slots__ = ("counters", "tallies")

    def __init__(self, table: Table) -> None:
        self.counters = dict.fromkeys(COUNTERS[table.name], 0)
        self.tallies = {name: Tally() for name in LATENCIES[table.name]}

    def columns(self) -> dict[str, Any]:
        columns: dict[str, Any] = {name: clamp(value) for name, value in self.counters.items()}
        for name, tally in self.tallies.items():
            columns |= tally.columns(name)
        return columns

    def merge_row(self, row: Mapping[str, Any]) -> None:
        for name in self.counters:
            self.counters[name] += row[name]
        for name, tally in self.tallies.items():
            tally.merge_columns(name, row)


LATENCIES: Mapping[str, tuple[str, ...]] = {
    API_USAGE.name: ("total", "upstream", "gateway"),
    LLM_USAGE.name: ("duration", "ttft"),
}
COUNTERS: Mapping[str, tuple[str, ...]] = {
    table.name: tuple(
        column.name
        for column in table.columns
        if not column.primary_key and not column.name.endswith(("_count", "_sum_us", "_max_us", "_sketch"))
    )
    for table in (API_USAGE, LLM_USAGE)
}

Key = tuple[Any, ...]
_FIRST_ID = 2
"""Where ids begin in a key, after control plane and minute."""
_KINDS = ("services", "routes", "consumers")


class Rollups:
    """Sums of one batch, by the keys of the two tables."""

    def __init__(self, control_plane_id: str) -> None:
        self._control_plane_id = control_plane_id
        self._api: dict[Key, Measures] = {}
        self._llm: dict[Key, Measures] = {}

    def add_event(self, event: analytics_pb2.RequestEvent, finished_us: int) -> None:
        """One exchange, and each of its calls to a model."""
        where = (
            self._control_plane_id,
            finished_us // MINUTE_US * 60,
            clean(event.service_id, 64),
            clean(event.route_id, 64),
            clean(event.consumer_id, 64),
        )
        measures = self._measures(self._api, API_USAGE, (*where, event.status, clean(event.source, 64)))
        counters = measures.counters
        counters["requests"] += 1
        counters["incomplete"] += event.outcome != "complete"
        counters["request_bytes"] += event.request_size
        counters["response_bytes"] += event.response_size
        measures.tallies["total"].add(event.total_us)
        measures.tallies["gateway"].add(event.gateway_us)
        if event.HasField("upstream_us"):
            measures.tallies["upstream"].add(event.upstream_us)
        for call in event.llm_calls:
            self._add_call(where, call)

    def add_delta(self, delta: analytics_pb2.UsageDelta, minute: int) -> None:
        """Folded exchanges of one minute (Unix seconds) and key."""
        where = (
            self._control_plane_id,
            minute,
            clean(delta.service_id, 64),
            clean(delta.route_id, 64),
            clean(delta.consumer_id, 64),
        )
        measures = self._measures(self._api, API_USAGE, (*where, delta.status, clean(delta.source, 64)))
        counters = measures.counters
        counters["requests"] += delta.requests
        counters["incomplete"] += delta.incomplete
        counters["request_bytes"] += delta.request_size
        counters["response_bytes"] += delta.response_size
        for name, tally in measures.tallies.items():
            tally.add_distribution(getattr(delta, name))
        for folded in delta.llm:
            self._add_folded_calls(where, folded)

    def entities(self) -> dict[str, set[str]]:
        """By kind, the ids of what the sums are about."""
        keys = [key[_FIRST_ID : _FIRST_ID + len(_KINDS)] for key in self._api]
        return {kind: {ids[place] for ids in keys if ids[place]} for place, kind in enumerate(_KINDS)}

    async def write(self, session: AsyncSession) -> None:
        """Add them to the tables. The caller holds the lock under which no one else writes these rows."""
        await _add_to(session, API_USAGE, self._api)
        await _add_to(session, LLM_USAGE, self._llm)

    @staticmethod
    def _measures(sums: dict[Key, Measures], table: Table, key: Key) -> Measures:
        measures = sums.get(key)
        if measures is None:
            measures = sums[key] = Measures(table)
        return measures

    def _llm_measures(self, where: Key, call: analytics_pb2.LlmCall | analytics_pb2.LlmDelta) -> Measures:
        models = (clean(call.provider, 256), clean(call.request_model, 256), clean(call.response_model, 256))
        return self._measures(self._llm, LLM_USAGE, (*where, *models, call.status, call.stream))

    def _add_call(self, where: Key, call: analytics_pb2.LlmCall) -> None:
        measures = self._llm_measures(where, call)
        counters = measures.counters
        counters["calls"] += 1
        for name in _TOKENS:
            counters[name] += getattr(call, name)
        counters["estimated_calls"] += call.token_source == _ESTIMATED
        if call.HasField("cost_nano_usd"):
            counters["cost_nano_usd"] += call.cost_nano_usd
        else:
            counters["unpriced_calls"] += 1
        measures.tallies["duration"].add(call.duration_us)
        if call.HasField("ttft_us"):
            measures.tallies["ttft"].add(call.ttft_us)

    def _add_folded_calls(self, where: Key, folded: analytics_pb2.LlmDelta) -> None:
        measures = self._llm_measures(where, folded)
        for name in measures.counters:
            measures.counters[name] += getattr(folded, name)
        for name, tally in measures.tallies.items():
            tally.add_distribution(getattr(folded, name))


_ESTIMATED = "estimated"
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


async def _add_to(session: AsyncSession, table: Table, sums: Mapping[Key, Measures]) -> None:
    if not sums:
        return
    keys = [column.name for column in table.primary_key]
    columns = [table.c[name] for name in keys]
    for part in chunks(list(sums), _KEYS_PER_QUERY):
        for row in (await session.execute(select(table).where(tuple_(*columns).in_(part)))).mappings():
            sums[tuple(row[name] for name in keys)].merge_row(dict(row))
    await upsert(session, table, [dict(zip(keys, key, strict=True)) | sums[key].columns() for key in sums])


async def upsert(session: AsyncSession, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows; where the primary key is there already, the other columns are overwritten."""
    if not rows:
        return
    if session.get_bind().dialect.name == "sqlite":
        lite = sqlite.insert(table)
        replaced = {column.name: lite.excluded[column.name] for column in table.columns if not column.primary_key}
        await session.execute(lite.on_conflict_do_update(index_elements=table.primary_key, set_=replaced), rows)
    else:
        big = postgresql.insert(table)
        replaced = {column.name: big.excluded[column.name] for column in table.columns if not column.primary_key}
        await session.execute(big.on_conflict_do_update(index_elements=table.primary_key, set_=replaced), rows)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def clamp(value: int) -> int:
    """The wire counts to 2⁶⁴, the database to 2⁶³, and nothing here is less than none."""
    return min(max(value, 0), MAX_INT)
