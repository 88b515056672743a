"""The shapes of what our own paths answer, for the OpenAPI document; see `answers.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from control_plane.api.answers import Answer, Numbered, WorkerShown

# -- documents, plans, history


class DocumentShown(Answer):
    """A declarative document in decK's format; its other keys hold lists of entities."""

    model_config = ConfigDict(extra="allow")

    format_version: Literal["3.0"] = Field(alias="_format_version")
    info: dict[str, Any] = Field(default_factory=dict, alias="_info")
    konnect: dict[str, Any] = Field(default_factory=dict, alias="_konnect")
    __pydantic_extra__: dict[str, list[dict[str, Any]]]


class Bodies(Answer):
    new: dict[str, Any]
    old: dict[str, Any] | None


class PlannedChange(Answer):
    name: str
    kind: str
    body: Bodies


class PlannedChanges(Answer):
    creating: list[PlannedChange]
    updating: list[PlannedChange]
    deleting: list[PlannedChange]


class ChangeCounts(Answer):
    creating: int
    updating: int
    deleting: int
    total: int


class Adoption(Answer):
    name: str
    kind: str
    owner: list[str]


class PlanShown(Answer):
    """decK's JSON of a diff. A deletion stands under `new`."""

    changes: PlannedChanges
    summary: ChangeCounts
    adopting: list[Adoption]
    warnings: list[str]


class Applied(Answer):
    plan: PlanShown
    committed: bool
    version: int
    hash: str | None
    """None where a plan is only looked at and what is held can be no snapshot."""


class SavedPlanShown(Answer):
    id: UUID
    version: int
    mode: str
    select_tags: list[str]
    author: str
    created_at: datetime
    expires_at: datetime
    applied_version: int | None
    plan: PlanShown | None
    conflict: str = ""
    """Why it cannot be applied any more, if so."""


class SnapshotEntry(Answer):
    version: int
    hash: str
    author: str
    action: str
    created_at: datetime
    summary: ChangeCounts


class SnapshotEntries(Answer):
    data: list[SnapshotEntry]
    next: int | None


class SnapshotShown(SnapshotEntry):
    entities: dict[str, int]


class SnapshotDifference(Answer):
    from_version: int = Field(alias="from")
    to: int
    plan: PlanShown


# -- receipts


class ReceiptCounts(Answer):
    connected: int
    applied: int
    refused: int
    silent: int
    behind: int


class Receipt(Answer):
    node_id: UUID
    hostname: str
    connected: bool
    state: Literal["applied", "refused", "silent", "behind"]
    version: int
    hash: str
    error: dict[str, Any] | None
    at_ms: int | None
    milliseconds: float | None
    workers: list[WorkerShown]


class ReceiptsShown(Answer):
    version: int
    hash: str
    made_at_ms: int | None
    complete: bool
    summary: ReceiptCounts
    items: list[Receipt]


class PropagationBucket(Answer):
    le_ms: float | None
    count: int


class PropagationShown(Answer):
    count: int
    sum_ms: float
    max_ms: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    buckets: list[PropagationBucket]


# -- tokens and audit


class TokenShown(Answer):
    id: UUID
    name: str
    kind: Literal["personal", "system-account"]
    scopes: list[str]
    control_plane_id: UUID | None
    state: Literal["active", "expired"]
    expires_at: datetime | None
    created_by: str
    created_at: datetime


class TokenMade(TokenShown):
    token: str
    """Its value, shown this once."""


Tokens = Numbered[TokenShown]


class AuditPrincipal(Answer):
    id: str
    name: str


class AuditEntity(Answer):
    type: str
    id: str
    name: str


class AuditLine(Answer):
    id: int
    at: datetime
    principal: AuditPrincipal
    client_address: str
    action: str
    outcome: str
    control_plane_id: str | None
    entity: AuditEntity
    details: dict[str, Any]


class AuditLines(Answer):
    data: list[AuditLine]
    next: int | None


# -- analytics


class MetricsRow(Answer):
    timestamp: datetime
    event: dict[str, str | float | None]
    """Ids of the dimensions that were asked for, and the metrics."""


class DisplayName(Answer):
    id: str
    name: str
    deleted: bool = False
    is_other_group: bool = False


class Loss(Answer):
    dropped: int


class MetricsMeta(Answer):
    start: datetime
    end: datetime
    granularity_ms: int
    limit: int
    truncated: bool
    query_id: UUID
    metric_names: list[str]
    metric_units: dict[str, str]
    display: dict[str, dict[str, DisplayName]]
    source: str
    loss: Loss


class MetricsShown(Answer):
    data: list[MetricsRow]
    meta: MetricsMeta


class ModelCall(Answer):
    ai_provider: str
    ai_request_model: str
    ai_response_model: str
    model_alias: str | None
    ai_plugin: str | None
    role: str
    stream: bool
    status_code: int | None
    error_kind: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    token_source: str
    cost: float | None
    llm_latency_ms: float | None
    time_to_first_token_ms: float | None


class RequestShown(Answer):
    request_start: datetime
    request_end: datetime
    request_id: str
    parent_request_id: str | None
    decision_id: str | None
    http_method: str
    request_uri: str
    header_host: str
    header_user_agent: str
    client_ip: str
    control_plane: str
    data_plane_node: str
    gateway_service: str | None
    route: str | None
    consumer: str | None
    service_protocol: str
    request_body_size: int
    response_body_size: int
    response_http_status: str
    upstream_status: int | None
    response_source: Literal["upstream", "kong"]
    source: str
    error_kind: str | None
    plugin_name: str | None
    outcome: str
    config_version: int
    latencies_response_ms: float | None
    latencies_upstream_ms: float | None
    latencies_kong_gateway_ms: float | None
    latencies_callout_ms: float | None
    latencies_receive_ms: float | None
    llm_calls: list[ModelCall]


class RequestsRange(Answer):
    start: datetime
    end: datetime


class RequestsMeta(Answer):
    time_range: RequestsRange
    query_id: UUID
    size: int
    offset: int
    cursor: str | None


class RequestsShown(Answer):
    results: list[RequestShown]
    meta: RequestsMeta
