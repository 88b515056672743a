"""Telemetry from data plane nodes: each batch is stored once, whatever is resent, in one transaction with its rows.

A spool (node and epoch) numbers its batches from 1. `analytics_epochs` says which are stored: all through one number,
and ranges ahead of it, for batches may come in any order. That row, the rows of the request log and the sums per minute
change together or not at all, and the node is told only after the commit; so a batch that is sent again, because the
answer was lost or a process died, finds itself stored and adds nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.bounds import bound
from control_plane.database import Database, take_turns
from control_plane.errands import Errands
from control_plane.models import ANALYTICS_EPOCHS, ENTITY_NAMES, ENTITY_TABLES, LLM_CALLS, REQUEST_EVENTS
from control_plane.rollups import MAX_INT, MINUTE_US, Rollups, chunks, clamp, upsert
from control_plane.texts import clean
from gateway_schema.wire import analytics_pb2

_log = logging.getLogger(__name__)

MAX_EVENTS = 20_000
"""Per batch; deltas likewise."""
MAX_RANGES = 1_024
MAX_AHEAD_US = 2 * MINUTE_US
_NAMES_FRESH_SECONDS = 60.0
_MAX_NAMES = 50_000


@dataclass(frozen=True, slots=True)
class Reporter:
    """A spool: which node of which control plane, and which life of it."""

    control_plane_id: str
    node_id: str
    epoch: str
    version: str = ""


class InvalidBatch(ValueError):
    """A batch that no resending will mend: no sequence, or too large."""


class Ingest:
    """Stores batches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errands = Errands("store batch")
        self._named: dict[tuple[str, str], float] = {}

    async def last_durable(self, reporter: Reporter) -> int:
        """The number through which all batches of the spool are stored; 0 for none."""
        async with self._database.reading() as session:
            row = await _epoch(session, reporter)
            return row.applied_through if row is not None else 0

    async def apply(self, reporter: Reporter, batch: analytics_pb2.Batch) -> int:
        """Store a batch unless it is stored; returns the number through which all are. Raises InvalidBatch."""
        if not 0 < batch.sequence <= MAX_INT:
            raise InvalidBatch(f"a batch needs a sequence from 1, not {batch.sequence}")
        if len(batch.events) > MAX_EVENTS or len(batch.deltas) > MAX_EVENTS:
            raise InvalidBatch(f"a batch may hold {MAX_EVENTS} events and as many deltas")
        bound(batch, reporter.node_id)
        return await self._errands.run(self._apply(reporter, batch, time.time_ns() // 1000))

    async def ended(self, reporter: Reporter) -> None:
        """The spool was closed cleanly: nothing of it is under way any more."""
        async with self._database.writing() as session:
            await session.execute(_where(update(ANALYTICS_EPOCHS), reporter).values(ended=True))

    async def close(self) -> None:
        await self._errands.close()

    async def _apply(self, reporter: Reporter, batch: analytics_pb2.Batch, now_us: int) -> int:
        async with self._database.writing() as session:
            epoch = await self._locked_epoch(session, reporter, now_us)
            ranges = [tuple(pair) for pair in epoch.applied_ahead]
            if _is_applied(batch.sequence, epoch.applied_through, ranges):
                return int(epoch.applied_through)
            through, ranges = _advance(batch.sequence, epoch.applied_through, ranges)
            entities = await self._store(session, reporter, epoch.id, batch, now_us)
            named = await self._remember_names(session, reporter.control_plane_id, entities)
            await session.execute(
                update(ANALYTICS_EPOCHS)
                .where(ANALYTICS_EPOCHS.c.id == epoch.id)
                .values(
                    applied_through=through,
                    applied_ahead=[list(pair) for pair in ranges],
                    dropped_events=max(epoch.dropped_events, clamp(batch.dropped_events)),
                    updated_us=now_us,
                )
            )
        fresh_until = time.monotonic() + _NAMES_FRESH_SECONDS
        self._named |= {(reporter.control_plane_id, id_): fresh_until for id_ in named}
        return through

    async def prune(self, before_us: int) -> None:
        """Delete the request log before a moment, an hour at a time, so that no transaction is long."""
        for table in (LLM_CALLS, REQUEST_EVENTS):
            finished = table.c.finished_us
            while True:
                async with self._database.writing() as session:
                    oldest = (await session.execute(select(func.min(finished)))).scalar_one()
                    if oldest is None or oldest >= before_us:
                        break
                    until = min(oldest + 60 * MINUTE_US, before_us)
                    await session.execute(delete(table).where(finished < until))

    # -- inside the transaction

    async def _locked_epoch(self, session: AsyncSession, reporter: Reporter, now_us: int) -> Row[Any]:
        """The spool's row, made at its first batch, under the lock that lets one batch at a time be added.

        SQLite has one writer anyway; on PostgreSQL the lock is per control plane, because sums of its minutes are read,
        merged and written back.
        """
        await take_turns(session, f"analytics {reporter.control_plane_id}")
        row = await _epoch(session, reporter)
        if row is None:
            await session.execute(
                insert(ANALYTICS_EPOCHS).values(
                    control_plane_id=reporter.control_plane_id,
                    node_id=reporter.node_id,
                    epoch=reporter.epoch,
                    node_version=clean(reporter.version, 64),
                    applied_through=0,
                    applied_ahead=[],
                    dropped_events=0,
                    ended=False,
                    created_us=now_us,
                    updated_us=now_us,
                )
            )
            row = await _epoch(session, reporter)
        assert row is not None
        return row

    async def _store(
        self, session: AsyncSession, reporter: Reporter, epoch_id: int, batch: analytics_pb2.Batch, now_us: int
    ) -> Mapping[str, set[str]]:
        """Add its rows and sums; returns the ids, by kind, of what it refers to."""
        rollups = Rollups(reporter.control_plane_id)
        events: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        for position, event in enumerate(batch.events):
            finished_us = _plausible(event.finished_us, now_us)
            key = {"epoch_id": epoch_id, "sequence": batch.sequence, "position": position}
            events.append(key | _event_row(reporter, event, finished_us))
            calls += (key | _call_row(call, index, finished_us) for index, call in enumerate(event.llm_calls))
            rollups.add_event(event, finished_us)
        for delta in batch.deltas:
            rollups.add_delta(delta, _plausible(delta.minute * 1_000_000, now_us) // MINUTE_US * 60)
        if events:
            await session.execute(insert(REQUEST_EVENTS), events)
        if calls:
            await session.execute(insert(LLM_CALLS), calls)
        await rollups.write(session)
        return rollups.entities()

    async def _remember_names(
        self, session: AsyncSession, control_plane_id: str, entities: Mapping[str, set[str]]
    ) -> list[str]:
        """Keep the names of these, at most once a minute for each; returns the ids looked up."""
        now = time.monotonic()
        if len(self._named) > _MAX_NAMES:
            self._named.clear()
        looked_up: list[str] = []
        for kind, ids in entities.items():
            stale = [id_ for id_ in ids if self._named.get((control_plane_id, id_), 0.0) < now]
            for part in chunks(stale, 500):
                await upsert(session, ENTITY_NAMES, await live_names(session, kind, control_plane_id, part))
            looked_up += stale
        return looked_up


_NAME_COLUMNS = {"services": ("name",), "routes": ("name",), "consumers": ("username", "custom_id")}


async def live_names(
    session: AsyncSession, kind: str, control_plane_id: str, ids: Iterable[str]
) -> list[dict[str, Any]]:
    """Rows for `entity_names` of the entities that exist and have a name."""
    table = ENTITY_TABLES[kind]
    names = [table.c[column] for column in _NAME_COLUMNS[kind]]
    found = await session.execute(
        select(table.c.id, *names).where(table.c.control_plane_id == control_plane_id, table.c.id.in_(list(ids)))
    )
    return [
        {"control_plane_id": control_plane_id, "entity_id": row[0], "entity_type": kind, "name": name}
        for row in found
        if (name := next((value for value in row[1:] if value), None))
    ]


def _where(statement: Any, reporter: Reporter) -> Any:
    table = ANALYTICS_EPOCHS
    return statement.where(
        table.c.control_plane_id == reporter.control_plane_id,
        table.c.node_id == reporter.node_id,
        table.c.epoch == reporter.epoch,
    )


async def _epoch(session: AsyncSession, reporter: Reporter) -> Row[Any] | None:
    return (await session.execute(_where(select(ANALYTICS_EPOCHS), reporter))).one_or_none()


def _is_applied(sequence: int, through: int, ranges: list[tuple[int, ...]]) -> bool:
    return sequence <= through or any(first <= sequence <= last for first, last in ranges)


def _advance(sequence: int, through: int, ranges: list[tuple[int, ...]]) -> tuple[int, list[tuple[int, ...]]]:
    """What is stored once `sequence` is too. Beyond 1,024 gaps the oldest is given up: it will not come any more."""
    merged: list[tuple[int, ...]] = [(0, through)]
    for first, last in sorted([*ranges, (sequence, sequence)]):
        if first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    if len(merged) > MAX_RANGES:
        _log.warning("batches %d to %d of a spool never came: given up", merged[0][1] + 1, merged[1][0] - 1)
        merged = [(0, merged[1][1]), *merged[2:]]
    return merged[0][1], merged[1:]


def _plausible(finished_us: int, now_us: int) -> int:
    """An end in the future (a node's clock is wrong) is taken for now, and logged: no query looks into the future."""
    if 0 < finished_us <= now_us + MAX_AHEAD_US:
        return finished_us
    _log.warning("an event ended at %d µs, which cannot be: a node's clock is wrong; counted as of now", finished_us)
    return now_us


def _event_row(reporter: Reporter, event: analytics_pb2.RequestEvent, finished_us: int) -> dict[str, Any]:
    return {
        "control_plane_id": reporter.control_plane_id,
        "node_id": reporter.node_id,
        "started_us": event.started_us,
        "finished_us": finished_us,
        "request_id": event.request_id.hex(),
        "parent_request_id": clean(event.parent_request_id, 64),
        "decision_id": clean(event.decision_id, 64),
        "config_version": clamp(event.config_version),
        "service_id": clean(event.service_id, 64),
        "route_id": clean(event.route_id, 64),
        "consumer_id": clean(event.consumer_id, 64),
        "credential_id": clean(event.credential_id, 64),
        "method": clean(event.method, 16),
        "scheme": clean(event.scheme, 8),
        "host": clean(event.host, 255),
        "path": clean(event.path, 1024),
        "user_agent": clean(event.user_agent, 256),
        "client_ip": clean(event.client_ip, 64),
        "status": event.status,
        "upstream_status": event.upstream_status,
        "source": clean(event.source, 64),
        "error_kind": clean(event.error_kind, 64),
        "plugin_name": clean(event.plugin_name, 64),
        "outcome": clean(event.outcome, 32),
        "request_bytes": clamp(event.request_size),
        "response_bytes": clamp(event.response_size),
        "total_us": clamp(event.total_us),
        "gateway_us": clamp(event.gateway_us),
        "callout_us": clamp(event.callout_us),
        "upstream_us": clamp(event.upstream_us) if event.HasField("upstream_us") else None,
        "receive_us": clamp(event.receive_us) if event.HasField("receive_us") else None,
    }


def _call_row(call: analytics_pb2.LlmCall, index: int, finished_us: int) -> dict[str, Any]:
    return {
        "call_index": index,
        "finished_us": finished_us,
        "plugin_id": clean(call.plugin_id, 64),
        "provider": clean(call.provider, 256),
        "request_model": clean(call.request_model, 256),
        "response_model": clean(call.response_model, 256),
        "model_alias": clean(call.model_alias, 256),
        "stream": call.stream,
        "status": call.status,
        "error_kind": clean(call.error_kind, 64),
        "role": clean(call.role, 32),
        "token_source": clean(call.token_source, 32),
        "finish_reason": clean(call.finish_reason, 64),
        "prompt_tokens": clamp(call.prompt_tokens),
        "completion_tokens": clamp(call.completion_tokens),
        "cached_tokens": clamp(call.cached_tokens),
        "cache_write_tokens": clamp(call.cache_write_tokens),
        "reasoning_tokens": clamp(call.reasoning_tokens),
        "duration_us": clamp(call.duration_us),
        "ttft_us": clamp(call.ttft_us) if call.HasField("ttft_us") else None,
        "cost_nano_usd": call.cost_nano_usd if call.HasField("cost_nano_usd") else None,
    }
