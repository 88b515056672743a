"""What analytics queries may ask for: metrics and dimensions of the two datasources, as formulas over additive facts.

A fact is a sum that the database makes; a metric is made from facts and merged sketches at the very end, so averages
and percentiles of groups are those of their exchanges, never averages of averages. A division by zero is null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table, case
from sqlalchemy.sql import ColumnElement

from control_plane.models import API_USAGE, LLM_USAGE
from control_plane.totals import Total
from gateway_schema.sketch import Sketch

Number = float | int | None


@dataclass(slots=True)
class Sums:
    """Facts and sketches of one group."""

    facts: dict[str, int] = field(default_factory=dict)
    sketches: dict[str, Sketch] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        for name, value in other.facts.items():
            self.facts[name] = self.facts.get(name, 0) + value
        for name, sketch in other.sketches.items():
            self.sketches.setdefault(name, Sketch()).merge(sketch)

    def __getitem__(self, fact: str) -> int:
        return self.facts.get(fact, 0)


@dataclass(frozen=True, slots=True)
class Metric:
    unit: str
    compute: Callable[[Sums, float], Number]
    """From the sums and the minutes that they span."""
    facts: tuple[str, ...] = ()
    sketch: str | None = None


@dataclass(frozen=True, slots=True)
class Dimension:
    """Something to group by: the columns, and the name of the kind whose entities it holds, if any."""

    columns: tuple[ColumnElement[Any], ...]
    entity_type: str | None = None
    kind: str = "text"
    """text, scoped (control plane and entity), uuid, status, status_class, source, flag."""


@dataclass(frozen=True)
class Datasource:
    name: str
    table: Table
    default_metric: str
    metrics: Mapping[str, Metric]
    dimensions: Mapping[str, Dimension]
    facts: Mapping[str, ColumnElement[Any]]


def _count(fact: str, unit: str = "count") -> Metric:
    return Metric(unit, lambda sums, _: sums[fact], (fact,))


def _share(part: str, whole: str) -> Metric:
    return Metric("%", lambda sums, _: _ratio(100 * sums[part], sums[whole]), (part, whole))


def _average(total: str, count: str, unit: str, scale: int = 1) -> Metric:
    return Metric(unit, lambda sums, _: _ratio(sums[total], sums[count] * scale), (total, count))


def _percentile(sketch: str, q: float) -> Metric:
    def compute(sums: Sums, _: float) -> Number:
        value = sums.sketches[sketch].quantile(q) if sketch in sums.sketches else None
        return None if value is None else round(value / 1000, 3)

    return Metric("ms", compute, sketch=sketch)


def _latencies(prefix: str, tally: str) -> dict[str, Metric]:
    """Average and percentiles in milliseconds; null where nothing was measured."""
    return {
        f"{prefix}_average": _average(f"{tally}_sum_us", f"{tally}_count", "ms", 1000),
        **{f"{prefix}_p{q}": _percentile(f"{tally}_sketch", q / 100) for q in (50, 95, 99)},
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _cost(sums: Sums, _: float) -> Number:
    """Dollars; null where there were calls and none of them had a price."""
    if sums["calls"] and sums["calls"] == sums["unpriced_calls"]:
        return None
    return sums["cost_nano_usd"] / 1_000_000_000


def _statuses() -> dict[str, Metric]:
    classes = {f"status_{n}xx": _count(f"status_{n}xx") for n in range(1, 6)}
    return {"error_count": _count("errors"), **classes}


def _facts(table: Table, count: str, is_error: ColumnElement[bool]) -> dict[str, ColumnElement[Any]]:
    summed = [column for column in table.columns if not column.primary_key and not column.name.endswith("_sketch")]
    counted = table.c[count]
    status = table.c.status
    classes = {
        f"status_{n}xx": Total(case((status.between(n * 100, n * 100 + 99), counted), else_=0)) for n in range(1, 6)
    }
    errors = {"errors": Total(case((is_error, counted), else_=0))}
    facts: dict[str, ColumnElement[Any]] = {column.name: Total(column) for column in summed}
    return facts | classes | errors


def _entity_dimensions(table: Table) -> dict[str, Dimension]:
    cp = table.c.control_plane_id
    return {
        "control_plane": Dimension((cp,), "control_planes", "uuid"),
        "gateway_service": Dimension((cp, table.c.service_id), "services", "scoped"),
        "route": Dimension((cp, table.c.route_id), "routes", "scoped"),
        "consumer": Dimension((cp, table.c.consumer_id), "consumers", "scoped"),
        "status_code": Dimension((table.c.status,), kind="status"),
        "status_code_grouped": Dimension((table.c.status // 100,), kind="status_class"),
    }


API = Datasource(
    name="api_usage",
    table=API_USAGE,
    default_metric="request_count",
    metrics={
        "request_count": _count("requests"),
        "request_per_minute": Metric(
            "count/minute", lambda sums, minutes: _ratio(sums["requests"], minutes), ("requests",)
        ),
        "error_rate": _share("errors", "requests"),
        "client_error_rate": _share("status_4xx", "requests"),
        "server_error_rate": _share("status_5xx", "requests"),
        "incomplete_count": _count("incomplete"),
        **_statuses(),
        **_latencies("response_latency", "total"),
        **_latencies("upstream_latency", "upstream"),
        **_latencies("kong_latency", "gateway"),
        "request_size_average": _average("request_bytes", "requests", "bytes"),
        "request_size_sum": _count("request_bytes", "bytes"),
        "response_size_average": _average("response_bytes", "requests", "bytes"),
        "response_size_sum": _count("response_bytes", "bytes"),
    },
    dimensions={
        **_entity_dimensions(API_USAGE),
        "response_source": Dimension(
            (case((API_USAGE.c.source == "upstream", "upstream"), else_="kong"),), kind="source"
        ),
    },
    facts=_facts(API_USAGE, "requests", API_USAGE.c.status >= 400),
)

LLM = Datasource(
    name="llm_usage",
    table=LLM_USAGE,
    default_metric="ai_request_count",
    metrics={
        "ai_request_count": _count("calls"),
        "error_rate": _share("errors", "calls"),
        **_statuses(),
        **{name: _count(name, "token count") for name in ("prompt_tokens", "completion_tokens", "cached_tokens")},
        **{name: _count(name, "token count") for name in ("cache_write_tokens", "reasoning_tokens")},
        "total_tokens": Metric(
            "token count",
            lambda sums, _: sums["prompt_tokens"] + sums["completion_tokens"],
            ("prompt_tokens", "completion_tokens"),
        ),
        "cost": Metric("usd", _cost, ("cost_nano_usd", "calls", "unpriced_calls")),
        "unpriced_request_count": _count("unpriced_calls"),
        "estimated_request_count": _count("estimated_calls"),
        **_latencies("llm_latency", "duration"),
        **_latencies("time_to_first_token", "ttft"),
    },
    dimensions={
        **_entity_dimensions(LLM_USAGE),
        "ai_provider": Dimension((LLM_USAGE.c.provider,)),
        "ai_request_model": Dimension((LLM_USAGE.c.request_model,)),
        "ai_response_model": Dimension((LLM_USAGE.c.response_model,)),
        "stream": Dimension((LLM_USAGE.c.stream,), kind="flag"),
    },
    # A call that got no answer has status 0, and is an error.
    facts=_facts(LLM_USAGE, "calls", (LLM_USAGE.c.status >= 400) | (LLM_USAGE.c.status == 0)),
)

DATASOURCES: Mapping[str, Datasource] = {API.name: API, LLM.name: LLM}
