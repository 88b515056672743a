"""The shapes of what Konnect's paths answer, for the OpenAPI document.

Handlers write plain dicts; nothing is converted on the way out. That what they write is what stands here is tested over
the whole surface (`tests/control_plane/test_openapi.py`), so every class forbids what it does not name.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from gateway_schema.entities import Consumer, ConsumerGroup

ItemT = TypeVar("ItemT")


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """What went wrong: Konnect's problem fields, and `message`, `code`, `name`, `fields` as Kong has them."""

    model_config = ConfigDict(extra="allow")

    status: int
    title: str
    type: str
    instance: str
    """What the log calls this answer."""
    detail: str
    message: str
    invalid_parameters: list[InvalidParameter] | None = None
    code: int | None = None
    name: str | None = None
    fields: dict[str, Any] | None = None
    details: list[dict[str, Any]] | None = None
    errors: list[dict[str, Any]] | None = None
    """Faults of a declarative document, each with its path."""


class InvalidParameter(BaseModel):
    model_config = ConfigDict(extra="allow")

    field: str
    rule: str
    reason: str
    source: str | None = None


class Health(Answer):
    status: Literal["ok"]
    version: str


# -- pages


class NumberedPage(Answer):
    number: int
    size: int
    total: int


class NumberedMeta(Answer):
    page: NumberedPage


class Numbered(Answer, Generic[ItemT]):
    data: list[ItemT]
    meta: NumberedMeta


class CursorPage(Answer):
    size: int
    first: str
    next: str | None
    previous: str | None


class CursorMeta(Answer):
    page: CursorPage


class Paged(Answer, Generic[ItemT]):
    data: list[ItemT]
    meta: CursorMeta


class Listed(Answer, Generic[ItemT]):
    """A page of entities; `offset` is absent on the last."""

    data: list[ItemT]
    offset: str = Field(default="")
    next: str | None


# -- control planes, who is asking


class ProxyUrlShown(Answer):
    host: str
    port: int
    protocol: str


class ControlPlaneConfig(Answer):
    control_plane_endpoint: str
    telemetry_endpoint: str
    cluster_type: str
    auth_type: Literal["pinned_client_certs", "pki_client_certs"]
    cloud_gateway: bool
    proxy_urls: list[ProxyUrlShown]


class ControlPlaneShown(Answer):
    id: UUID
    name: str
    description: str
    labels: dict[str, str]
    config: ControlPlaneConfig
    created_at: datetime
    updated_at: datetime


ControlPlanes = Numbered[ControlPlaneShown]


class RuntimeGroup(Answer):
    id: UUID
    name: str


class RuntimeGroups(Answer):
    data: list[RuntimeGroup]
    page: int
    pageCount: int


class Organization(Answer):
    id: UUID
    name: str
    owner_id: UUID
    login_path: str
    state: Literal["active", "inactive", "deleting", "deleted"]
    retention_period_days: int
    created_at: datetime
    updated_at: datetime


class User(Answer):
    id: UUID
    email: str
    full_name: str
    preferred_name: str
    active: bool
    inferred_region: str
    created_at: datetime
    updated_at: datetime


class RegionsByState(Answer):
    stable: list[str]
    beta: list[str]


class Regions(Answer):
    regions: RegionsByState


# -- groups of control planes


class MembersPage(Answer):
    size: int
    next: str | None
    total: int = 0
    """On the first page only."""


class MembersMeta(Answer):
    page: MembersPage


class MemberNamed(Answer):
    """A member that the caller's token must not see."""

    id: UUID


class Members(Answer):
    data: list[ControlPlaneShown | MemberNamed]
    meta: MembersMeta


class MemberStatus(Answer):
    is_member: bool


class ConflictingResource(Answer):
    id: UUID
    type: str


class GroupConflict(Answer):
    cluster_id: UUID
    description: str
    resource: ConflictingResource


class GroupStatus(Answer):
    id: UUID
    created_at: datetime
    updated_at: datetime
    state: Literal["OK", "CONFLICT", "UNKNOWN"]
    conflicts: list[GroupConflict]


# -- config stores


class ConfigStoreShown(Answer):
    id: UUID
    name: str
    created_at: datetime
    updated_at: datetime


class ConfigStoreSecretShown(Answer):
    """Without its value, which is never shown."""

    key: str
    created_at: datetime
    updated_at: datetime


ConfigStores = Paged[ConfigStoreShown]
ConfigStoreSecrets = Paged[ConfigStoreSecretShown]


# -- data planes: Konnect's older envelope, times in Unix seconds


class Item(Answer, Generic[ItemT]):
    item: ItemT


class DataPlaneCertificateShown(Answer):
    id: UUID
    title: str | None
    cert: str
    created_at: int
    updated_at: int


DataPlaneCertificateItem = Item[DataPlaneCertificateShown]
GroupStatusItem = Item[GroupStatus]


class CountedPage(Answer):
    total_count: int


class DataPlaneCertificates(Answer):
    items: list[DataPlaneCertificateShown]
    page: CountedPage


class CompatibilityIssue(Answer):
    code: str
    severity: str
    description: str
    resolution: str
    documentation_url: str
    affected_resources: list[dict[str, Any]]


class CompatibilityStatus(Answer):
    state: str
    issues: list[CompatibilityIssue]


class WorkerShown(Answer):
    index: int
    pid: int
    version: int
    hash: str
    state: str


class NodeShown(Answer):
    id: UUID
    version: str
    hostname: str
    last_ping: int
    type: Literal["kong-proxy"]
    config_hash: str
    created_at: int
    updated_at: int
    compatibility_status: CompatibilityStatus
    sync_state: str
    config_version: int
    workers: list[WorkerShown]
    last_error: dict[str, Any] | None


NodeItem = Item[NodeShown]


class NodesPage(Answer):
    total_count: int
    next: str = ""
    """Absent on the last page."""


class Nodes(Answer):
    items: list[NodeShown]
    page: NodesPage


class OutdatedNode(Answer):
    node_id: UUID
    node_version: str
    message: str


class OutdatedNodes(Answer):
    items: list[OutdatedNode]


class ExpectedHash(Answer):
    expected_hash: str
    config_version: int
    created_at: int
    updated_at: int


class ExpectedVersion(Answer):
    expected_config_version: int
    created_at: int


# -- core entities beside the registry's kinds


class GroupWithConsumers(Answer):
    consumer_group: ConsumerGroup
    consumers: list[Consumer] = Field(default_factory=list)
    """Absent with `list_consumers=false`."""


class ConsumersAdded(Answer):
    consumer_group: ConsumerGroup
    consumers: list[Consumer]


class GroupsJoined(Answer):
    consumer: Consumer
    consumer_groups: list[ConsumerGroup]


class PartialUser(Answer):
    id: UUID
    name: str
    instance_name: str | None


class PartialUsers(Answer):
    count: int
    data: list[PartialUser]
    offset: str = ""
    next: str | None


class Workspace(Answer):
    id: UUID
    name: Literal["default"]
    comment: None
    created_at: int


class Workspaces(Answer):
    data: list[Workspace]
    next: None


# -- schemas


class KongSchema(Answer):
    """A record in Kong's dialect: a list of fields, each an object with one key."""

    name: str = ""
    fields: list[dict[str, dict[str, Any]]]
    entity_checks: list[Any] = []
    supported_partials: dict[str, list[str]] = {}


class JsonSchema(Answer):
    id: str = Field(alias="$id")
    title: str
    type: Literal["object"]
    properties: dict[str, Any]
    required: list[str] = []
    additionalProperties: Literal[False]
    allOf: list[dict[str, Any]] = []


class Validated(Answer):
    message: str
