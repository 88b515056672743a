"""Every table of the control plane.

Tables of entities follow from the registry: `written` holds what a person wrote, apart from defaults, with secrets
encrypted; beside it stand only the columns that the database itself must know: what is unique, what refers to what, and
when it is over.
`revision` is the control plane's `config_version` that last wrote the row: who knows an older version reads only what
changed since. Keys start with the control plane, so that two control planes may hold the same ids.

Times of entities are Unix seconds (as Kong shows them), those of control planes Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gateway_schema.base import is_secret
from gateway_schema.registry import ENTITY_TYPES, EntityType

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(36)


GROUP = "CLUSTER_TYPE_CONTROL_PLANE_GROUP"
"""The type of a control plane that has members instead of entities."""


class Base(DeclarativeBase):
    metadata = metadata
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, int: BigInteger}  # noqa: RUF012


class ControlPlane(Base):
    """A named configuration with its own data planes."""

    __tablename__ = "control_planes"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(256), unique=True)
    description: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, Any]]
    cluster_type: Mapped[str] = mapped_column(String(64))
    auth_type: Mapped[str] = mapped_column(String(32))
    proxy_urls: Mapped[list[Any]]
    cloud_gateway: Mapped[bool] = mapped_column(Boolean)
    config_version: Mapped[int]
    """Counts the transactions that wrote entities of this control plane."""
    created_at: Mapped[int]
    updated_at: Mapped[int]


class ControlPlaneMember(Base):
    """A control plane in a group of control planes; groups are in no group."""

    __tablename__ = "control_plane_members"
    __table_args__ = (Index(None, "member_id"),)

    group_id: Mapped[str] = mapped_column(Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True)
    member_id: Mapped[str] = mapped_column(Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True)
    created_at: Mapped[int]
    """Unix milliseconds."""


class ConfigStore(Base):
    """A named place for secrets; vaults of type `konnect` refer to it. Times in Unix milliseconds."""

    __tablename__ = "config_stores"
    __table_args__ = (Index(None, "control_plane_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    control_plane_id: Mapped[str] = mapped_column(Id, ForeignKey("control_planes.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[int]
    updated_at: Mapped[int]


class Token(Base):
    """A bearer token of the API. The token itself is shown once, when it is made; only its digest is kept."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(256))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 in hex. No salt: tokens are 256 random bits, and look-up is by digest."""
    kind: Mapped[str] = mapped_column(String(16), default="personal")
    """`personal` or `system-account`."""
    scopes: Mapped[list[Any]]
    control_plane_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("control_planes.id", ondelete="CASCADE"), default=None
    )
    """The one control plane that the token is limited to; it goes with it."""
    expires_at: Mapped[int | None]
    created_by: Mapped[str] = mapped_column(String(256), default="")
    """Name of the token that made this one; empty for one that a start made."""
    created_at: Mapped[int]


class Keyring(Base):
    """Keys that the control plane made for itself, encrypted under the operator's key."""

    __tablename__ = "keyring"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class DataPlaneCertificate(Base):
    """A client certificate that nodes of a control plane may present (pinned)."""

    __tablename__ = "dp_client_certificates"
    __table_args__ = (UniqueConstraint("control_plane_id", "fingerprint"), Index(None, "fingerprint"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    control_plane_id: Mapped[str] = mapped_column(Id, ForeignKey("control_planes.id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(String(256))
    cert: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the DER form, in hex."""
    created_at: Mapped[int]
    updated_at: Mapped[int]


class Node(Base):
    """A data plane node that was seen, with what it last said of itself."""

    __tablename__ = "nodes"

    control_plane_id: Mapped[str] = mapped_column(
        Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    hostname: Mapped[str] = mapped_column(String(256))
    version: Mapped[str] = mapped_column(String(64))
    last_seen: Mapped[int]
    config_version: Mapped[int]
    config_hash: Mapped[str] = mapped_column(String(32))
    sync_state: Mapped[str] = mapped_column(String(16))
    last_error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    workers: Mapped[list[Any]]
    stream: Mapped[str] = mapped_column(String(32), default="")
    """The stream that last wrote this row, whichever replica it is on; empty for a node that was not served."""
    created_at: Mapped[int]
    updated_at: Mapped[int]


def digest_column(row: EntityType, unique: tuple[str, ...]) -> str | None:
    """The column that makes a set of fields unique where the fields themselves cannot.

    One of two cases: a secret, which is stored encrypted (`key_digest`), or several fields of which some may be null,
    which SQL takes for different from one another (`identity`).
    """
    if len(unique) > 1:
        return "identity"
    return f"{unique[0]}_digest" if is_secret(row.model.model_fields[unique[0]]) else None


@cache
def unique_columns(row: EntityType) -> Mapping[str, tuple[str, ...]]:
    """Columns that are unique within a control plane, each with the fields it stands for."""
    return {digest_column(row, unique) or unique[0]: unique for unique in row.unique}


@cache
def lookup_columns(row: EntityType) -> Mapping[str, tuple[str, ...]]:
    """Columns of what the API finds an entity by, where that is not unique by itself."""
    key = row.endpoint_key
    return {key: (key,)} if key is not None and (key,) not in row.unique else {}


def reference_column(field: str) -> str:
    return f"{field}_id"


def _moment(row: EntityType) -> Any:
    return Double() if row.fractional_times else BigInteger()


def _entity_table(row: EntityType) -> Table:
    columns: list[Any] = [
        Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True),
        Column("id", Id, primary_key=True),
    ]
    constraints: list[Any] = [Index(None, "control_plane_id", "revision")]
    for field, parent in row.parents.items():
        column = reference_column(field)
        columns.append(Column(column, Id, nullable=not parent.required))
        constraints.append(
            ForeignKeyConstraint(
                ["control_plane_id", column],
                [f"{parent.type}.control_plane_id", f"{parent.type}.id"],
                ondelete="CASCADE" if parent.on_delete == "cascade" else None,
            )
        )
        constraints.append(Index(None, "control_plane_id", column))
    for column in unique_columns(row):
        columns.append(Column(column, Text, nullable=True))
        constraints.append(UniqueConstraint("control_plane_id", column))
    for column in lookup_columns(row):
        columns.append(Column(column, Text, nullable=True))
        constraints.append(Index(None, "control_plane_id", column))
    if row.expires:
        columns.append(Column("expires_at", BigInteger, nullable=True))
        constraints.append(Index(None, "expires_at"))
    columns += [
        Column("written", JSON, nullable=False),
        Column("revision", BigInteger, nullable=False),
        *(Column(name, _moment(row), nullable=False) for name in ("created_at", "updated_at")),
    ]
    return Table(row.name, metadata, *columns, *constraints)


ENTITY_TABLES: Mapping[str, Table] = {row.name: _entity_table(row) for row in ENTITY_TYPES.values()}

ENTITY_TAGS = Table(
    "entity_tags",
    metadata,
    Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", Text, primary_key=True),
    Column("entity_type", String(64), primary_key=True),
    Column("entity_id", Id, primary_key=True),
    Index(None, "control_plane_id", "entity_type", "entity_id"),
)
"""One row per tag of an entity; `entity_type` is the plural name."""

# -- wire and analytics
#
# Analytics rows name entities by id without foreign keys: history outlives what it is about. An absent entity is the
# empty string, never null, because these columns stand in keys. Times are Unix microseconds (`_us`), buckets Unix
# seconds at the start of a minute.

REVOKED_CERTIFICATES = Table(
    "revoked_certificates",
    metadata,
    Column("control_plane_id", Id, primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("title", String(256), nullable=True),
    Column("cert", Text, nullable=False),
    Column("revoked_at", BigInteger, nullable=False),
)
"""Client certificates that were taken back, remembered so that their refusal can say so."""

ANALYTICS_EPOCHS = Table(
    "analytics_epochs",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("control_plane_id", Id, nullable=False),
    Column("node_id", Id, nullable=False),
    Column("epoch", String(64), nullable=False),
    Column("node_version", String(64), nullable=False),
    Column("applied_through", BigInteger, nullable=False),
    Column("applied_ahead", JSON, nullable=False),
    Column("dropped_events", BigInteger, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    UniqueConstraint("control_plane_id", "node_id", "epoch"),
)
"""One row per spool that reports: which of its batches are stored (all through one sequence, and some ahead of it)."""


def _event_key() -> list[Column[Any]]:
    """Which event of which batch: the epoch's row, the batch's sequence, the place in the batch."""
    big = BigInteger
    return [Column(name, big, primary_key=True, autoincrement=False) for name in ("epoch_id", "sequence", "position")]


def _texts(*names: str) -> list[Column[Any]]:
    return [Column(name, Text, nullable=False) for name in names]


def _numbers(*names: str, nullable: bool = False) -> list[Column[Any]]:
    return [Column(name, BigInteger, nullable=nullable) for name in names]


def _distributions(*names: str) -> list[Column[Any]]:
    """Of each latency: how many, their sum and maximum in microseconds, their sketch (`gateway_schema.sketch`)."""
    columns: list[Column[Any]] = []
    for name in names:
        columns += _numbers(f"{name}_count", f"{name}_sum_us", f"{name}_max_us")
        columns.append(Column(f"{name}_sketch", LargeBinary, nullable=False))
    return columns


REQUEST_EVENTS = Table(
    "request_events",
    metadata,
    *_event_key(),
    *_texts("control_plane_id", "node_id"),
    *_numbers("started_us", "finished_us"),
    *_texts("request_id", "parent_request_id", "decision_id"),
    *_numbers("config_version"),
    *_texts("service_id", "route_id", "consumer_id", "credential_id"),
    *_texts("method", "scheme", "host", "path", "user_agent", "client_ip"),
    *_numbers("status", "upstream_status"),
    *_texts("source", "error_kind", "plugin_name", "outcome"),
    *_numbers("request_bytes", "response_bytes", "total_us", "gateway_us", "callout_us"),
    *_numbers("upstream_us", "receive_us", nullable=True),
    Index(None, "control_plane_id", "finished_us"),
    Index(None, "finished_us"),
    Index(None, "request_id"),
)
"""The request log: one row per exchange that was reported whole, kept for the retention time."""

LLM_CALLS = Table(
    "llm_calls",
    metadata,
    *_event_key(),
    Column("call_index", BigInteger, primary_key=True, autoincrement=False),
    *_numbers("finished_us"),
    *_texts("plugin_id", "provider", "request_model", "response_model", "model_alias"),
    Column("stream", Boolean, nullable=False),
    *_numbers("status"),
    *_texts("error_kind", "role", "token_source", "finish_reason"),
    *_numbers("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens"),
    *_numbers("duration_us"),
    *_numbers("ttft_us", "cost_nano_usd", nullable=True),
    Index(None, "finished_us"),
)
"""The calls to models inside the exchanges of the request log."""

_BUCKET_KEY = ("service_id", "route_id", "consumer_id")

API_USAGE = Table(
    "api_usage",
    metadata,
    Column("control_plane_id", Id, primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, String(64), primary_key=True) for name in _BUCKET_KEY),
    Column("status", BigInteger, primary_key=True, autoincrement=False),
    Column("source", String(64), primary_key=True),
    *_numbers("requests", "incomplete", "request_bytes", "response_bytes"),
    *_distributions("total", "upstream", "gateway"),
    Index(None, "bucket"),
)
"""Exchanges per minute of their end: whole events and folded ones alike."""

LLM_USAGE = Table(
    "llm_usage",
    metadata,
    Column("control_plane_id", Id, primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, String(64), primary_key=True) for name in _BUCKET_KEY),
    *(Column(name, String(256), primary_key=True) for name in ("provider", "request_model", "response_model")),
    Column("status", BigInteger, primary_key=True, autoincrement=False),
    Column("stream", Boolean, primary_key=True),
    *_numbers("calls", "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens"),
    *_numbers("reasoning_tokens", "estimated_calls", "unpriced_calls", "cost_nano_usd"),
    *_distributions("duration", "ttft"),
    Index(None, "bucket"),
)
"""Calls to models per minute of their exchange's end. An exchange with three calls counts three times here."""

ENTITY_NAMES = Table(
    "entity_names",
    metadata,
    Column("control_plane_id", Id, primary_key=True),
    Column("entity_id", Id, primary_key=True),
    Column("entity_type", String(64), nullable=False),
    Column("name", Text, nullable=False),
)
"""Last known names of what analytics rows refer to: they outlive the entities."""

# -- tokens and audit
#
# The audit log has no foreign keys: it outlives what it tells of. What does not apply is the empty string.

AUDIT_LOG = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at_us", BigInteger, nullable=False),
    *(Column(name, String(256), nullable=False) for name in ("principal_id", "principal_name", "client_address")),
    Column("action", String(32), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("control_plane_id", String(36), nullable=False),
    *(Column(name, String(64), nullable=False) for name in ("entity_type", "entity_id")),
    Column("entity_name", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Index(None, "control_plane_id", "id"),
    Index(None, "at_us"),
)
"""One row per change: who, when, what, from where. Written in the transaction of the change. Never secrets."""

# -- ownership, history, saved plans
#
# Owner rows go with their entity (`batches.py`). No foreign key can say so: an entity's table depends on its kind.

ENTITY_OWNERS = Table(
    "entity_owners",
    metadata,
    Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True),
    Column("entity_type", String(64), primary_key=True),
    Column("entity_id", Id, primary_key=True),
    Column("owner", Text, nullable=False),
)
"""The select tags that an entity was last written under: a JSON list, sorted. What was written without has no row."""

SNAPSHOTS = Table(
    "snapshots",
    metadata,
    Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String(32), nullable=False),
    Column("author", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index(None, "created_ms"),
)
"""What a control plane held at a version: rows as they were written with their owners, compressed, encrypted."""

SAVED_PLANS = Table(
    "saved_plans",
    metadata,
    Column("id", Id, primary_key=True),
    Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("author", String(256), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("applied_version", BigInteger, nullable=True),
    Column("payload", LargeBinary, nullable=False),
    Index(None, "control_plane_id"),
    Index(None, "expires_ms"),
)
"""Plans to be applied later, to the version they were made against and to no other; encrypted."""

# -- config stores

CONFIG_STORE_SECRETS = Table(
    "config_store_secrets",
    metadata,
    Column("store_id", Id, ForeignKey("config_stores.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(512), primary_key=True),
    Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index(None, "control_plane_id"),
)
"""Secrets of config stores: the key in clear, the value sealed. Times in Unix milliseconds."""
