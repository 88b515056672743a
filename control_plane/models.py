"""Every table of the control plane.

Tables of entities follow from the registry: `written` holds what a person wrote, apart from defaults, with secrets
encrypted; beside it stand only the columns that the database itself must know: what is unique and what refers to what.
Keys start with the control plane, so that two control planes may hold the same ids.

Times of entities are Unix seconds (as Kong shows them), those of control planes Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
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


class Token(Base):
    """A bearer token of the API. The token itself is shown once, when it is made; only its digest is kept."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(256))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 in hex. No salt: tokens are 256 random bits, and look-up is by digest."""
    scopes: Mapped[list[Any]]
    expires_at: Mapped[int | None]
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


def unique_columns(row: EntityType) -> dict[str, tuple[str, ...]]:
    """Columns that are unique within a control plane, each with the fields it stands for."""
    return {digest_column(row, unique) or unique[0]: unique for unique in row.unique}


def reference_column(field: str) -> str:
    return f"{field}_id"


def _entity_table(row: EntityType) -> Table:
    columns: list[Any] = [
        Column("control_plane_id", Id, ForeignKey("control_planes.id", ondelete="CASCADE"), primary_key=True),
        Column("id", Id, primary_key=True),
    ]
    constraints: list[Any] = []
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
    columns += [
        Column("written", JSON, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("updated_at", BigInteger, nullable=False),
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
